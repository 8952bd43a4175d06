"""What instructions on floating-point numbers compute, nearly: rounding modes and denormals are left aside.

Branches that depend on data, such as the slow paths of divisions, go the way of ordinary numbers; integer divisions,
which start from a reciprocal, correct it and come out exact. Tests: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sass.integers import COMPARISONS, combined
from sass.listing import Instruction
from sass.registers import Registers, results


def arithmetic(r: Registers, i: Instruction) -> None:
    target, *sources = i.operands
    values = [r.floats(x) for x in sources]
    if i.op == "FADD":
        out = values[0] + values[1]
    elif i.op == "FMUL":
        out = values[0] * values[1]
    else:
        out = values[0] * values[1] + values[2]
    r.put_floats(target, out)


def double_arithmetic(r: Registers, i: Instruction) -> None:
    target, *sources = i.operands
    values = [r.doubles(x) for x in sources]
    out = values[0] + values[1] if i.op == "DADD" else values[0] * values[1]
    r.put_pair(target, (out + values[2] if i.op == "DFMA" else out).view(np.uint64))


def widened_half(r: Registers, i: Instruction) -> None:
    """HADD2.F32 of -RZ and a half: its value as float32."""
    target, a, b = i.operands
    r.put_floats(target, r.floats(a) + r.floats(b))


def constant_halves(r: Registers, i: Instruction) -> None:
    """HFMA2.MMA of zeros and a pair of constants, by which compilers move them; other products are data: ones."""
    target, a, b, *pair = i.operands
    moved = a.number == b.number == 255 and all(x.kind == "i" for x in pair)
    r.put(target, np.full(r.threads, pair[0].number if moved else 0x3C003C00, dtype=np.uint32))


def larger(r: Registers, i: Instruction) -> None:
    target, _, values, taken = results(i)
    a, b = (r.floats(x) for x in values)
    r.put_floats(target, np.where(r.truth(taken[0]), np.fmin(a, b), np.fmax(a, b)))


def select(r: Registers, i: Instruction) -> None:
    target, a, b, which = i.operands
    r.put_floats(target, np.where(r.truth(which), r.floats(a), r.floats(b)))


def compare(r: Registers, i: Instruction) -> None:
    read = r.doubles if i.op == "DSETP" else r.floats
    a, b = (np.asarray(read(x)) for x in i.operands[2:4])
    name, unordered = i.modifiers[0], np.isnan(a) | np.isnan(b)
    if name in ("NUM", "NAN"):
        found = unordered if name == "NAN" else ~unordered
    else:
        plain = name.removesuffix("U")
        found = COMPARISONS[plain](a, b) & ~unordered | (unordered if plain != name else np.False_)  # type: ignore[arg-type]
    combined(r, i, found)


def check_of_division(r: Registers, i: Instruction) -> None:
    """FCHK: whether a division needs its slow path; never, of ordinary numbers."""
    r.put_truth(i.operands[0], np.zeros(r.threads, dtype=np.bool_))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "SIN": lambda x: np.sin(2 * np.pi * x),
    "COS": lambda x: np.cos(2 * np.pi * x),
    "TANH": np.tanh,
}


def function(r: Registers, i: Instruction) -> None:
    target, x = i.operands
    name = i.modifiers[0]
    if name == "RCP64H":  # of the upper half of a double, to an upper half
        value = (r.bits(x).astype(np.uint64) << np.uint64(32)).view(np.float64)
        r.put(target, ((1 / value).view(np.uint64) >> np.uint64(32)).astype(np.uint32))
        return
    r.put_floats(target, FUNCTIONS[name](r.floats(x)))


def from_integer(r: Registers, i: Instruction) -> None:
    """I2F and I2FP; RP rounds up. `S64` and `U64` are of pairs."""
    target, x = i.operands
    if {"U64", "S64"} & set(i.modifiers):
        wide = r.pair(x)
        value = (wide.view(np.int64) if "S64" in i.modifiers else wide).astype(np.float64)
    else:
        bits = r.bits(x)
        value = (bits if "U32" in i.modifiers else bits.view(np.int32)).astype(np.float64)
    if "F64" in i.modifiers:
        r.put_pair(target, value.view(np.uint64))
        return
    out = value.astype(np.float32)
    if "RP" in i.modifiers:
        out = np.where(out < value, np.nextafter(out, np.float32(np.inf)), out).astype(np.float32)
    r.put_floats(target, out)


def to_integer(r: Registers, i: Instruction) -> None:
    target, x = i.operands
    value = np.nan_to_num(r.floats(x).astype(np.float64), nan=0.0)
    whole = np.trunc(value) if "TRUNC" in i.modifiers else np.rint(value)
    if "U64" in i.modifiers:
        r.put_pair(target, np.clip(whole, 0, 2.0**64 - 2048).astype(np.uint64))
    elif "U32" in i.modifiers:
        r.put(target, np.clip(whole, 0, 2.0**32 - 1).astype(np.uint32))
    else:
        r.put(target, np.clip(whole, -(2.0**31), 2.0**31 - 1).astype(np.int32).view(np.uint32))


def rounded(r: Registers, i: Instruction) -> None:
    value = r.floats(i.operands[1])
    r.put_floats(i.operands[0], np.trunc(value) if "TRUNC" in i.modifiers else np.rint(value))


def converted(r: Registers, i: Instruction) -> None:
    """F2F between float32 and float64."""
    target, x = i.operands
    if i.modifiers[0] == "F64":
        r.put_pair(target, r.floats(x).astype(np.float64).view(np.uint64))
    else:
        r.put_floats(target, r.doubles(x).astype(np.float32))


def packed(r: Registers, i: Instruction) -> None:
    """F2FP: two float32 to halves of a register, the first in the upper."""
    target, high, low = i.operands
    halves = []
    for x in (high, low):
        value = r.floats(x)
        if "BF16" in i.modifiers:
            halves.append(value.view(np.uint32) >> np.uint32(16))
        else:
            halves.append(value.astype(np.float16).view(np.uint16).astype(np.uint32))
    r.put(target, halves[0] << np.uint32(16) | halves[1])


def matrix_product(r: Registers, i: Instruction) -> None:
    """HMMA: data, whose values decide nothing: ones."""
    for number in range(4):
        r.put(i.operands[0], np.full(r.threads, 0x3F800000, dtype=np.uint32), number)


TABLE: dict[str, Callable[[Registers, Instruction], None]] = {
    "FADD": arithmetic, "FMUL": arithmetic, "FFMA": arithmetic, "DADD": double_arithmetic, "DMUL": double_arithmetic,
    "DFMA": double_arithmetic, "HADD2": widened_half, "HFMA2": constant_halves, "FMNMX": larger, "FSEL": select,
    "FSETP": compare, "DSETP": compare, "FCHK": check_of_division, "MUFU": function, "I2F": from_integer,
    "I2FP": from_integer, "F2I": to_integer, "FRND": rounded, "F2F": converted, "F2FP": packed,
    "HMMA": matrix_product,
}  # fmt: skip
