"""Outputs of the reference implementation, reproduced from its own checkpoints to 1e-4 in float32.

Oracle: numbers computed by HazyResearch/m2 itself. Negative control: damage to any parameter must be seen.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import m2ops
from m2bert import load_reference
from m2bert.model.modeling import M2BertForMaskedLM
from m2bert.model.pooling import mean_pool

FOLDERS = [
    "legacy-training-additions-128",
    "long-4096",
    "no-residual-conv-dense-mlp",
    "odd-length-201-of-512",
    "tiny-256",
    "unidirectional-128",
]
TOLERANCE = 1e-4


def outputs(model: M2BertForMaskedLM, input_ids: Tensor) -> dict[str, Tensor]:
    """What the fixtures hold, computed by our model."""
    with torch.no_grad():
        hidden = model.m2bert(input_ids).last_hidden_state
        return {
            "embedding_output": model.m2bert.embeddings(input_ids),
            "last_hidden_state": hidden,
            "logits": model(input_ids).logits,
            "mean_pooled": mean_pool(hidden),
        }


def open_folder(folder: Path, kernels: str) -> tuple[M2BertForMaskedLM, dict[str, Tensor]]:
    model = load_reference(folder, kernels=kernels)
    assert isinstance(model, M2BertForMaskedLM)
    return model, load_file(folder / "golden.safetensors")


def largest_error(model: M2BertForMaskedLM, golden: dict[str, Tensor]) -> float:
    got = outputs(model, golden["input_ids"])
    assert got.keys() == golden.keys() - {"input_ids"}
    assert all(x.shape == golden[name].shape for name, x in got.items())
    return max((x - golden[name]).abs().max().item() for name, x in got.items())


@pytest.mark.parametrize("isa", ["reference", *m2ops.available_isas()])
@pytest.mark.parametrize("name", FOLDERS)
def test_parity_with_the_reference_implementation(shared_dir: Path, name: str, isa: str) -> None:
    kernels = "reference" if isa == "reference" else "m2ops"
    model, golden = open_folder(shared_dir / "parity" / name, kernels)
    if kernels == "reference":
        assert largest_error(model, golden) < TOLERANCE
        return
    with m2ops.use_isa(isa):
        assert largest_error(model, golden) < TOLERANCE


@pytest.mark.parametrize("name", FOLDERS)
def test_parity_holds_where_filters_are_generated_for_the_length_at_hand(shared_dir: Path, name: str) -> None:
    model, golden = open_folder(shared_dir / "parity" / name, "m2ops")
    hidden = model.m2bert(golden["input_ids"]).last_hidden_state  # with gradients: no cached spectra
    assert model.m2bert.filter_bank.nbytes == 0
    assert (hidden - golden["last_hidden_state"]).abs().max() < TOLERANCE


def kinds_of_parameters(model: M2BertForMaskedLM) -> list[str]:
    """One name for every kind of parameter: those of the last layer, and those outside of layers."""
    last = f".blocks.{model.config.num_hidden_layers - 1}."
    return [n for n, _ in model.named_parameters() if ".blocks." not in n or last in n]


@pytest.mark.parametrize("name", ["tiny-256", "legacy-training-additions-128", "no-residual-conv-dense-mlp"])
def test_parity_sees_damage_to_any_parameter(shared_dir: Path, name: str) -> None:
    model, golden = open_folder(shared_dir / "parity" / name, "m2ops")
    unseen = []
    for parameter in kinds_of_parameters(model):
        x = model.get_parameter(parameter)
        intact = x.detach().clone()
        with torch.no_grad():
            x.mul_(0.95)
            if largest_error(model, golden) < TOLERANCE:
                unseen.append(parameter)
            x.copy_(intact)
    assert not unseen
    assert largest_error(model, golden) < TOLERANCE


@pytest.mark.parametrize("damage", ["rows shifted", "filters swapped", "zeros"])
def test_parity_sees_a_damaged_checkpoint(shared_dir: Path, tmp_path: Path, damage: str) -> None:
    folder = shared_dir / "parity" / "tiny-256"
    tensors = load_file(folder / "checkpoint.safetensors")
    mixer = "bert.encoder.layer.1.attention."
    if damage == "rows shifted":
        name = mixer + "in_linear.weight"  # x1, x2, v in another order
        tensors[name] = tensors[name].roll(64, dims=0)
    elif damage == "filters swapped":
        for i in (0, 2, 4):
            forward, reverse = (f"{mixer}filter_fn.implicit_filter{d}.{i}.weight" for d in ("", "_rev"))
            tensors[forward], tensors[reverse] = tensors[reverse], tensors[forward]
    else:
        tensors[mixer + "filter_fn2.bias"] = torch.zeros_like(tensors[mixer + "filter_fn2.bias"])
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    model = load_reference(tmp_path)
    assert largest_error(model, load_file(folder / "golden.safetensors")) > 10 * TOLERANCE
