"""What the retrievers of other libraries give: passages, or whole documents, each with facts about it.

Tests: tests/integrations/test_langchain.py, tests/integrations/test_llama_index.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m2bert.search.index import SearchIndex
from m2bert.search.results import SearchResult


def pieces_of(index: SearchIndex, result: SearchResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """The passages of a result, or all of its document where it has none, each with its facts.

    Facts: the document's id and source; of a passage where it starts and ends (characters) and its page or heading.
    """
    facts: dict[str, Any] = {"id": result.id, "source": result.source}
    for hit in result.passages:
        yield hit.text, {**facts, "start": hit.start, "end": hit.end, "place": hit.place}
    if not result.passages:
        yield index.document(result.id, result.source).text, facts
