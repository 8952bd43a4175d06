"""Checkpoints of the reference implementation (HazyResearch/m2): load_reference, read_reference.

Tests: tests/model/test_checkpoints.py, tests/model/test_parity.py.

Everything the configuration needs is in the names and shapes of the tensors.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2bert.errors import M2BertError
from m2bert.model.configuration import M2BertConfig
from m2bert.model.filters import decay_rates
from m2bert.model.modeling import M2BertForMaskedLM, M2BertModel
from m2bert.model.tensors import few, read_tensors

NamePair = tuple[str, str, bool]

WHO = "load_reference"
FILES = ("model.safetensors", "checkpoint.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
LAYER = "bert.encoder.layer.{}."
MIXER = LAYER + "attention."
WORDS = "bert.embeddings.word_embeddings.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
TYPES = "bert.embeddings.token_type_embeddings.weight"
HEAD = "cls.predictions."
POOLER = "bert.pooler."
DUPLICATE_SINE = re.compile(r"\.implicit_filter(_rev)?\.[135]\.freq$")
DERIVED = re.compile(r"\.position_ids$|\.pos_emb\.t$|\.modulation\.deltas$|\.flashfft\.")


def load_reference(path: str | os.PathLike[str], **overrides: Any) -> M2BertModel | M2BertForMaskedLM:
    """The model of :func:`read_reference`."""
    return read_reference(path, **overrides)[0]


def read_reference(path: str | os.PathLike[str], **overrides: Any) -> tuple[M2BertModel | M2BertForMaskedLM, list[str]]:
    """The model that a checkpoint of the reference implementation holds, in float32 and evaluation mode.

    `path` is a .safetensors, .bin, .pt or .pth file, or a folder with one. A checkpoint with a masked-LM head
    gives M2BertForMaskedLM, any other M2BertModel, pooling "cls_dense" where it has a pooler and "mean"
    otherwise. `overrides` are fields of M2BertConfig that change no shape: `kernels`, `pooling`,
    `pad_to_max_length` (which the released retrieval models were trained with), ... Raises M2BertError,
    naming keys, where the file is damaged, a key is missing, unknown or of the wrong shape, or a pickle holds
    more than tensors. Beside the model the names in the file, without `module.` and `model.`, that it has no tensor of.
    """
    source = checkpoint_file(Path(path))
    tensors = {_strip_prefixes(name): x for name, x in read_tensors(WHO, source).items()}
    names = sorted(tensors)
    derived = {name: x for name, x in tensors.items() if DERIVED.search(name)}
    tensors = {name: x for name, x in tensors.items() if name not in derived}
    config = _derive_config(source, tensors, overrides)
    _check_derived(source, config, derived)
    with torch.device("meta"):
        model = M2BertForMaskedLM(config) if _has_head(tensors) else M2BertModel(config)
    state = _translate(source, model, tensors)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    used = {theirs for _, theirs, _ in _name_pairs(config, with_head=_has_head(tensors))}
    return model.eval(), [name for name in names if name not in used]


def checkpoint_file(path: Path) -> Path:
    """The file itself, or the one in a folder. Raises M2BertError where there is none, or several of other names."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise M2BertError(f"{WHO}: {path} does not exist; give a checkpoint file or a folder with one")
    for name in FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if len(found) != 1:
        what = few(p.name for p in found) or "none"
        raise M2BertError(f"{WHO}: {path} must hold one checkpoint file, got {what}; give the file itself")
    return found[0]


def _has_head(tensors: dict[str, Tensor]) -> bool:
    return any(name.startswith(HEAD) for name in tensors)


def _strip_prefixes(name: str) -> str:
    while name.startswith(("module.", "model.")):
        name = name.split(".", 1)[1]
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def _shape(source: Path, tensors: dict[str, Tensor], name: str, *ndims: int) -> tuple[int, ...]:
    if name not in tensors:
        raise M2BertError(f"{WHO}: {source} has no {name}; it is not a whole M2-BERT checkpoint")
    shape = tuple(tensors[name].shape)
    if len(shape) not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise M2BertError(f"{WHO}: {name} in {source} must have {wanted} dimensions, got shape {shape}")
    return shape


