"""Kernels of a library or an archive: their names, registers and instructions, for one architecture.

Needs cuobjdump and nvdisasm: of the CUDA toolkit, or from PyPI (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
Test: tests/cuda/test_gpu_model.py.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sass.listing import Kernel, disassembled, tool


def plain_name(symbol: str) -> str:
    """A kernel's own name and what follows it, of a mangled symbol: the same from nvcc and from the C++ compiler, whose
    unnamed namespaces have different names."""
    end = symbol.find("_kernel") + len("_kernel")
    if end < len("_kernel"):
        return symbol
    head = symbol[:end]
    for length in range(len("_kernel"), len(head)):
        if head[:-length].endswith(str(length)) and head[-length].isalpha():
            return head[-length:] + symbol[end:]
    return symbol


def needed(name: str) -> str:
    """Path of a tool of the toolkit; FileNotFoundError with the remedy."""
    found = tool(name)
    if found is None:
        raise FileNotFoundError(f"sass: {name} must be there, got none; run 'pip install nvidia-cuda-{name}'")
    return found


@dataclass
class Binary:
    """The machine code in `path` for sm_`arch`."""

    path: Path
    arch: str

    def __post_init__(self) -> None:
        self.kernels: dict[str, Kernel] = {}
        self.registers: dict[str, int] = {}  # of a thread
        command = [needed("cuobjdump"), "--extract-elf", "all", "-arch", f"sm_{self.arch}", self.path.resolve()]
        with tempfile.TemporaryDirectory(prefix="sass-") as folder:
            subprocess.run(command, cwd=folder, capture_output=True, check=True)
            files = sorted(Path(folder).glob("*.cubin"))
            self.cubins = [file.read_bytes() for file in files]
            for file in files:
                asked = [needed("cuobjdump"), "--dump-resource-usage", file]
                text = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
                found = re.findall(r"Function (\w+):\s+REG:(\d+) ", text)
                self.registers.update({plain_name(symbol): int(count) for symbol, count in found})

    def kernel(self, name: str) -> Kernel:
        """The kernel of that plain name; KeyError if there is none."""
        if name not in self.kernels:
            own = name[: name.find("_kernel")].encode()
            with tempfile.TemporaryDirectory(prefix="sass-") as folder:
                file = Path(folder) / "kernel.cubin"
                for cubin in self.cubins:
                    if name not in self.kernels and own in cubin:
                        file.write_bytes(cubin)
                        found = disassembled(file, needed("nvdisasm"), lambda symbol: plain_name(symbol) == name)
                        self.kernels.update({plain_name(k.name): k for k in found})
        return self.kernels[name]
