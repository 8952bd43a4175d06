"""What a launch takes on a whole GPU: one block run, and replayed on one multiprocessor as often as it gets blocks.

Kernels whose blocks walk over many units of work (rows of a batch, slabs of a channel) are run with a few of them, and
the time is carried on to all. Test: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sass.binary import Binary
from sass.listing import Kernel
from sass.multiprocessor import END_OF_BLOCK, L1_BYTES, SCHEDULERS, Item, Multiprocessor, Replay, item
from sass.recording import PROCESSORS, Recorded
from sass.threads import WARP, Block, Launch, Run, Step

CLOCK = 1.83e9  # of an H200 under load
REGISTERS, SHARED_BYTES, RESERVED, THREADS, BLOCKS = 65536, 228 * 1024, 1024, 2048, 32  # of a multiprocessor
MOST_INSTRUCTIONS = 400_000
# Instructions of all resident warps, from which two blocks are replayed one after another instead of four, and one.
LONG_TRACE, LONGEST_TRACE = 50_000, 200_000
WAITING, SATURATED = 0.5, 0.7
GLOBAL_LOADS = {"LDG", "LD", "LDGSTS"}
Memory = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]  # `streamed` and `shared` of threads.Launch


@dataclass
class Traffic:
    """What instructions of one block asked of memory, and the fewest wavefronts and sectors that could have held it."""

    wavefronts: int = 0
    fewest_wavefronts: int = 0
    sectors: int = 0
    fewest_sectors: int = 0
    dram_bytes: int = 0
    products: int = 0  # HMMA
    barriers: int = 0
    instructions: int = 0

    def minus(self, other: Traffic) -> Traffic:
        return Traffic(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def over(self, count: int) -> Traffic:
        return Traffic(*(value // count for value in vars(self).values()))

    @property
    def conflicts(self) -> float:
        """Wavefronts of shared memory over the fewest."""
        return self.wavefronts / self.fewest_wavefronts if self.fewest_wavefronts else 1.0

    @property
    def scatter(self) -> float:
        """Sectors of global memory over the fewest."""
        return self.sectors / self.fewest_sectors if self.fewest_sectors else 1.0


@dataclass(frozen=True)
class Estimate:
    """Seconds of a launch as simulated; the share of them in which schedulers wait for global memory; what one unit of
    work (a block, or what a block walks over) asks for; registers a thread, and the instructions of its prologue."""

    kernel: str
    seconds: float
    waiting: float
    unit: Traffic
    registers: int
    resident: int
    busy: dict[str, float]

    @property
    def latency_bound(self) -> bool:
        """Whether schedulers mostly wait for memory that could do more: outside of what the model knows."""
        return self.waiting > WAITING and max(self.busy["DRAM"], self.busy["L2"]) < SATURATED


def resident_blocks(registers: int, launch: Recorded) -> int:
    """Blocks that a multiprocessor holds at a time."""
    warps = math.ceil(launch.threads / WARP)
    by_registers = REGISTERS // (math.ceil(registers / 8) * 8 * WARP * warps)
    by_shared = SHARED_BYTES // (launch.shared_bytes + RESERVED)
    return max(1, min(BLOCKS, THREADS // launch.threads, by_registers, by_shared))


def traced(kernel: Kernel, launch: Recorded, memory: Memory, block: int) -> Run:
    """One block of the grid, run to its end."""
    shape = Launch(launch.grid, launch.threads, launch.shared_bytes, launch.arguments, block, *memory)
    return Block(kernel, shape).execute(MOST_INSTRUCTIONS)


def traffic(kernel: Kernel, run: Run) -> Traffic:
    total = Traffic()
    for warp in run.warps:
        total.instructions += len(warp)
        for step in warp:
            op = kernel.code[step.index].op
            total.products += op == "HMMA"
            total.barriers += op == "BAR"
            if step.access is None:
                continue
            if op in ("LDS", "STS", "LDSM"):
                total.wavefronts += step.access.parts
                total.fewest_wavefronts += step.access.ideal
            else:
                total.sectors += step.access.parts
                total.fewest_sectors += step.access.ideal
                total.dram_bytes += 32 * step.access.from_dram
    return total


def items(kernel: Kernel, run: Run, in_l1: bool) -> list[list[Item]]:
    """What the replay needs of each warp; steps that look alike share one item."""
    made: dict[int, Item] = {}
    alike: dict[Step, Item] = {}
    for warp in run.warps:
        for step in warp:
            if id(step) not in made:
                if step not in alike:
                    alike[step] = item(kernel.code[step.index], step, in_l1)
                made[id(step)] = alike[step]
    return [[made[id(step)] for step in warp] for warp in run.warps]


def replayed(warps: list[list[Item]], resident: int, times: int) -> Replay:
    """`times` blocks one after another in each of the `resident` places of a multiprocessor."""
    lines = [([*warp, END_OF_BLOCK] * times)[:-1] for warp in warps]
    return Multiprocessor([lines] * resident).run()


def _fits_l1(run: Run, launch: Recorded, resident: int) -> bool:
    """Whether what the resident blocks touch is still in the L1 cache when it is touched again."""
    sectors = {int(a) // 32 for addresses, _ in [*run.read, *run.written] for a in addresses}
    return resident * 32 * len(sectors) <= L1_BYTES - resident * (launch.shared_bytes + RESERVED)


def _shares(replay: Replay, earlier: Replay | None = None) -> tuple[float, dict[str, float]]:
    """Shares of the time that a replay took, or took longer than an earlier one: of schedulers that wait for global
    memory, and of each unit at work."""
    before = earlier or Replay(used=dict.fromkeys(replay.used, 0.0))
    cycles = replay.cycles - before.cycles
    waiting = sum(replay.idle.get(op, 0.0) - before.idle.get(op, 0.0) for op in GLOBAL_LOADS)
    shares = {name: (replay.used[name] - before.used[name]) / cycles / SCHEDULERS for name in replay.used}
    for name in ("MEMORY", "L2", "DRAM"):  # one for all schedulers
        shares[name] *= SCHEDULERS
    shares["issue"] = (replay.started - before.started) / cycles / SCHEDULERS
    return waiting / cycles / SCHEDULERS, shares


def of_blocks(binary: Binary, launch: Recorded, memory: Memory) -> Estimate:
    """A launch of many blocks, each of which does one unit of work."""
    kernel, registers = binary.kernel(launch.kernel), binary.registers[launch.kernel]
    resident = resident_blocks(registers, launch)
    waves = math.ceil(launch.grid / (PROCESSORS * resident))
    run = traced(kernel, launch, memory, launch.grid // 2)
    warps = items(kernel, run, _fits_l1(run, launch, resident))
    length = resident * sum(map(len, warps))
    times = 1 if length > LONGEST_TRACE else 2 if length > LONG_TRACE else 4
    replay = replayed(warps, resident, times)
    first = sum(sorted(replay.ends)[:resident]) / resident if times > 1 else replay.cycles
    cycles = (replay.cycles - first) / (times - 1) if times > 1 else first
    waiting, busy = _shares(replay)
    seconds = (first + (waves - 1) * cycles) / CLOCK
    return Estimate(launch.kernel, seconds, waiting, traffic(kernel, run), registers, resident, busy)


@dataclass(frozen=True)
class Walk:
    """The same kernel with few units of work, `units` a block in `stretches`, say of one channel."""

    launch: Recorded
    memory: Memory
    units: int
    stretches: int = 1


def of_units(binary: Binary, launch: Recorded, walks: Sequence[Walk], units: float, stretches: float) -> Estimate:
    """A launch whose blocks walk over `units` units of work in `stretches`.

    walks: with few and with more units in one stretch and, if stretches count, with as many more in two.
    """
    kernel, registers = binary.kernel(launch.kernel), binary.registers[launch.kernel]
    resident = resident_blocks(registers, launch)
    at_a_time = min(resident, math.ceil(launch.grid / PROCESSORS))
    runs = [traced(kernel, walk.launch, walk.memory, 0) for walk in walks]
    replays = [replayed(items(kernel, run, False), at_a_time, 1) for run in runs]
    more = walks[1].units - walks[0].units
    cycles = (replays[1].cycles - replays[0].cycles) / more
    stretch = replays[2].cycles - replays[1].cycles if len(walks) > 2 else 0.0
    waves = math.ceil(launch.grid / (PROCESSORS * resident))
    whole = replays[0].cycles + (units - walks[0].units) * cycles + (stretches - 1) * stretch
    waiting, busy = _shares(replays[1], replays[0])
    unit = traffic(kernel, runs[1]).minus(traffic(kernel, runs[0])).over(more)
    return Estimate(launch.kernel, waves * whole / CLOCK, waiting, unit, registers, resident, busy)
