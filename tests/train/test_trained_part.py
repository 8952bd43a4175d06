"""What a run trains: all of a model, or the weights of its lexical features alone, without running the encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from m2bert.errors import M2BertError
from m2bert.train.losses import LOSSES, multiple_negatives_ranking
from m2bert.train.retrieval import LexicalFeaturesAlone, WholeModel, retrieval_loss

SIZE = 24
QUERIES = ["river stone light", "paper engine market", "garden winter signal"]
DOCUMENTS = ["stone river light light copper", "market engine, paper!", "garden signal summer", "window thread ladder"]


def lexical_model() -> Any:
    model = tiny_model(lexical_features=SIZE)
    with torch.no_grad():
        model.lexical_features.weight.uniform_(0.5, 2.0)
    return model


def batch() -> dict[str, torch.Tensor]:
    made = {}
    for side, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        inputs = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
        made |= {f"{side}_{name}": inputs[name] for name in ("input_ids", "attention_mask")}
    return made


def test_lexical_features_alone_learn_as_they_would_behind_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle runs the whole model and takes the loss of the last numbers of its vectors."""
    model, inputs = lexical_model(), batch()
    loss = partial(multiple_negatives_ranking, scale=2.0)
    sides = [
        model(input_ids=inputs[f"{side}_input_ids"], attention_mask=inputs[f"{side}_attention_mask"]).pooler_output
        for side in ("query", "document")
    ]
    expected = loss(sides[0][:, -SIZE:], sides[1][:, -SIZE:], None)
    (wanted,) = torch.autograd.grad(expected, [model.lexical_features.weight])

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the encoder was run")

    monkeypatch.setattr(type(model.encoder), "forward", never)
    part = LexicalFeaturesAlone(model)
    found = retrieval_loss(loss, part, 40)(part.module, inputs)
    (gradient,) = torch.autograd.grad(found, [model.lexical_features.weight])
    assert found.item() == pytest.approx(expected.item(), abs=1e-6) and wanted.norm() > 1e-3
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert [parameter.shape for parameter in part.module.parameters()] == [model.lexical_features.weight.shape]
    part.check_tokens(10**6, 10**6)
    with pytest.raises(AssertionError, match="the encoder was run"):
        retrieval_loss(loss, WholeModel(model), 40)(model, inputs)


def test_a_whole_model_trains_all_and_reads_its_positions_only() -> None:
    model, inputs = lexical_model(), batch()
    part = WholeModel(model)
    retrieval_loss(LOSSES["mnrl"], part, 40)(part.module, inputs).backward()
    assert all(p.grad is not None for name, p in part.module.named_parameters() if "lexical" in name or "mlp" in name)
    part.check_tokens(64, 64)
    with pytest.raises(M2BertError, match="within the model's 64 positions, got 65 for documents and 9 for queries"):
        part.check_tokens(65, 9)
    with pytest.raises(M2BertError, match="within the model's 64 positions, got 9 for documents and 65 for queries"):
        part.check_tokens(9, 65)
    with pytest.raises(M2BertError, match="only_lexical needs a model with lexical features, got none"):
        LexicalFeaturesAlone(tiny_model())
