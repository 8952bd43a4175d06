"""scripts/measure_search.py on a store of forty documents: its exact ranking by hand, and what it reports."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2bert.ranking.bm25 import BM25
from m2bert.ranking.words import words_of
from m2bert.search.stores import StoreInfo, lance
from m2bert.search.stores.fields import fields_of

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_search.py"
COUNT = 40


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("measure_search", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_exact_ranking_is_that_of_all_documents(script: Any, tmp_path: Path) -> None:
    """By hand from vectors that were not rounded: what is ranked first may trade places within the rounding."""
    world = script.World(COUNT)
    store = lance.LanceStore.create(tmp_path / "store", StoreInfo("made up", "0" * 16, script.DIM))
    store.add(world.rows(store.info), replaces=False, fields=fields_of([world.metadata(0)]))
    queries = [world.query(number) for number in range(5)]
    documents = [world.document(number) for number in range(COUNT)]
    assert {len(document.passages) for document, _ in documents} > {1, 2}
    found = script.exact_ranking(store, queries)
    bm25 = BM25([text for _, text in documents]).score([" ".join(query.words) for query in queries])
    for query, ids, words in zip(queries, found, bm25, strict=True):
        scores = {}
        for number, (document, _) in enumerate(documents):
            shares = [passage.vector for passage in document.passages]
            pairs = [a + b for a, b in pairwise(shares)] or shares
            best = max(float(pair @ query.vector / np.linalg.norm(pair)) for pair in pairs)
            scale = 1 / (len(words_of(" ".join(query.words))) ** 0.5 * np.log(1 + COUNT))
            scores[str(number)] = 0.7 * float(document.vector @ query.vector) + 0.3 * best + 0.7 * words[number] * scale
        wanted = sorted(scores.values(), reverse=True)[:10]
        assert len(set(ids)) == 10
        np.testing.assert_allclose([scores[name] for name in ids], wanted, atol=2e-3)
        assert wanted[0] - min(scores.values()) > 0.3


def test_it_reports_recall_and_sizes_and_measures_a_store_again(script: Any, tmp_path: Path) -> None:
    kept = lance.SCORED_EXACTLY
    try:
        first, again = (
            script.measure(tmp_path / "store", script.World(COUNT), 4, [COUNT], [None, "year >= 2010"])
            for _ in range(2)
        )
    finally:
        lance.SCORED_EXACTLY = kept
    assert first["seconds_to_write"] > 0 and "seconds_to_write" not in again
    assert first[f"{COUNT} scored exactly"]["recall_at_10"] == again[f"{COUNT} scored exactly"]["recall_at_10"] == 1.0
    assert again[f"{COUNT} scored exactly, where year >= 2010"]["recall_at_10"] == 1.0
    world = script.World(COUNT)
    assert first["bytes"] > sum(len(world.document(number)[1]) for number in range(COUNT)) / 4
    json.dumps(first)
