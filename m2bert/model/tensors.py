"""Reading tensors from files: read_tensors, read_shards. Never runs code from a file.

Test: tests/model/test_checkpoints.py.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m2bert.errors import M2BertError

PICKLES = (".bin", ".pt", ".pth")


def read_tensors(who: str, path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file, or of a .bin/.pt/.pth file that holds nothing but tensors.

    The training checkpoint of the reference (`state` / `model`) is looked into. Raises M2BertError, beginning
    with `who`, on a damaged file and on a pickle that needs more than tensors and plain containers.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise M2BertError(
                f"{who}: {path} is not a whole safetensors file ({error}); copy or download it again"
            ) from error
    if path.suffix not in PICKLES:
        raise M2BertError(f"{who}: {path} must end in .safetensors, {', '.join(PICKLES)}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise M2BertError(
            f"{who}: {path} is damaged, or a pickle that holds more than tensors, and opening it could run code; "
            "re-save its tensors as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise M2BertError(
            f"{who}: {path} is not a whole torch file ({_first_line(error)}); copy or download it again"
        ) from error
    return _only_tensors(who, path, loaded)


def read_shards(who: str, path: Path) -> dict[str, Tensor]:
    """Named tensors of all the files that transformers' `path` (*.index.json) names, which lie beside it.

    Raises M2BertError as read_tensors does, and where the index is damaged, names other folders or a missing file.
    """
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise M2BertError(
            f"{who}: {path} must say in weight_map which file holds each tensor ({error!r}); copy or download it again"
        ) from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(str(name)).name != name or not (path.parent / name).is_file():
            raise M2BertError(f"{who}: {path} names {name!r}, which must lie beside it; copy or download it again")
        tensors |= read_tensors(who, path.parent / name)
    return tensors


def few(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


def _only_tensors(who: str, path: Path, loaded: Any) -> dict[str, Tensor]:
    for key in ("state", "model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(x, Tensor) for x in loaded.values()):
        got = type(loaded).__name__
        raise M2BertError(f"{who}: {path} must hold tensors by name and nothing else, got a {got}")
    return {str(name): x for name, x in loaded.items()}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
