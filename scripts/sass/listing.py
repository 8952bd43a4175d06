"""Kernels as instructions, out of the listing that nvdisasm prints of a binary. Test: tests/cuda/test_gpu_model.py.

An instruction word has 128 bits. Its upper ones carry what the compiler decided about time, which the hardware does not
check (Maxwell and later): how many cycles the warp waits before its next instruction, which of six counters this
instruction holds until its result is there or its operands are read, and which counters must be free before it may
start. Source of the layout: Jia et al., "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking", 2018.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ZERO = 255  # RZ, and URZ: reads 0, keeps nothing
ALWAYS = 7  # PT, UPT: reads true


@dataclass(frozen=True)
class Operand:
    """One operand. kind: r (register), u (uniform), p, q (predicate, uniform), c (constant), i (immediate bits), m
    (memory), l (label), s (special register); `number` is the register, the immediate's bits or the offset."""

    kind: str
    number: int = 0
    negative: bool = False  # -x, and !p
    absolute: bool = False
    inverted: bool = False  # ~x
    half: str = ""  # H0 or H1: one half of a register
    base: int = ZERO  # register of an address or of an index of constants
    wide: bool = False  # whose base is a pair
    uniform: int = ZERO  # uniform register added to the address
    name: str = ""


@dataclass(frozen=True)
class Control:
    """What the compiler decided about time: cycles to the next, counters held (7: none), a mask of those awaited."""

    stall: int
    write: int
    read: int
    wait: int


@dataclass(frozen=True)
class Instruction:
    at: int  # bytes from the start of the kernel
    op: str
    modifiers: tuple[str, ...]
    guard: Operand | None
    operands: tuple[Operand, ...]
    control: Control
    text: str

    @property
    def bits(self) -> int:
        """Bits that a thread moves, of an access to memory; of LDSM, that it names."""
        if self.op == "LDSM":
            return 128
        found = [int(m) for m in self.modifiers if m in ("64", "128")]
        narrow = {"U8": 8, "S8": 8, "U16": 16, "S16": 16}
        return found[0] if found else next((narrow[m] for m in self.modifiers if m in narrow), 32)


@dataclass
class Kernel:
    name: str
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the instruction


LINE = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;?\s*/\* (0x[0-9a-f]{16}) \*/$")
UPPER = re.compile(r"^\s+/\* (0x[0-9a-f]{16}) \*/$")
LABEL = re.compile(r"^\s*([.$_A-Za-z][\w.$]*):$")
GUARD = re.compile(r"^@(!?)(U?)P([0-6T])\s+")
REGISTER = re.compile(r"^(U?)R(\d+|Z)(\.64)?$")
FLOAT = re.compile(r"^[+-]?(\d|INF|QNAN|SNAN|\.)")


