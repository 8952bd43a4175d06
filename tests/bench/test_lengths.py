"""Length statistics against values counted by hand."""

from __future__ import annotations

import pytest

from m2bert.bench.lengths import EDGES, measure_lengths, summarise
from m2bert.bench.tasks import RetrievalTask
from m2bert.errors import M2BertError


def test_a_summary_is_what_can_be_counted_by_hand() -> None:
    found = summarise([1, 16, 16, 100, 867])
    assert (found.count, found.mean, found.largest, found.percentiles[2]) == (5, 200.0, 867, 16.0)
    assert sum(found.histogram) == 5 and found.histogram[0] == 3
    inside = next(place for place, edge in enumerate(EDGES) if edge > 100) - 1
    assert found.histogram[inside] == 1 and EDGES[inside] <= 100 < EDGES[inside + 1]
    with pytest.raises(M2BertError, match="at least one text"):
        summarise([])


def test_tasks_are_measured_in_characters_and_tokens() -> None:
    task = RetrievalTask("t", "test", {"a": "one two", "b": "three"}, {"q": "two words"}, {"q": {"a": 1}})
    run = measure_lengths([task], lambda texts: [len(text.split()) for text in texts], "words")
    (row,) = run["tasks"]
    assert row["documents"]["characters"]["mean"] == 6.0 and row["documents"]["tokens"]["mean"] == 1.5
    assert row["queries"]["tokens"]["largest"] == 2 and run["settings"]["tokenizer"] == "words"
    assert "tokens" not in measure_lengths([task])["tasks"][0]["documents"]
