"""How long warps take on one multiprocessor: their instructions replayed, in the order in which each warp made them.

Four schedulers start at most one instruction a cycle each. A warp may go on when the stall that the compiler wrote is
over, the counters it waits for are free, and the unit is. Memory has a latency and a bandwidth, of shared memory, L2
and DRAM; the last two are this multiprocessor's share. Numbers are those of an H200: published, or measured by others
(Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking", 2024), of which
latencies and the rate of the L2 were chosen with the measured rows in view. Test: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sass.listing import Instruction
from sass.threads import Access, Step

SCHEDULERS = 4
HMMA_CYCLES = 6.4  # of m16n8k16 by mma.sync: 63 % of what the tensor cores do by wgmma
LATENCY = {"LDS": 29, "LDSM": 33, "SHFL": 25, "REDUX": 30, "MUFU": 22, "S2R": 25, "LDC": 35, "F2I": 22, "I2F": 22}
OTHER_LATENCY = 15
L1_LATENCY, L2_LATENCY, DRAM_LATENCY = 38, 300, 700  # the last two under load
L1_BYTES = 256 * 1024  # with the shared memory
DRAM_BYTES_A_CYCLE, L2_BYTES_A_CYCLE = 17.4, 23.0  # of one multiprocessor of 132, all busy: 4.2 and 5.5 TB/s
QUEUE = 40  # cycles of work that the memory units take on ahead
STORES_AHEAD = 3000  # cycles of stores under way before the next has to wait
BARRIER_CYCLES, BRANCH_CYCLES, NEXT_BLOCK_CYCLES = 15, 5, 400
ALU = {"LOP3", "SHF", "LEA", "IADD3", "ISETP", "SEL", "PRMT", "FMNMX", "FSETP", "FSEL", "VIADD", "MOV", "F2FP", "IABS",
       "PLOP3", "VIMNMX", "VIADDMNMX", "P2R", "I2FP", "CS2R", "FCHK"}  # fmt: skip
FMA = {"FFMA", "FMUL", "FADD", "HFMA2", "HMUL2", "HADD2"}
SLOW = {"MUFU", "I2F", "F2I", "F2F", "FRND", "DADD", "DMUL", "DFMA", "DSETP"}
MEMORY = {"LDS", "STS", "LDSM", "LDG", "STG", "LD", "ST", "LDGSTS", "SHFL", "REDUX", "S2R", "S2UR", "LDC"}
# Units of a scheduler, and for how many cycles an instruction takes one. Products and sums of float32 may take either
# half of the FMA unit, integer products one of them alone.
UNITS = {"ALU": 2.0, "FMA": 2.0, "IMAD": 2.0, "HMMA": HMMA_CYCLES, "SLOW": 8.0, "UNIFORM": 2.0}


def unit_of(op: str) -> str:
    if op == "HMMA":
        return "HMMA"
    if op in MEMORY:
        return "MEMORY"
    for name, ops in (("FMA", FMA), ("IMAD", {"IMAD"}), ("SLOW", SLOW), ("ALU", ALU)):
        if op in ops:
            return name
    return "UNIFORM" if op[0] == "U" or op == "R2UR" else "NONE"


@dataclass(frozen=True, slots=True)
class Item:
    """An instruction of a warp with what its replay needs."""

    op: str
    unit: str
    stall: int
    write: int
    read: int
    wait: tuple[int, ...]
    cycles: float = 0.0  # of the memory units
    l2: int = 0
    dram: int = 0
    latency: int = OTHER_LATENCY
    pending: int = 0  # groups of copies that DEPBAR lets be under way


END_OF_BLOCK = Item("END", "NONE", 1, 7, 7, ())


def item(instruction: Instruction, step: Step, in_l1: bool) -> Item:
    """What a step takes; `in_l1`: what the block has touched before is found in the L1 cache."""
    op, control = instruction.op, instruction.control
    wait = tuple(n for n in range(6) if control.wait >> n & 1)
    stall = max(1, control.stall, BRANCH_CYCLES if step.taken else 0)
    pending = instruction.operands[1].number if op == "DEPBAR" else 0
    cycles, l2, dram, latency = 1.0, 0, 0, LATENCY.get(op, OTHER_LATENCY)
    access = step.access
    if op in ("LDG", "STG", "LD", "ST", "LDGSTS"):
        access = access or Access(0, 0)
        dram = 32 * access.from_dram
        l2 = 32 * (access.from_dram + access.from_l2 + (0 if in_l1 and op[0] != "S" else access.again))
        cycles = max(1.0, float(access.lines), access.parts / 4) + (4.0 if op == "LDGSTS" else 0.0)
        latency = DRAM_LATENCY if dram else L2_LATENCY if l2 else L1_LATENCY
    elif access is not None:
        cycles = float(access.parts)
    return Item(op, unit_of(op), stall, control.write, control.read, wait, cycles, l2, dram, latency, pending)


@dataclass(slots=True)
class Warp:
    items: Sequence[Item]
    block: int
    at: int = 0
    ready: float = 0.0  # when its next instruction may start, whatever the unit
    cause: str = ""  # what it waits for until then
    unit: str = "NONE"  # which its next instruction takes
    counters: list[float] = field(default_factory=lambda: [0.0] * 6)
    holders: list[str] = field(default_factory=lambda: [""] * 6)
    copies: float = 0.0  # when those asked for since the last group arrive
    groups: list[float] = field(default_factory=list)
    last: float = -1.0
    stopped: bool = False


@dataclass
class Replay:
    """Cycles, instructions started, cycles of each unit in use (those of schedulers together), and cycles in which a
    scheduler started nothing, by what its next warp waited for; when blocks ended that others came after."""

    cycles: float = 0.0
    started: int = 0
    used: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    ends: list[float] = field(default_factory=list)


class Multiprocessor:
    """Replays warps; `blocks` holds those of each block that is resident at a time."""

    def __init__(self, blocks: Sequence[Sequence[Sequence[Item]]]) -> None:
        warps = [Warp(items, number) for number, block in enumerate(blocks) for items in block]
        self.queues = [warps[scheduler::SCHEDULERS] for scheduler in range(SCHEDULERS)]
        self.members = [[w for w in warps if w.block == number] for number in range(len(blocks))]
        self.free = [dict.fromkeys([*UNITS, "NONE"], 0.0) for _ in range(SCHEDULERS)]
        self.memory = self.l2 = self.dram = 0.0
        self.result = Replay(used=dict.fromkeys([*UNITS, "MEMORY", "L2", "DRAM"], 0.0))
        self.calls = [0.0] * SCHEDULERS  # when each scheduler chooses next

    def run(self) -> Replay:
        for queue in self.queues:
            for warp in queue:
                self._prepare(warp)
        calls, idle, started, causes = self.calls, self.result.idle, [-1.0] * SCHEDULERS, ["stall"] * SCHEDULERS
        while (now := min(calls)) < math.inf:
            scheduler = calls.index(now)
            warp, at, cause = self._choice(scheduler, now)
            if warp is None:
                calls[scheduler] = math.inf  # until a barrier lets one go on
            elif at > now:
                calls[scheduler], causes[scheduler] = at, cause
            else:
                calls[scheduler] = now + 1.0
                if now > started[scheduler] + 1.0:
                    waited = now - started[scheduler] - 1.0
                    idle[causes[scheduler]] = idle.get(causes[scheduler], 0.0) + waited
                started[scheduler] = now
                self._start(warp, scheduler, now)
        return self.result

    def _choice(self, scheduler: int, now: float) -> tuple[Warp | None, float, str]:
        """The warp to start next and when: the one that started last if it can, else the one that waits longest."""
        free, best, best_at, best_cause = self.free[scheduler], None, math.inf, ""
        for warp in self.queues[scheduler]:
            if warp.stopped:
                continue
            unit, at, cause = warp.unit, warp.ready, warp.cause
            if unit == "MEMORY":
                available = self.memory - QUEUE
            elif unit == "FMA":
                available = min(free["FMA"], free["IMAD"])
            else:
                available = free[unit]
            if available > at:
                at, cause = available, unit
            if at < now:
                at = now
            if at < best_at or (best is not None and at == best_at and self._sooner(warp, best, now)):
                best, best_at, best_cause = warp, at, cause
        return best, best_at, best_cause

    @staticmethod
    def _sooner(warp: Warp, other: Warp, now: float) -> bool:
        if other.last == now - 1.0:
            return False
        return warp.last == now - 1.0 or warp.last < other.last

    def _start(self, warp: Warp, scheduler: int, now: float) -> None:
        item = warp.items[warp.at]
        warp.last, warp.at = now, warp.at + 1
        self.result.started += 1
        done, read = self._occupy(item, warp, self.free[scheduler], now)
        counters = warp.counters
        if item.write < 6 and done > counters[item.write]:
            counters[item.write], warp.holders[item.write] = done, item.op
        if item.read < 6 and read > counters[item.read]:
            counters[item.read], warp.holders[item.read] = read, item.op
        warp.ready = now + item.stall
        if warp.at == len(warp.items):
            warp.stopped = True
            self.queues[scheduler].remove(warp)
            self.members[warp.block].remove(warp)
            self.result.cycles = now
            self._release(warp.block, now)
        elif item.op in ("BAR", "END"):
            warp.stopped = True
            self._release(warp.block, now)
        else:
            self._prepare(warp)

    def _occupy(self, item: Item, warp: Warp, free: dict[str, float], now: float) -> tuple[float, float]:
        """When the result is there, and when the operands have been read."""
        unit, used = item.unit, self.result.used
        if unit == "MEMORY":
            used["MEMORY"] += item.cycles
            start = max(self.memory, now, self.dram - STORES_AHEAD if item.op == "STG" else 0.0)
            there = self.memory = start + item.cycles
            if item.l2:
                used["L2"] += item.l2 / L2_BYTES_A_CYCLE
                self.l2 = max(self.l2, now) + item.l2 / L2_BYTES_A_CYCLE
                there = max(there, self.l2)
            if item.dram:
                used["DRAM"] += item.dram / DRAM_BYTES_A_CYCLE
                self.dram = max(self.dram, now) + item.dram / DRAM_BYTES_A_CYCLE
                there = max(there, self.dram)
            there += item.latency
            if item.op == "LDGSTS":
                warp.copies = max(warp.copies, there)
            return there, self.memory + 8
        if unit != "NONE":
            if unit == "FMA" and free["IMAD"] < free["FMA"]:
                unit = "IMAD"
            free[unit] = max(free[unit], now) + UNITS[unit]
            used[unit] += UNITS[unit]
        elif item.op == "LDGDEPBAR":
            warp.groups.append(warp.copies)
        return now + item.latency, now + 12

    def _prepare(self, warp: Warp) -> None:
        """When the next instruction of the warp may start, and what it waits for until then."""
        item = warp.items[warp.at]
        warp.cause, warp.unit = "stall", item.unit
        for counter in item.wait:
            if warp.counters[counter] > warp.ready:
                warp.ready, warp.cause = warp.counters[counter], warp.holders[counter]
        if item.op == "DEPBAR":
            awaited = warp.groups[: len(warp.groups) - item.pending]
            if awaited and awaited[-1] > warp.ready:
                warp.ready, warp.cause = awaited[-1], "LDGSTS"

    def _release(self, block: int, now: float) -> None:
        """Let the warps of a block go on if all of them have come to its barrier or end."""
        members = self.members[block]
        if not members or not all(w.stopped for w in members):
            return
        ended = members[0].items[members[0].at - 1].op == "END"
        if ended:
            self.result.ends.append(now)
        for warp in members:
            warp.stopped = False
            warp.ready = max(warp.ready, now + (NEXT_BLOCK_CYCLES if ended else BARRIER_CYCLES))
            self._prepare(warp)
            warp.cause = "BAR" if warp.cause == "stall" else warp.cause
        self.calls[:] = [min(at, now + 1.0) for at in self.calls]