def tool(name: str) -> str | None:
    """Path of a program of the CUDA toolkit: in CUDA_HOME, from PyPI (nvidia-cuda-NAME), or on PATH."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    packaged = (Path(sysconfig.get_path("purelib")) / "nvidia").glob("cu*/bin")
    return shutil.which(name, path=os.pathsep.join([*map(str, (toolkit, *packaged)), os.environ.get("PATH", "")]))


def _register(text: str) -> tuple[str, int, bool]:
    """Kind, number and whether it is the first of a pair."""
    found = REGISTER.match(text)
    if found is None:
        raise ValueError(f"sass: an operand must be a register, got {text!r}")
    number = ZERO if found[2] == "Z" else int(found[2])
    return "u" if found[1] else "r", number, bool(found[3])


def _address(text: str, kind: str) -> Operand:
    """[R4.64+UR5+0x10] or the second index of a constant."""
    base, wide, uniform, offset = ZERO, False, ZERO, 0
    for term in text.replace("+-", "+~").split("+"):
        if re.match(r"^~?0x", term):
            offset += -int(term[1:], 16) if term.startswith("~") else int(term, 16)
        elif term:
            file, number, pair = _register(term)
            if file == "u":
                uniform = number
            else:
                base, wide = number, pair
    return Operand(kind, offset, base=base, wide=wide, uniform=uniform)


def _operand(text: str, immediate: int) -> Operand:
    """One operand; `immediate` is the 32 bits of the word in which it keeps a number that is not printed as bits."""
    negative, inverted = text[0] in "-!", text[0] == "~"
    bare = text[1:] if negative or inverted else text
    if bare.startswith("`("):
        return Operand("l", name=bare[2:-1])
    if found := re.match(r"^c\[0x0\]\[(.*)\]$", bare):
        return _negated(_address(found[1], "c"), negative)
    if found := re.match(r"^(?:desc\[UR\d+\])?\[(.*)\]$", bare):
        return _address(found[1], "m")
    if found := re.match(r"^(U?)P([0-6T])$", bare):
        return Operand("q" if found[1] else "p", ALWAYS if found[2] == "T" else int(found[2]), negative)
    if bare.startswith("SR"):
        return Operand("s", name=bare)
    if re.match(r"^(B\d+|SB\d+|PR)$", bare):
        return Operand("s", name=bare)
    if re.match(r"^0x[0-9a-f]+$", bare):
        return Operand("i", (-int(bare, 16) if negative else int(bare, 16)) & 0xFFFFFFFF)
    if FLOAT.match(text):
        return Operand("i", immediate)
    bare = bare.replace(".reuse", "")
    half = re.search(r"\.H([01])_H[01]$", bare)
    bare = re.sub(r"\.H[01]_H[01]$", "", bare)
    absolute = bare.startswith("|")
    kind, number, _ = _register(bare.strip("|"))
    return Operand(kind, number, negative, absolute, inverted, half=f"H{half[1]}" if half else "")


def _negated(operand: Operand, negative: bool) -> Operand:
    return Operand(operand.kind, operand.number, negative, base=operand.base, uniform=operand.uniform)


def _instruction(at: int, text: str, low: int, high: int) -> Instruction:
    whole, guard = text, None
    if found := GUARD.match(text):
        number = ALWAYS if found[3] == "T" else int(found[3])
        guard = Operand("q" if found[2] else "p", number, bool(found[1]))
        text = text[found.end() :]
    name, _, rest = text.partition(" ")
    op, *modifiers = name.split(".")
    tokens = [token.strip() for token in rest.split(",")] if rest.strip() else []
    if op == "RET":
        tokens = rest.split()
    operands = tuple(_operand(token, low >> 32) for token in tokens)
    bits = high >> 41
    control = Control(bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)
    return Instruction(at, op, tuple(modifiers), guard, operands, control, whole)


def _kernel(name: str, lines: Iterator[str]) -> Kernel:
    """The kernel whose section's lines come next."""
    kernel = Kernel(name)
    for line in lines:
        if found := LABEL.match(line):
            kernel.labels[found[1]] = len(kernel.code)
        elif found := LINE.match(line):
            upper = UPPER.match(next(lines))
            if upper is None:
                raise ValueError(f"sass: an instruction must have 128 bits, got {line.strip()!r}")
            kernel.code.append(_instruction(int(found[1], 16), found[2], int(found[3], 16), int(upper[1], 16)))
    return kernel


def kernels(listing: str, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Kernel]:
    """The kernels in what `nvdisasm -hex` prints, those whose symbol is wanted."""
    for section in listing.split("\n.text.")[1:]:
        name, _, body = section.partition(":\n")
        if wanted(name):
            yield _kernel(name, iter(body.partition("\n\t.section")[0].splitlines()))


def disassembled(cubin: Path, nvdisasm: str, wanted: Callable[[str], bool]) -> list[Kernel]:
    """The wanted kernels of a binary of one architecture."""
    done = subprocess.run([nvdisasm, "-hex", cubin], capture_output=True, text=True, check=True)
    return list(kernels(done.stdout, wanted))
