"""The whole encoder against its plain-torch twin (what the published code computes on a CPU), BERT-base and products.

Times are of 2 of the 12 layers of the 80M configuration with random weights: a layer takes what a layer takes. The
document of 32,768 tokens takes minutes and is asked for with M2OPS_BENCH_LONG=1; M2OPS_BENCH_LAYERS=12 runs whole
models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from m2bert import M2BertConfig, M2BertModel
from m2ops._library import binding

LAYERS = int(os.environ.get("M2OPS_BENCH_LAYERS", "2"))
LONG = bool(os.environ.get("M2OPS_BENCH_LONG"))
SEQLENS = [512, 4096, *([32768] if LONG else [])]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Against the float32 twin: rounding of the hidden states, layer by layer.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
Versus = Callable[..., None]
Call = Callable[[], Tensor]


@pytest.fixture(autouse=True)
def budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", "5000")


def models(seqlen: int, dtype: torch.dtype = torch.float32) -> tuple[M2BertModel, M2BertModel]:
    """Ours in `dtype`, and its plain-torch twin in float32."""
    config = M2BertConfig(num_hidden_layers=LAYERS, max_position_embeddings=seqlen)
    model = M2BertModel(config).eval()
    twin = M2BertModel(M2BertConfig(**{**config.to_diff_dict(), "kernels": "reference"})).eval()
    twin.load_state_dict(model.state_dict())
    return model.to(dtype), twin


def bert_base(seqlen: int, dtype: torch.dtype) -> BertModel:
    config = BertConfig(num_hidden_layers=LAYERS, max_position_embeddings=seqlen, attn_implementation="sdpa")
    return BertModel(config, add_pooling_layer=False).eval().to(dtype)


def states(network: nn.Module, input_ids: Tensor) -> Call:
    def call() -> Tensor:
        with torch.inference_mode():
            return network(input_ids).last_hidden_state

    return call


def dense_products(model: M2BertModel, tokens: int) -> Call:
    """The matrix products of the layers and nothing else: projections, and the blocks of the MLP by torch.bmm."""
    dim = model.config.hidden_size
    x = torch.randn(tokens, dim, dtype=model.dtype)
    inner = torch.randn(tokens, model.config.intermediate_size, dtype=model.dtype)

    def blocks(data: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(data.view(tokens, weight.shape[0], -1).transpose(0, 1), weight.transpose(1, 2))

    def call() -> Tensor:
        with torch.inference_mode():
            for block in model.encoder.blocks:
                mixer, mlp = block.sequence_mixer, block.mlp
                F.linear(x, mixer.in_proj.weight)
                F.linear(x, mixer.out_proj.weight)
                blocks(x, mlp.w_in)
                blocks(inner, mlp.w_out)
        return x

    return call


def skip_without_products(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not binding.has_products("bfloat16"):
        pytest.skip("needs a CPU that multiplies bfloat16 numbers")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlen", SEQLENS)
def test_encoder(versus: Versus, seqlen: int, dtype: str) -> None:
    skip_without_products(DTYPES[dtype])
    model, twin = models(seqlen, DTYPES[dtype])
    input_ids = torch.randint(1000, 30000, (1, seqlen))
    peers: dict[str, Any] = {
        "plain torch": states(twin, input_ids),
        "BERT-base SDPA": states(bert_base(seqlen, DTYPES[dtype]), input_ids),
        "dense products": dense_products(model, seqlen),
    }
    versus(
        f"encoder, {LAYERS} layers of the 80M model, warm spectra",
        f"{dtype}, 1 x {seqlen} tokens",
        states(model, input_ids),
        peers,
        exact=states(twin, input_ids)().double(),
        bound=BOUNDS[DTYPES[dtype]],
        rounds=1 if seqlen > 4096 else 3,
    )


@pytest.mark.parametrize("seqlen", SEQLENS)
def test_encoder_cold(versus: Versus, seqlen: int) -> None:
    model, twin = models(seqlen)
    input_ids = torch.randint(1000, 30000, (1, seqlen))

    def cold(network: M2BertModel) -> Call:
        def call() -> Tensor:
            network.filter_bank.clear()
            return states(network, input_ids)()

        return call

    versus(
        f"encoder, {LAYERS} layers of the 80M model, filters and spectra made on the way",
        f"float32, 1 x {seqlen} tokens",
        cold(model),
        {"plain torch": cold(twin)},
        exact=states(twin, input_ids)().double(),
        bound=1e-5,
        rounds=1 if seqlen > 4096 else 3,
    )


@pytest.mark.parametrize("seqlen", [2048, 8192, *([32768] if LONG else [])])
def test_encoder_seconds_per_token(versus: Versus, seqlen: int) -> None:
    """One over the ratio is how much a token costs more in one long document than in documents of 512 tokens."""
    model, _ = models(seqlen)
    input_ids = torch.randint(1000, 30000, (1, seqlen))
    versus(
        f"encoder, {LAYERS} layers of the 80M model, float32, one document against as many tokens in documents of 512",
        f"1 x {seqlen} tokens",
        states(model, input_ids),
        {"512 tokens each": states(model, input_ids.view(-1, 512))},
        rounds=3,
    )
