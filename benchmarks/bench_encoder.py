"""The whole encoder against its plain-torch twin (what the published code computes on a CPU), and the mixer alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import m2ops
from m2bert import M2BertConfig, M2BertModel


@pytest.mark.parametrize("seqlen", [512, 4096])
def test_monarch_mixer(versus: Callable[..., None], seqlen: int) -> None:
    dim = 768
    p, u = torch.randn(1, seqlen, 3 * dim), torch.randn(1, seqlen, dim)
    weight, bias = torch.randn(3 * dim, 3), torch.randn(3 * dim)
    filters = [torch.randn(dim, seqlen) / seqlen**0.5 for _ in range(4)]
    skips = torch.randn(dim), torch.randn(dim)
    spectra = [m2ops.filter_spectrum(*filters[:2], seqlen), m2ops.filter_spectrum(*filters[2:], seqlen)]
    references = [m2ops.filter_spectrum_ref(*filters[:2], seqlen), m2ops.filter_spectrum_ref(*filters[2:], seqlen)]
    wide = [t.double() for t in (p, u, weight, bias, *filters, *skips)]
    versus(
        "monarch_mixer float32, spectra given",
        f"1 x {seqlen} x {dim}",
        lambda: m2ops.monarch_mixer(p, u, weight, bias, spectra[0], None, skips[0], spectra[1], None, skips[1]),
        {
            "plain torch": lambda: m2ops.monarch_mixer_ref(
                p, u, weight, bias, references[0], None, skips[0], references[1], None, skips[1]
            )
        },
        exact=m2ops.monarch_mixer_ref(*wide[:6], wide[8], wide[6], wide[7], wide[9]),
        bound=3e-6,
    )


@pytest.mark.parametrize("seqlen", [512, 4096])
def test_encoder(versus: Callable[..., None], seqlen: int) -> None:
    config = M2BertConfig(num_hidden_layers=2, max_position_embeddings=seqlen)
    model = M2BertModel(config).eval()
    twin = M2BertModel(M2BertConfig(**{**config.to_diff_dict(), "kernels": "reference"})).eval()
    twin.load_state_dict(model.state_dict())
    input_ids = torch.randint(1000, 30000, (1, seqlen))

    def run(network: M2BertModel) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.inference_mode():
                return network(input_ids).last_hidden_state

        return call

    versus(
        "encoder float32, 2 layers of the 80M model, warm spectra",
        f"1 x {seqlen} tokens",
        run(model),
        {"plain torch": run(twin)},
        exact=run(twin)().double(),
        bound=1e-5,
        rounds=5,
    )