def _derive_config(source: Path, tensors: dict[str, Tensor], overrides: dict[str, Any]) -> M2BertConfig:
    """The configuration that the names and shapes of `tensors` imply, and `overrides` upon it."""
    unknown = sorted(overrides.keys() - {field.name for field in dataclass_fields(M2BertConfig)})
    if unknown:
        raise M2BertError(f"{WHO}: {few(unknown)} is no field of M2BertConfig; remove it")
    for name in ("bilinear_features", "projection_dim", "term_weights"):
        if overrides.get(name):
            raise M2BertError(
                f"{WHO}: {name} must be left out, the reference has none, got {overrides[name]!r}; save the model as "
                f"it is and start them with finetune --set {name}=..."
            )
    if overrides.get("pooling") == "weighted":
        raise M2BertError(
            f"{WHO}: pooling must be one that the reference has, got 'weighted'; save the model as it is and "
            "start the weights with finetune --set pooling=weighted"
        )
    if any(name.startswith(("m2bert.", "bert.encoder.blocks.")) for name in tensors):
        raise M2BertError(f"{WHO}: {source} has this library's names; open its folder with load_model")
    layers = {int(m[1]) for name in tensors if (m := re.match(r"bert\.encoder\.layer\.(\d+)\.", name))}
    if layers != set(range(len(layers))) or not layers:
        raise M2BertError(f"{WHO}: {source} must hold layers 0, 1, ... without gaps, got {sorted(layers)}")
    mixer = MIXER.format(0)
    has_pooler = POOLER + "dense.weight" in tensors and not _has_head(tensors)
    vocab_size, hidden_size = _shape(source, tensors, WORDS, 2)
    order, emb_dim = _shape(source, tensors, mixer + "filter_fn.implicit_filter.0.weight", 2)
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(layers),
        "max_position_embeddings": _shape(source, tensors, POSITIONS, 2)[0],
        "type_vocab_size": _shape(source, tensors, TYPES, 2)[0],
        "bidirectional": any(name.startswith(mixer + "filter_fn.implicit_filter_rev.") for name in tensors),
        "residual_long_conv": any(name.startswith(mixer + "filter_fn2.") for name in tensors),
        "short_conv_width": _shape(source, tensors, mixer + "short_filter.weight", 3)[2],
        "filter_order": order,
        "filter_emb_dim": emb_dim,
        "mixer_layer_norm": mixer + "layernorm.weight" in tensors,
        "pooling": "cls_dense" if has_pooler else "mean",
        **_derive_mlp(source, tensors),
    }
    return M2BertConfig(**{**values, **overrides})


