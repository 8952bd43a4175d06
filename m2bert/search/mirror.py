"""What a store knows of the files it mirrors: by their stamps they need not be read again.

It lies beside the table, a file for each source, and only says what the table holds of which state of a file: an entry
counts while the table has a document of that hash. So it may be lost, or be older than the table, at no more cost than
reading files again.
Test: tests/search/test_mirror.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from m2bert.errors import M2BertError
from m2bert.files import write_text

FOLDER = "mirror"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """The state of a file when it was read, and the hash of the document that was made of it."""

    stamp: str
    text_hash: str


def read_seen(store: Path, source: str) -> dict[str, Seen]:
    """What is known of a source's files, by the ids of their documents; nothing where it cannot be read."""
    path = _path(store, source)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {identity: Seen(stamp, known) for identity, (stamp, known) in found["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read, so that all files of %s are read again: %s", path, source, error)
        return {}


def write_seen(store: Path, source: str, seen: Mapping[str, Seen]) -> None:
    """Keep what is known of a source's files, whole or not at all. Raises M2BertError where it cannot be written."""
    path = _path(store, source)
    files = {identity: [each.stamp, each.text_hash] for identity, each in seen.items()}
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise M2BertError(
            f"store: cannot write to {str(path.parent)!r} ({error.strerror}); give yourself the permission, or index "
            f"into a new folder"
        ) from error
    write_text(path, json.dumps({"source": source, "files": files}), who="store")


def _path(store: Path, source: str) -> Path:
    return store / FOLDER / f"{hashlib.sha256(source.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"
