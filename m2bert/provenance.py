"""What made the numbers of a run: versions of packages, the machine and the time; kept in every run file.

Test: tests/test_provenance.py.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import m2bert

PACKAGES = (
    "torch", "transformers", "tokenizers", "sentence-transformers", "numpy", "scikit-learn", "bm25s", "PyStemmer",
    "pytrec-eval-terrier",
)  # fmt: skip
CPU_INFO = Path("/proc/cpuinfo")


def versions() -> dict[str, str]:
    """Versions of what made the numbers; packages that are not installed are left out."""
    found = {"m2bert": m2bert.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor (its model where Linux tells) and its number of cores."""
    found: dict[str, Any] = {"system": platform.platform(), "processor": platform.machine()}
    if CPU_INFO.is_file():
        rows = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), None)
        found |= {"model": model} if model else {}
    return {**found, "cpu_count": os.cpu_count()}


def provenance() -> dict[str, Any]:
    """versions, machine, and created: the time in UTC, ISO 8601."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "machine": machine(), "created": created}
