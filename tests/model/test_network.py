"""The network in plain torch: the same numbers as the transformers model, sums over stretches, views, one graph."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_inputs, tiny_model

from m2bert.model.architecture import Architecture
from m2bert.model.configuration import M2BertConfig
from m2bert.model.network import M2BertNetwork, for_evaluation
from m2bert.model.pooling import repetition_weights

EVERYTHING = {"pooling": "weighted", "bilinear_features": 8, "projection_dim": 12, "term_weights": True}


def networks(**fields: Any) -> tuple[Any, M2BertNetwork]:
    """A transformers model, and the plain network of the same fields and weights."""
    model = tiny_model(**fields)
    with torch.no_grad():
        for layer in (model.token_weights, model.projection, model.term_weights):
            if layer is not None:
                layer.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    plain = M2BertNetwork(Architecture.from_fields(model.config.to_dict()))
    plain.load_state_dict(model.state_dict())
    return model, plain.eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = tiny_inputs(3, 40) % 60 + 5
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    mask[2, 1:] = 0
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"pooling": "cls"}, {"pooling": "cls_dense"}, EVERYTHING])
def test_a_plain_network_gives_what_the_transformers_model_gives(fields: Any) -> None:
    model, plain = networks(**fields)
    assert type(plain.config) is Architecture and list(plain.state_dict()) == list(model.state_dict())
    ids, mask = padded()
    expected = model(ids, attention_mask=mask)
    hidden, pooled = plain(ids, mask)
    assert torch.equal(hidden, expected.last_hidden_state) and torch.equal(pooled, expected.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"pooling": "weighted"}, EVERYTHING])
def test_sums_over_stretches_are_the_pooled_vector(fields: Any) -> None:
    """Cut anywhere, the stretches of a text add up to the direction in which the model pools it whole."""
    _, plain = networks(**fields)
    ids, mask = padded()
    lengths = mask.sum(dim=1).tolist()
    counts = [lengths[0] - 7, 0, 7, *[lengths[1] // 4] * 4, lengths[2]]
    own = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    times = torch.cat([torch.tensor([(row == token).sum() for token in row]) for row in own]).double()
    sums = plain.sums(ids, mask.bool(), torch.tensor(counts), repetition_weights(times))
    assert sums.dtype == torch.float32 and sums.shape == (8, plain.config.embedding_size)
    assert sums[1].eq(0).all() and sums[0].abs().max() > 0.1
    expected = torch.nn.functional.normalize(plain(ids, mask)[1], dim=1)
    for place, rows in enumerate(([0, 1, 2], [3, 4, 5, 6], [7])):
        total = sums[rows].double().sum(dim=0)
        made = torch.nn.functional.normalize(total, dim=0)
        torch.testing.assert_close(made.float(), expected[place], rtol=0, atol=1e-6)


def test_a_view_for_evaluation_shares_everything_but_the_mode() -> None:
    model, _ = networks(hidden_dropout_prob=0.5)
    assert for_evaluation(model) is model
    model.encoder.blocks[1].mlp.train()  # one part is enough
    view = for_evaluation(model)
    assert not any(part.training for part in view.modules())
    assert [part.training for part in model.modules()].count(True) == 2  # the MLP and its dropout
    assert all(ours is theirs for ours, theirs in zip(view.parameters(), model.parameters(), strict=True))
    ids, mask = padded()
    with torch.no_grad():
        first = view.states(ids, mask)[0]
        model.embeddings.norm.weight.mul_(2)
        model.train()
        assert (view.states(ids, mask)[0] - first).abs().max() > 1e-3  # follows the weights, not the mode
        torch.testing.assert_close(view.states(ids, mask)[0], copy.deepcopy(model).eval().states(ids, mask)[0])


@torch.no_grad()
def test_an_empty_batch_has_empty_vectors() -> None:
    for fields in ({}, {"pooling": "cls"}, EVERYTHING):
        _, plain = networks(**fields)
        hidden, pooled = plain(torch.zeros(0, 5, dtype=torch.long))
        assert hidden.shape == (0, 5, 16) and pooled.shape == (0, plain.config.embedding_size)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_the_forward_pass_is_one_graph() -> None:
    """No value decides what is computed: torch.compile needs no break, and torch.export takes it."""
    model, plain = networks(**EVERYTHING)
    ids, mask = padded()
    expected = plain(ids, mask)
    compiled = torch.compile(plain, fullgraph=True, backend="eager")(ids, mask)
    exported = torch.export.export(plain, (ids, mask)).module()(ids, mask)
    whole = torch.compile(model, fullgraph=True, backend="eager")(ids, attention_mask=mask)
    for hidden, pooled in (compiled, exported, (whole.last_hidden_state, whole.pooler_output)):
        torch.testing.assert_close(hidden[mask.bool()], expected[0][mask.bool()], rtol=0, atol=1e-5)
        unit, wanted = (torch.nn.functional.normalize(x, dim=1) for x in (pooled, expected[1]))
        torch.testing.assert_close(unit, wanted, rtol=0, atol=1e-6)
    assert plain.filter_bank.nbytes > 0  # of the pass that was not compiled
    torch.testing.assert_close(plain(ids, mask)[1], expected[1], rtol=0, atol=0)


def test_fields_are_those_of_the_transformers_configuration() -> None:
    given = {"hidden_size": 32, "mlp_nblocks": 2, "term_weights": True, "use_glu": False}
    ours, theirs = Architecture(**given), M2BertConfig(**given)
    assert isinstance(theirs, Architecture)
    assert vars(ours).items() <= vars(theirs).items() and len(vars(ours)) == 28
    assert vars(Architecture.from_fields(theirs.to_dict())) == vars(ours)


def test_repetition_weights_of_counts() -> None:
    found = repetition_weights(torch.tensor([0.0, 1.0, 3.0, 7.0], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), [0, 1, 2 / 3, 3 / 7], atol=1e-15)
