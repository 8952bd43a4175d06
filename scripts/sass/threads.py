"""Runs a kernel's machine code for all threads of one block, and writes down what each warp did.

Threads at the lowest address go first, so that those that took another way join them again. What memory holds
is not modelled: every load finds ones. That is enough where the way through a kernel follows from sizes, strides and
indices alone, as in all of ours; addresses come out exactly. Test: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sass import floats, integers
from sass.listing import Instruction, Kernel
from sass.registers import Registers, Truth, Wide

WARP = 32
SHARED_WINDOW = 0x400  # where the dynamic shared memory of a block starts, of sm_90 and later
PARAMETERS = 0x210  # where a kernel's arguments lie among the constants, of sm_90 and later
ONES = {8: 1, 16: 0x3F80, 32: 0x3F803F80, 64: 0x3F803F80, 128: 0x3F803F80}  # of bfloat16, nearly one of float32
IGNORED = {"NOP", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "BAR", "MEMBAR"}
GLOBAL = {"LDG", "STG", "LD", "ST", "LDGSTS"}
SHARED = {"LDS", "STS", "LDSM"}


@dataclass(frozen=True)
class Access:
    """What an instruction of one warp asked of memory: wavefronts of shared memory or 32-byte sectors of global memory,
    and the fewest that could hold as many different bytes. Of sectors: the 128-byte lines they lie in, and those that
    come from DRAM, from the L2 cache because other blocks read them too, and from a cache because this block has had
    them before. The rest are of tables, in the L1 cache."""

    parts: int
    ideal: int
    lines: int = 0
    from_dram: int = 0
    from_l2: int = 0
    again: int = 0


@dataclass(frozen=True)
class Step:
    """One instruction of one warp."""

    index: int  # of the instruction
    access: Access | None = None
    taken: bool = False  # it branched


@dataclass
class Launch:
    """How a kernel is launched; ranges of addresses that one block alone reads (`streamed`), and that blocks on other
    multiprocessors read at the same time (`shared`). What else is read, such as tables, all blocks read."""

    grid: int
    threads: int
    shared_bytes: int
    arguments: bytes
    block: int = 0
    streamed: Sequence[tuple[int, int]] = ()
    shared: Sequence[tuple[int, int]] = ()


@dataclass
class Run:
    """What the warps did, and every byte range of global memory that was written: (address, bytes), a thread each."""

    warps: list[list[Step]]
    written: list[tuple[Wide, int]] = field(default_factory=list)
    read: list[tuple[Wide, int]] = field(default_factory=list)


def constants_of(launch: Launch) -> bytes:
    """The constants of a launch as the machine code reads them."""
    head = bytearray(PARAMETERS)
    for offset, value in ((0x0, launch.threads), (0x4, 1), (0x8, 1), (0xC, launch.grid), (0x10, 1), (0x14, 1)):
        head[offset : offset + 4] = value.to_bytes(4, "little")
    return bytes(head) + launch.arguments + bytes(64)


def distinct(owners: NDArray[np.int64], numbers: Wide) -> tuple[NDArray[np.int64], Wide]:
    """Each number once for each owner that has it: owners and numbers, by owner."""
    pairs = np.unique(owners.astype(np.uint64) << np.uint64(48) | numbers)
    return (pairs >> np.uint64(48)).astype(np.int64), pairs & np.uint64((1 << 48) - 1)


def wavefronts(addresses: Wide, mask: Truth, size: int) -> list[Access | None]:
    """Of each warp: passes that an access to shared memory takes, a 4-byte word of a bank each, and the fewest.

    Accesses of 8 and 16 bytes are served half and quarter warp by half and quarter warp.
    """
    words = max(1, size // 4)
    active = np.flatnonzero(mask)
    parts = active // (WARP // words)  # of a warp that are served together
    each = np.arange(words, dtype=np.uint64)
    touched = (addresses[active] // np.uint64(4))[:, None] + each
    owners, numbers = distinct(np.repeat(parts, words), touched.ravel())
    count = len(mask) // WARP * words
    banks = np.bincount(owners * 32 + (numbers % np.uint64(32)).astype(np.int64), minlength=32 * count)
    passes = banks.reshape(count, 32).max(axis=1).reshape(-1, words)
    return [Access(int(p.sum()), int((p > 0).sum())) if p.any() else None for p in passes]


class Block:
    """The threads of one block."""

    def __init__(self, kernel: Kernel, launch: Launch) -> None:
        self.kernel, self.launch = kernel, launch
        self.registers = Registers(launch.threads, constants_of(launch))
        self.warps: list[list[Step]] = [[] for _ in range(-(-launch.threads // WARP))]
        self.plain = [Step(index) for index in range(len(kernel.code))]
        self.seen: set[int] = set()
        self.run = Run(self.warps)
        # Threads at each instruction; those that have ended are nowhere.
        self.places: dict[int, Truth] = {0: np.ones(launch.threads, dtype=np.bool_)}
        self.index_of = {i.at: n for n, i in enumerate(kernel.code)}
        self.control: dict[str, Callable[[int, Instruction, Truth, Truth], None]] = {
            "BRA": self._branch, "CALL": self._branch, "RET": self._return, "EXIT": self._exit,
        }  # fmt: skip

    def execute(self, most: int) -> Run:
        """Run to the end; RuntimeError after `most` instructions."""
        with np.errstate(all="ignore"):
            for _ in range(most):
                if not self.places:
                    return self.run
                index = min(self.places)
                self._step(index, self.places.pop(index))
        raise RuntimeError(f"sass: {self.kernel.name} must end within {most} instructions, got no end; run less of it")

    def _step(self, index: int, mask: Truth) -> None:
        instruction, registers = self.kernel.code[index], self.registers
        active = mask if instruction.guard is None else mask & registers.truth(instruction.guard)
        if instruction.op in self.control:
            self.control[instruction.op](index, instruction, mask, active)
            return
        registers.mask = active
        accesses = self._perform(instruction, active)
        if accesses is None:
            self._note(mask, self.plain[index])
        else:
            for warp, here, access in zip(self.warps, mask.reshape(-1, WARP).any(axis=1), accesses, strict=True):
                if here:
                    warp.append(Step(index, access))
        self._move(index + 1, mask)

    def _note(self, mask: Truth, step: Step) -> None:
        """The same step for all warps that have threads in the mask."""
        if mask.all():
            for warp in self.warps:
                warp.append(step)
        else:
            for warp, here in zip(self.warps, mask.reshape(-1, WARP).any(axis=1), strict=True):
                if here:
                    warp.append(step)

    def _move(self, index: int, mask: Truth) -> None:
        if mask.any():
            waiting = self.places.get(index)
            self.places[index] = mask if waiting is None else waiting | mask

    def _jump(self, index: int, mask: Truth, jumping: Truth) -> None:
        """A branch, which some warps take and others do not."""
        self._note(jumping, Step(index, taken=True))
        jumped = np.repeat(jumping.reshape(-1, WARP).any(axis=1), WARP)
        self._note(mask & ~jumped, self.plain[index])

    def _branch(self, index: int, i: Instruction, mask: Truth, active: Truth) -> None:
        *conditions, target = i.operands
        if "DIV" in i.modifiers:  # taken by warps whose threads have parted
            active, conditions = active & ~np.repeat(mask.reshape(-1, WARP).all(axis=1), WARP), []
        for condition in conditions:
            active = active & self.registers.truth(condition)
        self._jump(index, mask, active)
        self._move(self.kernel.labels[target.name], active)
        self._move(index + 1, mask & ~active)

    def _return(self, index: int, i: Instruction, mask: Truth, active: Truth) -> None:
        self._jump(index, mask, active)
        places = self.registers.raw(i.operands[0])
        for place in np.unique(places[active]):
            self._move(self.index_of[int(place)], active & (places == place))
        self._move(index + 1, mask & ~active)

    def _exit(self, index: int, i: Instruction, mask: Truth, active: Truth) -> None:
        self._jump(index, mask, active)
        self._move(index + 1, mask & ~active)

    def _perform(self, i: Instruction, active: Truth) -> list[Access | None] | None:
        name = i.op[1:] if i.op[0] == "U" and i.op[1:] in integers.TABLE else i.op
        if name in integers.TABLE:
            integers.TABLE[name](self.registers, i)
        elif i.op in floats.TABLE:
            floats.TABLE[i.op](self.registers, i)
        elif i.op in GLOBAL or i.op in SHARED:
            return self._access(i, active)
        elif i.op in ("LDC", "ULDC"):
            self._load_constant(i)
        elif i.op in ("S2R", "S2UR"):
            self._special(i)
        elif i.op in ("SHFL", "REDUX"):
            self._exchange(i)
        elif i.op == "VOTEU":
            self._vote(i, active)
        elif i.op not in IGNORED:
            raise ValueError(f"sass: instructions must be known, got {i.text!r} of {self.kernel.name}; add it to sass")
        return None

    def _load_constant(self, i: Instruction) -> None:
        target, at = i.operands
        signed, size = "S8" in i.modifiers, i.bits // 8
        offsets = self.registers.addresses(at)
        places, where = np.unique(offsets, return_inverse=True)
        for word in range(max(1, size // 4)):
            values = [self.registers.constant(int(x) + 4 * word, min(size, 4), signed) & 0xFFFFFFFF for x in places]
            self.registers.put(target, np.array(values, dtype=np.uint32)[where], word)

    def _special(self, i: Instruction) -> None:
        threads = np.arange(self.launch.threads, dtype=np.uint32)
        known = {
            "SR_TID.X": threads,
            "SR_LANEID": threads % WARP,
            "SR_CTAID.X": np.full_like(threads, self.launch.block),
        }
        # Blocks have one dimension, and are no clusters.
        self.registers.put(i.operands[0], known.get(i.operands[1].name, np.zeros_like(threads)))

    def _exchange(self, i: Instruction) -> None:
        """SHFL.BFLY gives another lane's value; REDUX the largest of the warp to a uniform register."""
        source = next(x for x in i.operands[1:] if x.kind == "r")
        values = self.registers.bits(source)
        if i.op == "REDUX":
            out = np.repeat(values.reshape(-1, WARP).max(axis=1), WARP)
            self.registers.put(i.operands[0], out)
            return
        target, by = i.operands[1], i.operands[3]
        lanes = np.arange(len(values), dtype=np.int64)
        other = lanes ^ self.registers.bits(by).astype(np.int64) if "BFLY" in i.modifiers else lanes
        self.registers.put(target, values[other])

    def _vote(self, i: Instruction, active: Truth) -> None:
        """Whether a predicate holds for any of a warp's threads that are here, or for all of them."""
        target, source = i.operands[0], i.operands[-1]
        votes, every = self.registers.truth(source), "ALL" in i.modifiers
        votes = (votes | ~active if every else votes & active).reshape(-1, WARP)
        self.registers.put_truth(target, np.repeat(votes.all(axis=1) if every else votes.any(axis=1), WARP))

    def _access(self, i: Instruction, active: Truth) -> list[Access | None] | None:
        size, registers = i.bits // 8, self.registers
        addresses = registers.addresses([x for x in i.operands if x.kind == "m"][-1])
        if i.op.startswith("LD") and i.op != "LDGSTS":  # may write the registers of its address
            for word in range(max(1, size // 4)):
                registers.put(i.operands[0], np.full(registers.threads, ONES[i.bits], dtype=np.uint32), word)
        if i.op == "LDGSTS":  # copies that a predicate leaves out write zeros and read nothing
            left_out = [x for x in i.operands if x.kind == "p"]
            active = active & registers.truth(left_out[0]) if left_out else active
        if not active.any():
            return None
        if i.op in SHARED:
            return wavefronts(addresses, active, size)
        stored = i.op.startswith("ST")
        (self.run.written if stored else self.run.read).append((addresses[active], size))
        return self._sectors(addresses, active, size, stored)

    def _origin(self, address: int, stored: bool) -> int:
        """0: DRAM, 1: L2, 2: a cache, since this block has had it, 3: L1."""
        if stored or any(low <= address < high for low, high in self.launch.streamed):
            origin = 0
        else:
            origin = 1 if any(low <= address < high for low, high in self.launch.shared) else 3
        if origin < 3 and address in self.seen:
            return 2
        self.seen.add(address)
        return origin

    def _sectors(self, addresses: Wide, active: Truth, size: int, stored: bool) -> list[Access | None]:
        lanes = np.flatnonzero(active)
        warps, mine, count = lanes // WARP, addresses[lanes], len(self.warps)
        owners, sectors = distinct(warps, mine // np.uint64(32))
        lines, places = (distinct(warps, mine // np.uint64(unit))[0] for unit in (128, 1))
        totals = [np.bincount(x, minlength=count).tolist() for x in (owners, lines, places)]
        origins = [[0] * count for _ in range(4)]
        for warp, sector in zip(owners.tolist(), sectors.tolist(), strict=True):
            origins[self._origin(32 * sector, stored)][warp] += 1
        return [
            Access(parts, -(-found * size // 32), rows, *counts) if parts else None
            for parts, rows, found, *counts in zip(*totals, *origins[:3], strict=True)
        ]