def _derive_mlp(source: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Dense weights are (out, in), block-diagonal ones (nblocks, out, in); a gate doubles the first out."""
    mlp = LAYER.format(0) + "mlp."
    w_in = _shape(source, tensors, mlp + "gated_layers.weight", 2, 3)
    w_out = _shape(source, tensors, mlp + "wo.weight", 2, 3)
    inner, intermediate = math.prod(w_in[:-1]), w_out[-1] * math.prod(w_out[:-2])
    return {
        "intermediate_size": intermediate,
        "use_glu": inner == 2 * intermediate,
        "mlp_nblocks": w_in[0] if len(w_in) == 3 else 1,
    }


def _check_derived(source: Path, config: M2BertConfig, derived: dict[str, Tensor]) -> None:
    """Buffers are computed anew here: refuse a checkpoint made with another window or another clock."""
    expected = {
        ".pos_emb.t": torch.linspace(0, 1, config.max_position_embeddings),
        ".modulation.deltas": decay_rates(config.hidden_size),
    }
    for name, x in derived.items():
        values = next((v for suffix, v in expected.items() if name.endswith(suffix)), None)
        if values is None:
            continue
        stored = x.float().flatten()
        # 1 %: the buffers may have been stored in bfloat16.
        if stored.shape != values.shape or not torch.allclose(stored, values, rtol=1e-2, atol=1e-2):
            raise M2BertError(
                f"{WHO}: {name} in {source} must be what {config.max_position_embeddings} positions and "
                f"{config.hidden_size} channels give, but differs (shape {tuple(x.shape)}); "
                "its filters use a window that this library does not know"
            )


def _translate(source: Path, model: M2BertModel | M2BertForMaskedLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict from tensors under the reference's names, each used exactly once."""
    expected = model.state_dict()
    prefix = "m2bert." if isinstance(model, M2BertForMaskedLM) else ""
    left, state, missing = dict(tensors), {}, []
    for ours, theirs, ndim in _name_pairs(model.config, with_head=bool(prefix)):
        name = ours if ours.startswith(("head.", "decoder.")) else prefix + ours
        if theirs not in left:
            missing.append(theirs)
            continue
        state[name] = _fit(source, theirs, left.pop(theirs), expected[name].shape, ndim)
    _drop_unneeded(source, left, tensors)
    if missing or left:
        counts = (("missing", missing), ("unknown", sorted(left)))
        parts = "; ".join(f"{len(names)} {what}: {few(names)}" for what, names in counts if names)
        raise M2BertError(f"{WHO}: {source} does not hold an M2-BERT state dict; {parts}")
    if prefix:
        state["decoder.weight"] = state[prefix + "embeddings.word_embeddings.weight"]
    return state


def _fit(source: Path, name: str, x: Tensor, shape: torch.Size, reshape: bool) -> Tensor:
    """`x` in float32 and in our shape, which may differ by dimensions of extent 1 where `reshape` is set."""
    same = x.shape == shape
    if reshape:
        same = [n for n in x.shape if n != 1] == [n for n in shape if n != 1]
    if not same or not x.is_floating_point():
        raise M2BertError(
            f"{WHO}: {name} in {source} must be floating point with shape {tuple(shape)}, "
            f"got {x.dtype} {tuple(x.shape)}"
        )
    return x.to(torch.float32, copy=True).reshape(shape).contiguous()


def _drop_unneeded(source: Path, left: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Remove from `left` an unused pooler and further names of shared tensors, if they are shared indeed."""
    for name in list(left):
        if DUPLICATE_SINE.search(name):
            original = DUPLICATE_SINE.sub(".implicit_filter.1.freq", name)
        elif name == HEAD + "decoder.weight":
            original = WORDS
        elif name == HEAD + "bias":
            original = HEAD + "decoder.bias"
        elif name.startswith(POOLER):
            original = name
        else:
            continue
        if original in tensors and not torch.equal(left[name], tensors[original]):
            raise M2BertError(f"{WHO}: {name} in {source} must equal {original}, to which it is tied, but differs")
        del left[name]


def _name_pairs(config: M2BertConfig, *, with_head: bool) -> Iterator[NamePair]:
    """(our name, the reference's name, shapes may differ by extents of 1) of every tensor of the model."""

    def both(ours: str, theirs: str) -> Iterator[NamePair]:
        yield f"{ours}.weight", f"{theirs}.weight", False
        yield f"{ours}.bias", f"{theirs}.bias", False

    for name in (WORDS, POSITIONS, TYPES):
        yield name.removeprefix("bert."), name, False
    yield from both("embeddings.norm", "bert.embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        block, layer = f"encoder.blocks.{i}.", LAYER.format(i)
        ours, theirs = block + "sequence_mixer.", MIXER.format(i)
        yield from both(ours + "in_proj", theirs + "in_linear")
        yield from both(ours + "out_proj", theirs + "out_linear")
        yield ours + "short_conv.weight", theirs + "short_filter.weight", True
        yield ours + "short_conv.bias", theirs + "short_filter.bias", False
        if config.mixer_layer_norm:
            yield from both(ours + "norm", theirs + "layernorm")
        yield from _filter_pairs(config, ours + "long_conv.", theirs + "filter_fn.")
        if config.residual_long_conv:
            yield from _filter_pairs(config, ours + "residual_long_conv.", theirs + "filter_fn2.")
        yield block + "mlp.w_in", layer + "mlp.gated_layers.weight", True
        yield block + "mlp.w_out", layer + "mlp.wo.weight", True
        yield block + "mlp.bias", layer + "mlp.wo.bias", False
        yield from both(block + "norm", layer + "mlp.layernorm")
    if config.pooling == "cls_dense" and not with_head:
        yield from both("pooler.dense", "bert.pooler.dense")
    if with_head:
        yield from both("head.dense", HEAD + "transform.dense")
        yield from both("head.norm", HEAD + "transform.LayerNorm")
        yield "decoder.bias", HEAD + "decoder.bias", False


def _filter_pairs(config: M2BertConfig, ours: str, theirs: str) -> Iterator[NamePair]:
    yield ours + "skip", theirs + "bias", False
    yield ours + "features", theirs + "pos_emb.z", True
    yield ours + "frequency", theirs + "implicit_filter.1.freq", True
    directions = ("", "_rev") if config.bidirectional else ("",)
    for direction in directions:
        mine, other = f"{ours}filter{direction}.", f"{theirs}implicit_filter{direction}."
        for i in range(3):
            yield f"{mine}layers.{i}.weight", f"{other}{2 * i}.weight", False
            yield f"{mine}layers.{i}.bias", f"{other}{2 * i}.bias", False
        yield f"{mine}out.weight", f"{other}6.weight", False
