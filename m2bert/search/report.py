"""What a change to an index did.

Test: tests/search/test_index.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from m2bert.search.documents import Skipped
from m2bert.search.stores import Key, StoredState


@dataclass
class IndexReport:
    """What a change to an index did: numbers of documents, and tokens of those that were embedded or kept.

    guessed: documents that were read as Windows-1252, because they are not UTF-8 and do not say what they are.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    embedded: int = 0
    num_tokens: int = 0
    num_windowed: int = 0
    num_truncated_documents: int = 0
    num_truncated_tokens: int = 0
    guessed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; skipped documents as {id, reason}."""
        return asdict(self) | {"skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped]}

    def count(
        self, hashes: Mapping[Key, str], stored: Mapping[Key, StoredState], staged: Mapping[str, StoredState]
    ) -> None:
        """Add the tokens of documents, given by the hash of each, whose state is staged, or stored from before."""
        for key, known in hashes.items():
            state = staged.get(known) or stored[key]
            self.num_tokens += state.num_tokens
            self.num_windowed += state.num_windows > 1
            self.num_truncated_documents += state.num_truncated > 0
            self.num_truncated_tokens += state.num_truncated
