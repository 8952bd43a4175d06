"""Find the torch to build against without importing it. Used by setup.py and the build backend."""

from __future__ import annotations

import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MINIMUM = (2, 10)


@dataclass(frozen=True)
class Torch:
    """A torch installation."""

    root: Path
    version: str


def find_torch() -> Torch | None:
    """The newest-enough torch of the target environment, else of the build environment, else None."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    for folder in folders:
        root = (Path(folder or ".") / "torch").resolve()
        version_file = root / "version.py"
        if not version_file.is_file() or not (root / "include/torch/csrc/stable").is_dir():
            continue
        match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", version_file.read_text())
        if match and tuple(int(part) for part in match[1].split(".")[:2]) >= MINIMUM:
            return Torch(root, match[1])
    return None
