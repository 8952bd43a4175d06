"""What instructions on integers and predicates compute, exactly: addresses and branches follow from them.

Every function takes the registers and the instruction. Semantics as ptxas uses them, compared with programs whose
results are known (tests/cuda/test_gpu_model.py); PTX ISA for those that have a counterpart there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sass.listing import Instruction, Operand
from sass.registers import MASK, Bits, Registers, Truth, Wide, results

ONE, WORD = np.uint64(1), np.uint64(32)


def _signed(x: Bits) -> Wide:
    return x.view(np.int32).astype(np.int64).view(np.uint64)


def _carry(registers: Registers, targets: list[Operand], total: Wide) -> None:
    for number, target in enumerate(targets):
        registers.put_truth(target, total >> WORD > np.uint64(number))


def add(r: Registers, i: Instruction) -> None:
    target, carries, values, taken = results(i)
    total = sum((r.summand(x) for x in values), np.zeros(r.threads, dtype=np.uint64))
    if "X" in i.modifiers:
        for x in taken:
            total = total + r.truth(x).astype(np.uint64)
    _carry(r, carries, total)
    r.put(target, (total & MASK).astype(np.uint32))


def multiply_add(r: Registers, i: Instruction) -> None:
    target, carries, (a, b, c), taken = results(i)
    if not {"WIDE", "HI"} & set(i.modifiers):
        out = r.bits(a) * r.bits(b) + r.bits(c)
        if "X" in i.modifiers:
            out = out + r.truth(taken[0]).astype(np.uint32)
        r.put(target, out)
        return
    if "U32" in i.modifiers:
        product = r.bits(a).astype(np.uint64) * r.bits(b).astype(np.uint64)
    else:
        product = _signed(r.bits(a)) * _signed(r.bits(b))
    addend = r.pair(c)
    total = product + addend
    for x in carries:
        r.put_truth(x, total < addend)
    if "HI" in i.modifiers:
        r.put(target, (total >> WORD).astype(np.uint32))
    else:
        r.put_pair(target, total)


def shifted_add(r: Registers, i: Instruction) -> None:
    """LEA: b + (a << s); LEA.HI: b + the upper half of (c : a) << s, c the sign of a with SX32; X adds a carry."""
    target, carries, values, taken = results(i)
    shift = np.uint64(values[-1].number)
    a, b = r.bits(values[0]), r.summand(values[1])
    if "HI" not in i.modifiers:
        part = (a.astype(np.uint64) << shift) & MASK
    else:
        whole = (
            _signed(a) if "SX32" in i.modifiers else a.astype(np.uint64) | r.bits(values[2]).astype(np.uint64) << WORD
        )
        part = (whole << shift) >> WORD
    total = part + b
    if "X" in i.modifiers:
        total = total + r.truth(taken[0]).astype(np.uint64)
    _carry(r, carries, total)
    r.put(target, (total & MASK).astype(np.uint32))


def shift(r: Registers, i: Instruction) -> None:
    """SHF: of the pair (c : a) or of one of the two; by 32 or more nothing is left but signs."""
    target, _, (a, by, c), _ = results(i)
    low, high, count = r.bits(a), r.bits(c), r.bits(by).astype(np.uint64)
    left, signed = "L" in i.modifiers, "S32" in i.modifiers or "S64" in i.modifiers
    if "U64" in i.modifiers or "S64" in i.modifiers:
        whole, count = low.astype(np.uint64) | high.astype(np.uint64) << WORD, np.minimum(count, np.uint64(63))
        if left:
            out = whole << count
        else:
            out = (whole.view(np.int64) >> count.view(np.int64)).view(np.uint64) if signed else whole >> count
        r.put(target, ((out >> WORD) if "HI" in i.modifiers else out & MASK).astype(np.uint32))
        return
    one = low if left else high if "HI" in i.modifiers else low
    if signed and not left:
        r.put(target, one.view(np.int32) >> np.minimum(count, np.uint64(31)).astype(np.int32))
        return
    wide, count = one.astype(np.uint64), np.minimum(count, WORD)
    r.put(target, ((wide << count if left else wide >> count) & MASK).astype(np.uint32))


def _looked_up(a: Bits, b: Bits, c: Bits, table: int) -> Bits:
    out = np.zeros_like(a)
    for index in range(8):
        if table >> index & 1:
            out |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return out


def logic(r: Registers, i: Instruction) -> None:
    operands = list(i.operands)
    predicate = operands.pop(0) if operands[0].kind in "pq" else None
    target, a, b, c, table = operands[:5]
    out = _looked_up(r.bits(a), r.bits(b), r.bits(c), table.number)
    if predicate is not None:
        r.put_truth(predicate, out != 0)
    r.put(target, out)


def predicate_logic(r: Registers, i: Instruction) -> None:
    first, second, a, b, c, table, other = i.operands
    values = [np.where(r.truth(x), np.uint32(1), np.uint32(0)) for x in (a, b, c)]
    out = [_looked_up(*values, x.number) & np.uint32(1) != 0 for x in (table, other)]
    r.put_truth(first, out[0])
    r.put_truth(second, out[1])


COMPARISONS: dict[str, Callable[[Bits, Bits], Truth]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


def combined(r: Registers, i: Instruction, found: Truth) -> None:
    """Write `found` AND, OR or XOR the predicate read, and the same of its opposite."""
    first, second = i.operands[:2]
    other = r.truth(i.operands[4])
    join = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}
    name = next(m for m in i.modifiers if m in join)
    values = join[name](found, other), join[name](~found, other)
    r.put_truth(first, values[0])
    r.put_truth(second, values[1])


def compare(r: Registers, i: Instruction) -> None:
    a, b = (r.bits(x) for x in i.operands[2:4])
    if "U32" not in i.modifiers:
        a, b = a.view(np.int32), b.view(np.int32)  # type: ignore[assignment]
    name = i.modifiers[0]
    found = COMPARISONS[name](a, b)
    if "EX" in i.modifiers:  # the upper halves; the lower ones decide where they are equal
        lower, equal = r.truth(i.operands[5]), a == b
        strict = {"GE": "GT", "LE": "LT"}.get(name, name)
        found = COMPARISONS[strict](a, b) | equal & lower if name not in ("EQ", "NE") else found
        if name == "EQ":
            found = equal & lower
        elif name == "NE":
            found = ~equal | lower
    combined(r, i, found)


def smaller_or_larger(r: Registers, i: Instruction) -> None:
    """VIMNMX a b p, and VIADDMNMX: of a + b and c; the smaller where p."""
    target, _, values, taken = results(i)
    first = r.bits(values[0]) if i.op == "VIMNMX" else r.bits(values[0]) + r.bits(values[1])
    a, b = first.view(np.int32), r.bits(values[-1]).view(np.int32)
    r.put(target, np.where(r.truth(taken[0]), np.minimum(a, b), np.maximum(a, b)).view(np.uint32))


def absolute(r: Registers, i: Instruction) -> None:
    r.put(i.operands[0], np.abs(r.bits(i.operands[1]).view(np.int32)).view(np.uint32))


def select(r: Registers, i: Instruction) -> None:
    target, a, b, which = i.operands
    r.put(target, np.where(r.truth(which), r.bits(a), r.bits(b)))


def move(r: Registers, i: Instruction) -> None:
    r.put(i.operands[0], r.bits(i.operands[1]))


def clear(r: Registers, i: Instruction) -> None:
    r.put(i.operands[0], r.zeros)
    if "32" not in i.modifiers:
        r.put(i.operands[0], r.zeros, 1)


def bytes_permuted(r: Registers, i: Instruction) -> None:
    target, a, selector, b = i.operands
    source = r.bits(a).astype(np.uint64) | r.bits(b).astype(np.uint64) << WORD
    choice, out = r.bits(selector), r.zeros
    for byte in range(4):
        index = choice >> np.uint32(4 * byte) & np.uint32(15)
        value = (source >> (np.uint64(8) * (index & np.uint32(7)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
        value = np.where(index & np.uint32(8), np.where(value & np.uint32(128), np.uint32(255), np.uint32(0)), value)
        out = out | value << np.uint32(8 * byte)
    r.put(target, out)


def predicates_to_bits(r: Registers, i: Instruction) -> None:
    out = sum((r.truths["p"][n].astype(np.uint32) << np.uint32(n) for n in range(7)), r.zeros)
    r.put(i.operands[0], out & r.bits(i.operands[3]))


TABLE: dict[str, Callable[[Registers, Instruction], None]] = {
    "IADD3": add, "VIADD": add, "IMAD": multiply_add, "LEA": shifted_add, "SHF": shift, "LOP3": logic,
    "PLOP3": predicate_logic, "ISETP": compare, "VIMNMX": smaller_or_larger, "VIADDMNMX": smaller_or_larger,
    "IABS": absolute, "SEL": select, "MOV": move, "R2UR": move, "CS2R": clear, "PRMT": bytes_permuted,
    "P2R": predicates_to_bits,
}  # fmt: skip
