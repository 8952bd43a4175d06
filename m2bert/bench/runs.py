"""Run files: the JSON in which evaluations and studies keep their results, and what made the numbers.

    {"kind": "evaluation", "version": 2, ..., "versions": {...}, "machine": {...}, "created": "2026-01-31T12:00:00"}

A leaf: plain data only.
Test: tests/bench/test_runs.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2bert.errors import M2BertError
from m2bert.files import write_text

KINDS = ("evaluation", "explanation", "needle", "encode_time", "lengths", "clusters")
OLDEST = {"explanation": 2}
"""The first version that is still read, of kinds that lacked something before."""


def save_run(path: Path | str, run: Mapping[str, Any], *, who: str) -> None:
    """Write a run as JSON. Raises M2BertError, beginning with `who`, if the file cannot be written."""
    write_text(path, json.dumps(run, indent=1, ensure_ascii=False) + "\n", who=who)


def as_plain(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run as a reader of its file would see it: dictionaries, lists, texts and numbers, keys as texts."""
    plain: dict[str, Any] = json.loads(json.dumps(run))
    return plain


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
    if run.get("version", 0) < OLDEST.get(kind, 0):
        raise M2BertError(
            f"runs: {path} is an {kind} of an older version, which lacks what is shown now; make it again"
        )
    found: dict[str, Any] = run
    return found
