"""Registers and predicates of all threads of a block, as arrays over the threads. Test: tests/cuda/test_gpu_model.py.

Uniform registers, one a warp, are kept a thread too: all threads of a warp then hold the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sass.listing import ALWAYS, ZERO, Instruction, Operand

Bits = NDArray[np.uint32]
Wide = NDArray[np.uint64]
Floats = NDArray[np.float32]
Truth = NDArray[np.bool_]
FILES = {"r": 0, "u": 256}
MASK = np.uint64(0xFFFFFFFF)


class Registers:
    """What an instruction reads and writes; `mask` holds the threads that take part in it."""

    def __init__(self, threads: int, constants: bytes) -> None:
        self.threads = threads
        self.rows = np.zeros((512, threads), dtype=np.uint32)
        self.truths = {kind: np.zeros((8, threads), dtype=np.bool_) for kind in "pq"}
        for truths in self.truths.values():
            truths[ALWAYS] = True
        self.constants = constants
        self.mask: Truth = np.ones(threads, dtype=np.bool_)
        self.zeros = np.zeros(threads, dtype=np.uint32)

    def constant(self, offset: int, size: int = 4, signed: bool = False) -> int:
        return int.from_bytes(self.constants[offset : offset + size], "little", signed=signed)

    def raw(self, operand: Operand, number: int = 0) -> Bits:
        """32 bits of an operand, without its sign; `number` 1: the upper half of a pair."""
        if operand.kind in FILES:
            index = ZERO if operand.number == ZERO else operand.number + number
            return self.rows[FILES[operand.kind] + index]
        bits = self.constant(operand.number + 4 * number) if operand.kind == "c" else 0 if number else operand.number
        return np.full(self.threads, bits, dtype=np.uint32)

    def bits(self, operand: Operand) -> Bits:
        """An integer operand."""
        value = self.raw(operand)
        if operand.inverted:
            value = ~value
        return self.zeros - value if operand.negative else value

    def summand(self, operand: Operand) -> Wide:
        """An operand of an addition whose carry counts: -x is ~x + 1, of 33 bits."""
        value = self.raw(operand).astype(np.uint64)
        if operand.inverted or operand.negative:
            value = value ^ MASK
        return value + np.uint64(1) if operand.negative else value

    def pair(self, operand: Operand) -> Wide:
        """64 bits: a pair of registers or of constants; an immediate is widened with zeros."""
        return self.raw(operand).astype(np.uint64) | self.raw(operand, 1).astype(np.uint64) << np.uint64(32)

    def floats(self, operand: Operand) -> Floats:
        """A float32 operand, or float16 where a half is named."""
        raw = self.raw(operand)
        if operand.half:
            part = (raw >> np.uint32(16) if operand.half == "H1" else raw).astype(np.uint16)
            value = part.view(np.float16).astype(np.float32)
        else:
            value = raw.view(np.float32)
        if operand.absolute:
            value = np.abs(value)
        return -value if operand.negative else value

    def doubles(self, operand: Operand) -> NDArray[np.float64]:
        value = self.pair(operand).view(np.float64)
        value = np.abs(value) if operand.absolute else value
        return -value if operand.negative else value

    def truth(self, operand: Operand) -> Truth:
        value = self.truths[operand.kind][operand.number]
        return ~value if operand.negative else value

    def put(self, operand: Operand, value: Any, number: int = 0) -> None:
        """Write 32 bits; `number` counts on from the operand's register."""
        if operand.number == ZERO:
            return
        row = self.rows[FILES[operand.kind] + operand.number + number]
        np.copyto(row, value, where=self.mask, casting="unsafe")

    def put_pair(self, operand: Operand, value: Wide) -> None:
        self.put(operand, (value & MASK).astype(np.uint32))
        self.put(operand, (value >> np.uint64(32)).astype(np.uint32), 1)

    def put_floats(self, operand: Operand, value: Any) -> None:
        self.put(operand, np.asarray(value, dtype=np.float32).view(np.uint32))

    def put_truth(self, operand: Operand, value: Truth) -> None:
        if operand.number != ALWAYS:
            np.copyto(self.truths[operand.kind][operand.number], value, where=self.mask)

    def addresses(self, operand: Operand) -> Wide:
        """Addresses of an access to memory, a thread."""
        at = np.full(self.threads, operand.number & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
        if operand.base != ZERO:
            register = Operand("r", operand.base)
            at = at + (self.pair(register) if operand.wide else self.raw(register).astype(np.uint64))
        if operand.uniform != ZERO:
            register = Operand("u", operand.uniform)
            at = at + (self.pair(register) if operand.wide else self.raw(register).astype(np.uint64))
        return at if operand.wide else at & MASK


def results(instruction: Instruction) -> tuple[Operand, list[Operand], list[Operand], list[Operand]]:
    """Register written, predicates written, values read and predicates read of an arithmetic instruction."""
    first, *rest = instruction.operands
    count = next((n for n, x in enumerate(rest) if x.kind not in "pq"), len(rest))
    sources = rest[count:]
    return first, rest[:count], [x for x in sources if x.kind not in "pq"], [x for x in sources if x.kind in "pq"]
