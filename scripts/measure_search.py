"""Time, size and recall of a store's search, on documents made up in the shape of real ones.

    python scripts/measure_search.py --documents 100000 --folder /tmp/store

No model is run: vectors are made up so that a document's passages share a topic, neighbours are alike, and a query is
near one passage and has some of its words. Printed as JSON: seconds to write, bytes, milliseconds of a query in a
process that has answered before (warm) and in a new one (cold, imports left out), and the share of the first ten of an
exact ranking of all documents that a search finds, by how many documents are scored exactly. Run again with the same
folder, it measures the store that is there. Test: tests/search/test_measure_search.py.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from m2bert.encoders.protocol import EncodedDocument, Passage
from m2bert.ranking.bm25 import word_scale
from m2bert.ranking.parts import Mixture
from m2bert.search.documents import Document
from m2bert.search.stores import Query, StoreInfo, lance
from m2bert.search.stores.columns import SCORED, dense_scores, to_batch, to_table_rows

DIM, TOPICS, ROWS_AT_ONCE = 768, 300, 1000
WORDS, LINES, PASSAGE_WORDS, OWN_WORDS = 60_000, 20_000, 126, 14
# Tokens of a document: log-normal, as in docs/retrieval.md.
MEDIAN_TOKENS, SPREAD, TOKENS_A_PASSAGE = 600, 1.0, 192


class World:
    """Documents and queries, the same for the same seed and number."""

    def __init__(self, documents: int, seed: int = 0) -> None:
        self.documents, self.seed = documents, seed
        draw = np.random.default_rng(seed)
        self.topics = draw.standard_normal((TOPICS, DIM)).astype(np.float32)
        # Frequencies of words by Zipf's law.
        weights = 1.0 / (np.arange(WORDS) + 10.0)
        shares = np.cumsum(weights / weights.sum())
        drawn = np.searchsorted(shares, draw.random((LINES, PASSAGE_WORDS)))
        self.lines = [" ".join(f"w{word}" for word in line) for line in drawn.tolist()]

    def document(self, number: int) -> tuple[EncodedDocument, str]:
        draw = np.random.default_rng([self.seed, number])
        tokens = int(min(max(MEDIAN_TOKENS * math.exp(SPREAD * draw.standard_normal()), 20), 60_000))
        count = max(1, round(tokens / TOKENS_A_PASSAGE))
        topic = self.topics[draw.integers(TOPICS)]
        own = draw.standard_normal(DIM).astype(np.float32)
        noise = draw.standard_normal((count + 1, DIM)).astype(np.float32)
        passages = topic + own + 0.8 * (noise[1:] + noise[:-1])
        total = passages.sum(axis=0)
        passages /= np.linalg.norm(total)
        # Common words by frequency, and in every passage some of a few that are the document's own.
        favourites = draw.integers(WORDS, size=8 + 4 * count)
        chosen = draw.choice(favourites, (count, OWN_WORDS)).tolist()
        lines = [
            f"{self.lines[line]} {' '.join(f'w{word}' for word in own_words)}"
            for line, own_words in zip(draw.integers(LINES, size=count).tolist(), chosen, strict=True)
        ]
        text, ends = "\n".join(lines), np.cumsum([len(line) + 1 for line in lines]).tolist()
        spans = zip([0, *ends[:-1]], [*ends[:-1], len(text)], strict=True)
        parts = [Passage(*span, vector) for span, vector in zip(spans, passages, strict=True)]
        return EncodedDocument(total / np.linalg.norm(total), parts, tokens, 1, 0), text

    def query(self, number: int) -> Query:
        draw = np.random.default_rng([self.seed, 1, number])
        document, text = self.document(int(draw.integers(self.documents)))
        passage = int(draw.integers(len(document.passages)))
        vector = document.passages[passage].vector
        vector = vector / np.linalg.norm(vector) + 1.2 * draw.standard_normal(DIM).astype(np.float32) / math.sqrt(DIM)
        span = document.passages[passage]
        words = draw.choice(text[span.start : span.end].split(), 6).tolist()
        return Query((vector / np.linalg.norm(vector)).astype(np.float32), words)

    def rows(self, info: StoreInfo) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.documents, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, self.documents))
            made = {str(number): self.document(number) for number in numbers}
            batch = to_batch({known: one for known, (one, _) in made.items()}, info, {known: known for known in made})
            documents = [Document(known, text) for known, (_, text) in made.items()]
            yield to_table_rows(batch, range(len(documents)), documents, info)


def timed_queries(store: lance.LanceStore, queries: list[Query]) -> tuple[list[float], list[list[str]]]:
    """Milliseconds and ids of each query."""
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        results = store.search(query, 10, Mixture())
        times.append(1000 * (time.perf_counter() - began))
        found.append([result.record.id for result in results])
    return times, found


def exact_ranking(store: lance.LanceStore, folder: Path, queries: list[Query]) -> list[list[str]]:
    """The ids of the first ten of all documents for each query: no index of vectors, no candidates, but a scan."""
    table = lancedb.connect(str(folder.absolute())).open_table(lance.TABLE)
    rows = table.search().select(["id", *SCORED]).with_row_id(True).limit(store.count()).to_arrow()
    mixture, count = Mixture(), rows.num_rows
    scores = np.zeros((len(queries), count))
    for start in range(0, count, ROWS_AT_ONCE):
        part = rows.slice(start, ROWS_AT_ONCE).combine_chunks()
        for row, query in zip(scores, queries, strict=True):
            assert query.vector is not None
            whole, passages = dense_scores(part, query.vector, DIM)
            row[start : start + ROWS_AT_ONCE] = mixture.whole * whole + mixture.passages * passages
    places = {row: place for place, row in enumerate(rows["_rowid"].to_pylist())}
    for row, query in zip(scores, queries, strict=True):
        matching = lance._matching(table, query.words, count, None)  # of all, which no search asks for
        for found, bm25 in matching.scores.items():
            row[places[found]] += mixture.words * bm25 * word_scale(len(query.words), count)
    ids = rows["id"].to_pylist()
    return [[ids[place] for place in np.argsort(-row, kind="stable")[:10]] for row in scores]


def measure(folder: Path, documents: int, queries: int, scored: list[int]) -> dict[str, Any]:
    """Everything but the cold query."""
    world = World(documents)
    result: dict[str, Any] = {"documents": documents, "queries": queries}
    if lance.is_unused(folder):
        store = lance.LanceStore.create(folder, StoreInfo("made up", "0" * 16, DIM))
        began = time.perf_counter()
        store.add(world.rows(store.info), replaces=False)
        result["seconds_to_write"] = round(time.perf_counter() - began, 1)
    store = lance.LanceStore.open(folder)
    asked = [world.query(number) for number in range(queries)]
    exact = exact_ranking(store, folder, asked)
    timed_queries(store, asked[:5])
    for number in scored:
        lance.SCORED_EXACTLY = number
        times, found = timed_queries(store, asked)
        shares = [len(set(some) & set(best)) / len(best) for some, best in zip(found, exact, strict=True)]
        result[f"{number} scored exactly"] = {
            "warm_ms": round(float(np.median(times)), 1),
            "p95_ms": round(float(np.percentile(times, 95)), 1),
            "recall_at_10": round(float(np.mean(shares)), 4),
        }
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    tokens = sum(state.num_tokens for state in store.states().values())
    return result | {"bytes": size, "tokens": tokens, "bytes_a_1000_tokens": round(1000 * size / tokens)}


def cold(folder: Path, documents: int) -> float:
    """Milliseconds to open the store and answer one query in this process."""
    query = World(documents).query(10**6)
    began = time.perf_counter()
    lance.LanceStore.open(folder).search(query, 10, Mixture())
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--scored", type=int, nargs="+", default=[lance.SCORED_EXACTLY])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cold", action="store_true", help="Only answer one query and print its milliseconds.")
    options = parser.parse_args()
    if options.cold:
        print(cold(options.folder, options.documents))
        return
    result = measure(options.folder, options.documents, options.queries, options.scored)
    again = [sys.executable, __file__, "--cold", "--documents", str(options.documents), "--folder", str(options.folder)]
    cold_ms = [float(subprocess.run(again, capture_output=True, check=True, text=True).stdout) for _ in range(3)]
    print(json.dumps(result | {"cold_ms": float(np.median(cold_ms))}, indent=2))


if __name__ == "__main__":
    main()
