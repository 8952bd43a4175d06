"""What a document carries beside its text: a small flat object of names and values, which searches may ask for.

Values are texts, numbers and truth values. A store keeps them as canonical JSON, so that two that are equal are equal
as text. Test: tests/search/test_where.py.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from m2bert.errors import M2BertError

Value = str | int | float | bool
Metadata = Mapping[str, Value | None]
"""Names to values; None stands for a value that is not there."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
MOST_BYTES = 8192
# Stores compare numbers as float64, which has every whole number up to here.
MOST_WHOLE = 2**53
# A longer text in a row of a JSON-lines file is a second document rather than something to ask for.
LONGEST_COLUMN = 1000


def metadata_as_text(metadata: Metadata, document: str) -> str:
    """Canonical JSON; empty for no metadata. Raises M2BertError, naming `document`, for what cannot be kept."""
    if not isinstance(metadata, Mapping):
        raise _wrong(document, f"must be a mapping of names to values, got {type(metadata).__name__}")
    kept: dict[str, Value] = {}
    for name, value in metadata.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise _wrong(document, f"must have names of letters, digits and _, got {name!r:.80}")
        if value is None:
            continue
        if not is_value(value):
            raise _wrong(
                document,
                f"must have texts, finite numbers (whole ones up to 2**53) and truth values, got {value!r:.60} for "
                f"{name!r}",
            )
        kept[name] = value
    text = json.dumps(kept, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if kept else ""
    if (size := len(text.encode())) > MOST_BYTES:
        raise _wrong(document, f"must take at most {MOST_BYTES:,} bytes as JSON, got {size:,}")
    return text


def metadata_of_text(text: str | None) -> dict[str, Value]:
    """What metadata_as_text wrote."""
    found: dict[str, Value] = json.loads(text) if text else {}
    return found


def is_value(value: Any) -> bool:
    """Whether a value can be kept."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) <= MOST_WHOLE
    return isinstance(value, float) and math.isfinite(value)


def metadata_of_row(row: Mapping[str, Any], taken: set[str]) -> dict[str, Value]:
    """The columns of a JSON-lines row that can be kept, but for those `taken`, as far as there is room."""
    found: dict[str, Any] = {}
    room = MOST_BYTES - 2
    for name, value in row.items():
        fits = isinstance(name, str) and name not in taken and NAME.fullmatch(name) and is_value(value)
        if not fits or (isinstance(value, str) and len(value) > LONGEST_COLUMN):
            continue
        room -= len(json.dumps({name: value}, ensure_ascii=False).encode())
        if room >= 0:
            found[name] = value
    return found


def facts_of_file(name: str, state: os.stat_result) -> dict[str, Value]:
    """What a file says of itself: `type` (its suffix in lower case), `bytes`, `modified` (UTC, ISO 8601)."""
    modified = datetime.fromtimestamp(int(state.st_mtime), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kind = PurePath(name).suffix.removeprefix(".").lower()
    facts: dict[str, Value] = {"bytes": state.st_size, "modified": modified}
    if kind:
        facts["type"] = kind
    return facts


def _wrong(document: str, rule: str) -> M2BertError:
    return M2BertError(f"index: the metadata of document {document!r} {rule}; mend it or leave it out")
