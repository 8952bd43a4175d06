"""The models: initialisation, padding, heads, gradients, precision, saving, the transformers interface."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config, tiny_inputs
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from m2bert.errors import M2BertError
from m2bert.model.layers import Block
from m2bert.model.modeling import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from m2bert.model.pooling import mean_pool

KERNELS = ["reference", "m2ops"]


def every_switch(kernels: str) -> list[dict[str, Any]]:
    """Configurations that together use every branch of the layers."""
    return [
        {"kernels": kernels},
        {"kernels": kernels, "bidirectional": False, "residual_long_conv": False, "filter_emb_dim": 3},
        {"kernels": kernels, "use_glu": False, "mlp_nblocks": 1, "short_conv_width": 4},
        {"kernels": kernels, "mlp_nblocks": 1, "mixer_layer_norm": True},
        {"kernels": kernels, "use_glu": False},
    ]


@pytest.mark.parametrize("kernels", KERNELS)
def test_model_gives_states_and_pooled_vector(kernels: str) -> None:
    model = M2BertModel(tiny_config(kernels=kernels)).eval()
    out = model(tiny_inputs(3, 17))
    assert out.last_hidden_state.shape == (3, 17, 32) and out.pooler_output.shape == (3, 32)
    assert out.last_hidden_state.isfinite().all() and out.last_hidden_state.std() > 0.1
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state.mean(dim=1))


@pytest.mark.parametrize("index", range(5))
def test_model_kernels_agree_with_their_reference(index: int) -> None:
    ids = tiny_inputs(2, 77)
    mask = torch.ones_like(ids)
    mask[1, 50:] = 0
    outs = []
    for kernels in KERNELS:
        torch.manual_seed(3)
        model = M2BertModel(tiny_config(**every_switch(kernels)[index])).eval()
        outs.append(model(ids, attention_mask=mask).last_hidden_state[mask.bool()])
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=5e-5)


def alone(model: M2BertModel, ids: Tensor) -> Tensor:
    return model(ids[None]).pooler_output[0]


@torch.no_grad()
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "cls_dense", "weighted"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kernels: str, pooling: str, side: str) -> None:
    model = M2BertModel(tiny_config(kernels=kernels, pooling=pooling)).eval()
    texts = [tiny_inputs(1, n)[0] for n in (1, 2, 23, 40)]
    for width in (40, 64, 96):
        ids, mask = torch.full((4, width), 7), torch.zeros(4, width, dtype=torch.long)
        for row, text in enumerate(texts):
            where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
            ids[row, where], mask[row, where] = text, 1
        pooled = model(ids, attention_mask=mask).pooler_output
        for row, text in enumerate(texts):
            torch.testing.assert_close(pooled[row], alone(model, text), rtol=0, atol=1e-5)
    unmasked = model(ids).pooler_output
    assert (unmasked[2] - alone(model, texts[2])).abs().max() > 1e-2  # the mask is what does it


@torch.no_grad()
def test_pad_to_max_length_lets_padding_flow_through() -> None:
    config = tiny_config(kernels="reference", pad_to_max_length=True, pooling="cls")
    torch.manual_seed(1)
    released = M2BertModel(config).eval()
    torch.manual_seed(1)
    exact = M2BertModel(tiny_config(kernels="reference", pooling="cls")).eval()
    ids = tiny_inputs(2, 20)
    padded = F.pad(ids, (0, 76), value=0)
    expected = exact(padded).last_hidden_state
    out = released(ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(out.last_hidden_state, expected[:, :20], rtol=0, atol=1e-6)
    torch.testing.assert_close(out.pooler_output, expected[:, 0], rtol=0, atol=1e-6)
    embeds = released.get_input_embeddings()(ids)
    again = released(inputs_embeds=embeds, token_type_ids=torch.zeros_like(ids), position_ids=torch.arange(20)[None])
    torch.testing.assert_close(again.last_hidden_state, expected[:, :20], rtol=0, atol=1e-6)
    assert (exact(ids).pooler_output - out.pooler_output).abs().max() > 1e-3


def test_mean_pool_counts_real_tokens_only() -> None:
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    expected = hidden[0, [0, 1, 3]].mean(dim=0)
    pooled = mean_pool(hidden, mask)
    torch.testing.assert_close(pooled[0], expected)
    assert pooled[1].eq(0).all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("index", range(5))
def test_gradients_reach_every_parameter(kernels: str, index: int) -> None:
    model = M2BertForMaskedLM(tiny_config(**every_switch(kernels)[index])).train()
    ids = tiny_inputs(2, 96)
    labels = torch.where(torch.rand(ids.shape) < 0.3, ids, -100)
    model(ids, labels=labels).loss.backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not lost
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradients_of_the_kernels_agree_with_their_reference() -> None:
    ids = tiny_inputs(2, 61)
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    grads = []
    for kernels in KERNELS:
        torch.manual_seed(3)
        model = M2BertForMaskedLM(tiny_config(kernels=kernels)).train()
        model(ids, attention_mask=mask, labels=ids.where(mask.bool(), -100)).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, expected in grads[0].items():
        error = (grads[1][name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("kernels", KERNELS)
def test_activation_checkpointing_gives_the_same_gradients(kernels: str) -> None:
    ids = tiny_inputs(2, 40)
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(5)
        model = M2BertForMaskedLM(tiny_config(kernels=kernels)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
def test_autocast_bfloat16_stays_near_float32(kernels: str) -> None:
    model = M2BertForMaskedLM(tiny_config(kernels=kernels)).train()
    ids = tiny_inputs(2, 64)
    exact = model(ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids, labels=ids)
        if kernels == "m2ops":
            assert model.m2bert(ids).last_hidden_state.dtype == torch.bfloat16
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_model_stays_near_float32(kernels: str) -> None:
    model = M2BertModel(tiny_config(kernels=kernels)).eval()
    ids = tiny_inputs(2, 64)
    exact = model(ids).pooler_output
    pooled = model.bfloat16()(ids).pooler_output
    assert pooled.dtype == torch.bfloat16
    assert F.cosine_similarity(pooled.float(), exact).min() > 0.999


def test_masked_lm_scores_labelled_positions_only() -> None:
    model = M2BertForMaskedLM(tiny_config(kernels="reference")).eval()
    ids = tiny_inputs(2, 30)
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[0, 9], labels[1, 0] = 5, 6, 7
    full = model(ids).logits
    assert full.shape == (2, 30, 97)
    out = model(ids, labels=labels)
    torch.testing.assert_close(out.logits, torch.stack([full[0, 3], full[0, 9], full[1, 0]]), rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(full.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=6).loss, expected / 2)
    nothing = model(ids, labels=torch.full_like(ids, -100))
    assert nothing.loss.item() == 0.0
    nothing.loss.backward()


def test_masked_lm_decoder_is_tied_and_follows_a_new_vocabulary() -> None:
    model = M2BertForMaskedLM(tiny_config(kernels="reference"))
    assert model.decoder.weight is model.m2bert.embeddings.word_embeddings.weight
    model.resize_token_embeddings(104, mean_resizing=False)
    assert model.decoder.weight is model.m2bert.embeddings.word_embeddings.weight
    assert model(tiny_inputs()).logits.shape[-1] == 104


@pytest.mark.parametrize(("labels", "num_labels"), [(torch.tensor([0, 2]), 3), (torch.tensor([0.5, 1.0]), 1)])
def test_classifier_has_the_loss_of_its_labels(labels: Tensor, num_labels: int) -> None:
    config = tiny_config(kernels="reference", num_labels=num_labels)
    out = M2BertForSequenceClassification(config)(tiny_inputs(), labels=labels)
    assert out.logits.shape == (2, num_labels)
    logits = out.logits
    expected = F.mse_loss(logits.squeeze(), labels) if num_labels == 1 else F.cross_entropy(logits, labels)
    torch.testing.assert_close(out.loss, expected)


def test_initialisation_follows_the_rules_and_layers_differ() -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512, initializer_range=0.02)
    model = M2BertModel(config)
    first, second = (block for block in model.encoder.blocks)
    mixer = first.sequence_mixer
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mixer.in_proj.bias.eq(0).all()
    assert first.mlp.w_in.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert first.mlp.w_out.abs().max().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    assert mixer.long_conv.skip.std().item() == pytest.approx(1.0, rel=0.2)
    assert mixer.long_conv.frequency.eq(10.0).all()
    assert model.embeddings.position_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.embeddings.word_embeddings.weight[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert model.embeddings.word_embeddings.weight[0].eq(0).all()
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    random = [(n, a, b) for (n, a), (_, b) in pairs if a.std() > 0 and not n.endswith("features")]
    assert len(random) > 20
    assert not [n for n, a, b in random if torch.equal(a, b)]


def test_identity_initialisation_passes_words_on() -> None:
    """A fresh model is near LayerNorm(words): the published initialisation is nowhere near."""
    near, far = [], []
    for identity, cosines in ((True, near), (False, far)):
        model = M2BertModel(tiny_config(identity_init=identity, initializer_range=0.02)).eval()
        with torch.no_grad():
            words = model.embeddings.word_embeddings(tiny_inputs())
            hidden = model(tiny_inputs()).last_hidden_state
        words = words - words.mean(-1, keepdim=True)
        cosines.extend(F.cosine_similarity(words, hidden, dim=-1)[words.abs().sum(-1) > 0].tolist())
    assert sum(near) / len(near) > 0.9
    assert abs(sum(far) / len(far)) < 0.5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs_embeds": torch.ones(1, 97, 32)}, "must have 1 to 96 tokens, got 97; truncate it"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "must have 1 to 96 tokens, got 0"),
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(5, dtype=torch.long)}, "input_ids must have shape"),
        (
            {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 4)},
            r"attention_mask must have shape \(batch, seqlen\) = \(2, 5\), got \(2, 4\)",
        ),
    ],
)
def test_model_refuses(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        M2BertModel(tiny_config(kernels="reference"))(**inputs)


@torch.no_grad()
def test_model_accepts_embeddings_types_and_hidden_states() -> None:
    model = M2BertModel(tiny_config(kernels="reference")).eval()
    ids = tiny_inputs()
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(out.hidden_states[0], model.embeddings(ids))
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden_state)
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).last_hidden_state, out.last_hidden_state)
    types = torch.ones_like(ids)
    assert (model(ids, token_type_ids=types).last_hidden_state - out.last_hidden_state).abs().max() > 1e-3
    same = model(ids, token_type_ids=0 * types, position_ids=torch.arange(40)[None]).last_hidden_state
    torch.testing.assert_close(same, out.last_hidden_state)
    assert isinstance(model(ids, return_dict=False), tuple)


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        (AutoModel, M2BertModel),
        (AutoModelForMaskedLM, M2BertForMaskedLM),
        (AutoModelForSequenceClassification, M2BertForSequenceClassification),
    ],
)
def test_saved_model_opens_with_the_auto_classes(auto: Any, cls: Any, tmp_path: Path) -> None:
    model = cls(tiny_config(kernels="reference", pooling="cls_dense")).eval()
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    assert type(again) is cls
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in again.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(again(tiny_inputs())[0], model(tiny_inputs())[0], rtol=0, atol=0)


def test_saved_masked_lm_opens_as_encoder_quietly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = M2BertForMaskedLM(tiny_config(kernels="reference")).eval()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert not caplog.records
    ids = tiny_inputs()
    torch.testing.assert_close(encoder(ids)[0], model.m2bert(ids)[0], rtol=0, atol=0)


def test_model_opened_in_bfloat16_keeps_its_filters(tmp_path: Path) -> None:
    model = M2BertModel(tiny_config(kernels="reference")).eval()
    model.save_pretrained(tmp_path)
    narrow = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    conv = narrow.encoder.blocks[1].sequence_mixer.residual_long_conv
    assert narrow.encoder.blocks[1].mlp.w_in.dtype == torch.bfloat16
    assert {p.dtype for p in conv.parameters()} == {torch.float32}
    torch.testing.assert_close(
        conv.features, model.encoder.blocks[1].sequence_mixer.residual_long_conv.features, rtol=0, atol=0
    )


def test_every_second_layer_can_be_computed_again() -> None:
    model = M2BertForMaskedLM(tiny_config(kernels="reference", num_hidden_layers=4)).train()
    calls, layer = [], Block._layer

    def watching(block: Any, *args: Any) -> Any:
        calls.append([*model.m2bert.encoder.blocks].index(block))
        return layer(block, *args)

    model.activation_checkpointing_enable(every_n_layers=2)
    assert model.is_activation_checkpointing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "_layer", watching)
        model(tiny_inputs(), labels=tiny_inputs()).loss.backward()
        assert sorted(calls) == [0, 0, 1, 2, 2, 3]
        calls.clear()
        model.eval()(tiny_inputs(), labels=tiny_inputs()).loss.backward()
        assert calls == [0, 1, 2, 3]
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_classifier_hands_out_hidden_states() -> None:
    model = M2BertForSequenceClassification(tiny_config(kernels="reference")).eval()
    out = model(tiny_inputs(), labels=torch.tensor([0, 1]), output_hidden_states=True)
    assert len(out.hidden_states) == 3 and out.loss.isfinite()
    torch.testing.assert_close(out.hidden_states[-1], model.m2bert(tiny_inputs()).last_hidden_state)


@torch.no_grad()
def test_term_weights_follow_a_new_vocabulary() -> None:
    model = M2BertModel(tiny_config(kernels="reference", term_weights=True)).eval()
    model.term_weights.weight.copy_(torch.arange(97) / 8)
    ids = tiny_inputs()
    before = model(ids).pooler_output
    model.resize_token_embeddings(104, mean_resizing=False)
    torch.testing.assert_close(model(ids).pooler_output, before, rtol=0, atol=1e-6)
    expected = torch.cat([torch.arange(97) / 8, torch.ones(7)])
    assert torch.equal(model.term_weights.weight, expected) and model.term_weights.weight.requires_grad
    counted = model.term_weights(torch.full_like(ids, 103))
    assert counted.shape == (2, 104) and counted[0, 103].item() == pytest.approx(math.log2(41))
    model.resize_token_embeddings(90)
    assert torch.equal(model.term_weights.weight, expected[:90])
