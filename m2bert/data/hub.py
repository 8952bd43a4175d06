"""Documents of data sets on the Hugging Face hub, or in a local folder of one, streamed by the `datasets` package.

Test: tests/train/test_hub.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from m2bert.errors import M2BertError

PREFIX = "hub:"
FORM = re.compile(r"hub:(?P<name>[^:#]+)(:(?P<config>[^:#]*))?(:(?P<split>[^:#]+))?(#(?P<rows>\d+))?")


@dataclass(frozen=True)
class HubSource:
    """A data set by name, its configuration ("" for the only one), its split, and how many rows (0: all)."""

    name: str
    config: str
    split: str
    rows: int


def is_hub(source: object) -> bool:
    """Whether a source is written as one of the hub."""
    return str(source).startswith(PREFIX)


def parse_hub(source: str, *, who: str) -> HubSource:
    """Read `hub:NAME[:CONFIG[:SPLIT]][#ROWS]`; the split is `train` where none is named.

    Raises M2BertError for another form and for a test split.
    """
    found = FORM.fullmatch(source)
    if found is None:
        raise M2BertError(f"{who}: a source on the hub must read hub:NAME[:CONFIG[:SPLIT]][#ROWS], got {source!r}")
    split = found["split"] or "train"
    if "test" in split.lower():
        raise M2BertError(f"{who}: test splits are for evaluation only, got {source!r}; name another split")
    return HubSource(found["name"], found["config"] or "", split, int(found["rows"] or 0))


def iter_rows(source: HubSource, *, who: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("hub:NAME row N", row) of a data set, read as it streams in.

    Raises M2BertError when `datasets` is not installed and when the data set cannot be reached or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise M2BertError(
            f"{who}: data sets on the hub need the package datasets; run pip install '.[train]' in the project's folder"
        ) from error
    try:
        stream = datasets.load_dataset(source.name, source.config or None, split=source.split, streaming=True)
        for number, row in enumerate(islice(stream, source.rows or None), 1):
            yield f"{PREFIX}{source.name} row {number}", dict(row)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise M2BertError(
            f"{who}: the data set {source.name!r} must be on the hub or in a folder and within reach ({reason}); "
            f"check its name and the network, or pass files"
        ) from error
