"""Kinds of text that differ are found to, and kinds that do not are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bag_of_words import BagOfWords
from optional import needs

from m2bert.bench.clusters import read_kinds, run_clusters
from m2bert.errors import M2BertError

pytestmark = needs("plots", "sklearn")
WORDS = ("river stone light paper", "engine market garden winter", "signal harbor copper window")


def texts(words: str, count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words.split(), 12)) for _ in range(count)]


def test_measures_are_high_for_different_kinds_and_low_for_equal_ones() -> None:
    """The second row is the negative control: one vocabulary under three names."""
    apart = run_clusters({str(n): texts(words, 10, n) for n, words in enumerate(WORDS)}, [BagOfWords()])
    equal = run_clusters({str(n): texts(WORDS[0], 10, n) for n in range(3)}, [BagOfWords()])
    (first,), (second,) = apart["systems"], equal["systems"]
    assert first["silhouette"] > 0.7 and first["v_measure"] == pytest.approx(1.0)
    assert abs(second["silhouette"]) < 0.15 and second["v_measure"] < 0.4
    points = np.array(first["points"])
    assert points.shape == (30, 2) and np.isfinite(points).all() and np.ptp(points) > 1


def test_kinds_are_read_and_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [{"text": f"book {n}", "source": "books/a"} for n in range(9)] + [{"text": f"talk {n}"} for n in range(9)]
    (tmp_path / "speech.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_kinds([tmp_path / "speech.jsonl"], per_kind=6)
    assert {kind: len(group) for kind, group in found.items()} == {"books": 6, "speech": 6}
    assert all(text.startswith("talk") for text in found["speech"])
    assert read_kinds([tmp_path / "speech.jsonl"], per_kind=6) == found != read_kinds([tmp_path / "speech.jsonl"], 6, 1)
    with pytest.raises(M2BertError, match="at least 2 kinds of 5 texts each, got books 9, speech 9"):
        read_kinds([tmp_path / "speech.jsonl"], per_kind=4)
