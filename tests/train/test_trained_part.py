"""What a run trains: all of a model, or its term weights alone, without running the encoder."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from m2bert.errors import M2BertError
from m2bert.train.losses import LOSSES, multiple_negatives_ranking
from m2bert.train.retrieval import Scoring, TermWeightsAlone, WholeModel, retrieval_loss

QUERIES = ["river stone light", "paper engine market", "garden winter signal"]
DOCUMENTS = ["stone river light light copper", "market engine, paper!", "garden signal summer", "window thread ladder"]


def term_model() -> Any:
    model = tiny_model(term_weights=True)
    with torch.no_grad():
        model.term_weights.weight.uniform_(0.5, 2.0)
    return model


def frequencies(texts: list[str]) -> torch.Tensor:
    """log2(1 + n) of each piece's n occurrences in each text (texts, pieces), special tokens included."""
    rows = torch.zeros(len(texts), len(tiny_tokenizer()), dtype=torch.float64)
    for row, text in zip(rows, texts, strict=True):
        ids = tiny_tokenizer()(text)["input_ids"]
        for piece in ids:
            row[piece] = math.log2(1 + ids.count(piece))
    return rows


def batch() -> dict[str, torch.Tensor]:
    made = {}
    for side, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        inputs = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
        made |= {f"{side}_{name}": inputs[name] for name in ("input_ids", "attention_mask")}
    return made


def test_term_weights_alone_learn_from_counts_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle counts pieces in plain Python and takes the cross-entropy of cosines in float64."""
    model, inputs = term_model(), batch()
    weight = model.term_weights.weight.detach().double().requires_grad_()
    queries, documents = (
        torch.nn.functional.normalize(frequencies(texts) * weight, dim=1) for texts in (QUERIES, DOCUMENTS)
    )
    expected = torch.nn.functional.cross_entropy(2.0 * queries @ documents.T, torch.arange(len(QUERIES)))
    (wanted,) = torch.autograd.grad(expected, [weight])

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the encoder was run")

    monkeypatch.setattr(type(model.encoder), "forward", never)
    loss, part = partial(multiple_negatives_ranking, scale=2.0), TermWeightsAlone(model)
    found = retrieval_loss(loss, Scoring(part, 40))(part.module, inputs)
    (gradient,) = torch.autograd.grad(found, [model.term_weights.weight])
    assert found.item() == pytest.approx(expected.item(), abs=1e-6) and wanted.norm() > 1e-3
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)
    assert [parameter.shape for parameter in part.module.parameters()] == [(len(tiny_tokenizer()),)]
    part.check_tokens(10**6, 10**6)
    with pytest.raises(M2BertError, match="only_term_weights has no passages"):
        retrieval_loss(loss, Scoring(part, 40, passages=0.3))(part.module, inputs)
    with pytest.raises(AssertionError, match="the encoder was run"):
        retrieval_loss(loss, Scoring(WholeModel(model), 40))(model, inputs)


def test_a_whole_model_trains_what_dense_vectors_depend_on_and_reads_its_positions_only() -> None:
    model, inputs = term_model(), batch()
    part = WholeModel(model)
    retrieval_loss(LOSSES["mnrl"], Scoring(part, 40))(part.module, inputs).backward()
    without = [name for name, parameter in part.module.named_parameters() if parameter.grad is None]
    assert without == ["term_weights.weight"]
    assert all(p.grad.abs().max() > 0 for name, p in part.module.named_parameters() if "mlp" in name)
    part.check_tokens(64, 64)
    with pytest.raises(M2BertError, match="within the model's 64 positions, got 65 for documents and 9 for queries"):
        part.check_tokens(65, 9)
    with pytest.raises(M2BertError, match="within the model's 64 positions, got 9 for documents and 65 for queries"):
        part.check_tokens(9, 65)
    with pytest.raises(M2BertError, match="only_term_weights needs a model with term weights, got none"):
        TermWeightsAlone(tiny_model())
