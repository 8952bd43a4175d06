"""Run files: the JSON in which evaluations and studies keep their results, and what made the numbers.

    {"kind": "evaluation", "version": 2, ..., "versions": {...}, "machine": {...}, "created": "2026-01-31T12:00:00"}

A leaf: plain data only. Imports m2bert.errors. Test: tests/test_runs.py.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import m2bert
from m2bert.errors import M2BertError

KINDS = ("evaluation", "explanation", "needle", "encode_time", "lengths", "clusters")
PACKAGES = (
    "torch", "transformers", "tokenizers", "sentence-transformers", "numpy", "scikit-learn", "bm25s", "PyStemmer",
    "pytrec-eval-terrier",
)  # fmt: skip
_CPU_INFO = Path("/proc/cpuinfo")


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
    if _CPU_INFO.is_file():
        rows = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), None)
        found |= {"model": model} if model else {}
    return {**found, "cpu_count": os.cpu_count()}


def provenance() -> dict[str, Any]:
    """versions, machine, and created: the time in UTC, ISO 8601."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"versions": versions(), "machine": machine(), "created": created}


def write_text(path: Path | str, text: str, *, who: str) -> None:
    """Write a UTF-8 file; a reader sees either the old file or the whole new one. Raises M2BertError."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise M2BertError(f"{who}: cannot write {path} ({error.strerror}); choose another place") from error


def save_run(path: Path | str, run: Mapping[str, Any], *, who: str) -> None:
    """Write a run as JSON. Raises M2BertError, beginning with `who`, if the file cannot be written."""
    write_text(path, json.dumps(run, indent=1, ensure_ascii=False) + "\n", who=who)


def load_run(path: Path | str) -> dict[str, Any]:
    """Read a run file. Raises M2BertError if it is none, saying what it is."""
    try:
        run = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise M2BertError(f"runs: cannot read {path} ({error.strerror}); check the path") from error
    except ValueError as error:
        raise M2BertError(f"runs: {path} must be a JSON file that --json wrote, got {error}") from error
    kind = run.get("kind") if isinstance(run, dict) else None
    if kind not in KINDS:
        raise M2BertError(f"runs: {path} must be a run of kind {', '.join(KINDS)}, got {kind!r}; give a file of --json")
    found: dict[str, Any] = run
    return found


def check_output(path: Path | None, *, who: str, option: str = "--json") -> None:
    """Raise M2BertError unless a file can lie there; asked before work that may take an hour."""
    if path is not None and not path.absolute().parent.is_dir():
        raise M2BertError(f"{who}: no such folder for {option}: {path.absolute().parent}; create it first")
    if path is not None and path.is_dir():
        raise M2BertError(f"{who}: {option} must name a file, got the folder {path}; add a file name")
