"""Texts longer than the model, read in windows: states, gradients, padding, and what cannot be read so.

That vectors are those of an Embedder, and of the definition: tests/integrations/test_agreement.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_inputs

from m2bert.errors import M2BertError
from m2bert.model.long_texts import pooled_in_windows
from m2bert.model.modeling import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

EVERYTHING = {"pooling": "weighted", "bilinear_features": 8, "projection_dim": 12}


def long_ids(length: int) -> torch.Tensor:
    ids = tiny_inputs(1, length)[0] % 90 + 5
    ids[0], ids[-1] = 2, 3
    return ids


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"pooling": "cls_dense", "pad_to_max_length": True}])
def test_states_are_those_of_the_windows(fields: Any) -> None:
    model = M2BertModel(tiny_config(**fields)).eval()
    ids = long_ids(200)  # 198 tokens between [CLS] and [SEP]: windows of 66
    out = model(ids[None])
    assert out.last_hidden_state.shape == (1, 200, 32)
    for start in (1, 67, 133):
        window = torch.cat([ids[:1], ids[start : start + 66], ids[-1:]])
        states = model(window[None]).last_hidden_state[0]
        torch.testing.assert_close(out.last_hidden_state[0, start : start + 66], states[1:-1], rtol=0, atol=1e-5)
        if start == 1:
            torch.testing.assert_close(out.last_hidden_state[0, 0], states[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.last_hidden_state[0, -1], states[-1], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"pooling": "cls"}])
def test_short_texts_beside_long_ones_and_padding_on_either_side_change_nothing(fields: Any) -> None:
    model = M2BertModel(tiny_config(**fields)).eval()
    texts = [long_ids(length) for length in (250, 3, 96, 97)]
    alone = torch.cat([model(text[None]).pooler_output for text in texts])
    for left in (False, True):
        ids, mask = torch.full((4, 260), 96), torch.zeros(4, 260, dtype=torch.long)
        for row, text in enumerate(texts):
            where = slice(260 - len(text), None) if left else slice(0, len(text))
            ids[row, where], mask[row, where] = text, 1
        out = model(ids, attention_mask=mask)
        torch.testing.assert_close(out.pooler_output, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.text_vectors(ids, mask, 0 * ids)[:, 0], alone, rtol=0, atol=1e-5)
        assert out.last_hidden_state[mask == 0].eq(0).all() and out.last_hidden_state[mask == 1].ne(0).any(dim=1).all()
    assert (alone[0] - alone[3]).abs().max() > 1e-3


def test_gradients_are_those_of_the_whole() -> None:
    """With one window the path through windows is the ordinary one, and so are its gradients."""
    grads = []
    for windowed in (False, True):
        torch.manual_seed(1)
        model = M2BertModel(tiny_config(**EVERYTHING)).train()
        ids = torch.stack([long_ids(60), long_ids(60).flip(0)])
        pooled = pooled_in_windows(model, ids, None)[1] if windowed else model(ids).pooler_output
        pooled.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(grads[0]) > 20 and grads[0].keys() == grads[1].keys()
    for name, expected in grads[0].items():
        # No vector's direction depends on the bias of all weights: its gradient is rounding.
        error = (grads[1][name] - expected).norm() / expected.norm().clamp(min=1e-3)
        assert error < 1e-4, f"{name}: relative error {error:.1e}"
    model.zero_grad()
    model(long_ids(300)[None]).pooler_output.sum().backward()
    assert model.projection.weight.grad.abs().sum() > 0 and model.encoder.blocks[0].mlp.w_in.grad.abs().sum() > 0


def test_what_cannot_be_read_in_windows_is_refused() -> None:
    ids = long_ids(120)[None]
    with pytest.raises(M2BertError, match="must have 1 to 96 tokens, got 120"):
        M2BertForMaskedLM(tiny_config())(ids)
    model = M2BertModel(tiny_config()).eval()
    for given in ({"position_ids": torch.arange(120)[None] % 96}, {"token_type_ids": torch.ones_like(ids)}):
        with pytest.raises(M2BertError, match="must have 1 to 96 tokens, got 120"):
            model(ids, **given)
    with pytest.raises(M2BertError, match=r"every row has a token, got 96 positions and rows of \[0\] tokens"):
        model(ids, attention_mask=torch.zeros_like(ids))
    classifier = M2BertForSequenceClassification(tiny_config(num_labels=3)).eval()
    assert classifier(ids).logits.shape == (1, 3)
