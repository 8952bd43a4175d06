"""Time, size and recall of a store's search, on documents made up in the shape of real ones.

    python scripts/measure_search.py --documents 100000 --folder /tmp/store

No model is run: vectors are made up so that a document's passages share a topic, neighbours are alike, and a query is
near one passage and has some of its words. Printed as JSON: seconds to write, bytes, milliseconds of a query in a
process that has answered before (warm) and in a new one (cold, imports left out), and the share of the first ten of an
exact ranking of all documents that a search finds, by how many documents are scored exactly, and under conditions on
metadata (--where; a document has a `year`, 1990 to 2025, and a `source` of a thousand). Run again with the same folder,
it measures the store that is there. docs/scaling.md has what it said. Test: tests/search/test_measure_search.py.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m2bert.encoders.protocol import EncodedDocument, Passage
from m2bert.ranking.bm25 import word_scale
from m2bert.ranking.parts import Mixture
from m2bert.search.documents import Document
from m2bert.search.filters import parse_where
from m2bert.search.places import place_of
from m2bert.search.stores import Query, StoreInfo, VectorStore, columns, lance
from m2bert.search.stores.checksums import text_hash
from m2bert.search.stores.columns import SCORED, dense_scores, to_batch, to_table_rows
from m2bert.search.stores.fields import fields_of, sql_of_query

DIM, TOPICS, ROWS_AT_ONCE = 768, 300, 1000
WORDS, LINES, PASSAGE_WORDS, OWN_WORDS = 60_000, 20_000, 126, 14
# Tokens of a document: log-normal, as in docs/retrieval.md.
MEDIAN_TOKENS, SPREAD, TOKENS_A_PASSAGE = 600, 1.0, 192
ROWS_SCORED = 2_000  # at once, exactly


class World:
    """Documents and queries, the same for the same seed and number."""

    def __init__(
        self,
        documents: int,
        seed: int = 0,
        median_tokens: float = MEDIAN_TOKENS,
        spread: float = SPREAD,
        topics: int = TOPICS,
    ) -> None:
        self.documents, self.seed, self.median_tokens, self.spread = documents, seed, median_tokens, spread
        draw = np.random.default_rng(seed)
        self.topics = draw.standard_normal((topics, DIM)).astype(np.float32)
        # Frequencies of words by Zipf's law.
        weights = 1.0 / (np.arange(WORDS) + 10.0)
        shares = np.cumsum(weights / weights.sum())
        drawn = np.searchsorted(shares, draw.random((LINES, PASSAGE_WORDS)))
        self.lines = [" ".join(f"w{word}" for word in line) for line in drawn.tolist()]

    def document(self, number: int) -> tuple[EncodedDocument, str]:
        return self._made(number // ROWS_AT_ONCE)[number % ROWS_AT_ONCE]

    @lru_cache(2)  # noqa: B019 - there is one world
    def _made(self, batch: int) -> list[tuple[EncodedDocument, str]]:
        """ROWS_AT_ONCE documents, drawn together."""
        draw, count = np.random.default_rng([self.seed, batch]), ROWS_AT_ONCE
        tokens = self.median_tokens * np.exp(self.spread * draw.standard_normal(count))
        tokens = np.clip(tokens, 20, 60_000).astype(int)
        lengths = np.maximum(1, np.rint(tokens / TOKENS_A_PASSAGE)).astype(int)
        ends = np.cumsum(lengths)
        centres = self.topics[draw.integers(len(self.topics), size=count)]
        centres = centres + draw.standard_normal((count, DIM), np.float32)
        # One row more for every document: neighbouring passages share their noise.
        noise = draw.standard_normal((ends[-1] + count, DIM), np.float32)
        first = np.arange(ends[-1]) + np.repeat(np.arange(count), lengths)
        passages = np.repeat(centres, lengths, axis=0) + np.float32(0.8) * (noise[first] + noise[first + 1])
        lines = draw.integers(LINES, size=ends[-1]).tolist()
        made = []
        for number, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            own = passages[end - length : end]
            total = own.sum(axis=0)
            norm = np.float32(np.linalg.norm(total))
            text, spans = self._text(lines[end - length : end], draw)
            parts = [Passage(*span, vector / norm) for span, vector in zip(spans, own, strict=True)]
            made.append((EncodedDocument(total / norm, parts, int(tokens[number]), 1, 0), text))
        return made

    def _text(self, lines: list[int], draw: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
        """A line for every passage: common words by frequency, and some of a few that are the document's own."""
        favourites = draw.integers(WORDS, size=8 + 4 * len(lines))
        chosen = favourites[draw.integers(len(favourites), size=(len(lines), OWN_WORDS))].tolist()
        texts = [
            f"{self.lines[line]} {' '.join(f'w{word}' for word in words)}"
            for line, words in zip(lines, chosen, strict=True)
        ]
        text, ends = "\n".join(texts), np.cumsum([len(each) + 1 for each in texts]).tolist()
        return text, list(zip([0, *ends[:-1]], [*ends[:-1], len(text)], strict=True))

    def query(self, number: int) -> Query:
        draw = np.random.default_rng([self.seed, 1, number])
        document, text = self.document(int(draw.integers(self.documents)))
        passage = int(draw.integers(len(document.passages)))
        vector = document.passages[passage].vector
        vector = vector / np.linalg.norm(vector) + 1.2 * draw.standard_normal(DIM).astype(np.float32) / math.sqrt(DIM)
        span = document.passages[passage]
        words = draw.choice(text[span.start : span.end].split(), 6).tolist()
        return Query((vector / np.linalg.norm(vector)).astype(np.float32), words)

    def metadata(self, number: int) -> dict[str, str | int | float | bool]:
        return {"year": 1990 + number * 7919 % 36, "source": f"s{number * 104729 % 1000}"}

    def rows(self, info: StoreInfo, first: int = 0, count: int | None = None) -> Iterator[pa.RecordBatch]:
        stop = self.documents if count is None else min(first + count, self.documents)
        for start in range(first, stop, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, stop))
            made = {number: self.document(number) for number in numbers}
            hashes = {number: text_hash(text) for number, (_, text) in made.items()}
            # Documents of the same text, which are few, share an embedding.
            unique = {known: made[number][0] for number, known in hashes.items()}
            places = {known: place for place, known in enumerate(unique)}
            batch = to_batch(unique, info, {known: known for known in unique})
            documents = [
                Document(str(number), text, metadata=self.metadata(number)) for number, (_, text) in made.items()
            ]
            with mock.patch.object(columns, "words_as_text", _unstemmed):
                rows = to_table_rows(batch, [places[hashes[number]] for number in made], documents, info)
            yield rows


def _unstemmed(text: str) -> bytearray:
    """A text whose every word is its own stem."""
    return bytearray(" ".join(text.split()).encode())


def timed_queries(store: VectorStore, queries: list[Query]) -> tuple[list[float], list[list[str]]]:
    """Milliseconds and ids of each query."""
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        results = store.search(query, 10, Mixture())
        times.append(1000 * (time.perf_counter() - began))
        found.append([result.record.id for result in results])
    return times, found


def exact_ranking(store: lance.LanceStore, queries: list[Query]) -> list[list[str]]:
    """The ids of the first ten of all documents for each query: no index of vectors, no candidates, but a scan."""
    mixture, count = Mixture(), store.count()
    vectors = {id(query.vector): query.vector for query in queries}  # a query may be asked under several conditions
    places = {known: place for place, known in enumerate(vectors)}
    with store._latest() as table:
        there = table.schema.names
        words = {tuple(query.words): _words_of_all(table, query.words, count) for query in queries}
        allowed = {}
        for where in {query.where for query in queries} - {None}:
            sql = sql_of_query(Query(None, where=where), there)
            rows = table.search().where(sql).select(["id"]).with_row_id(True).limit(count).to_arrow()
            allowed[where] = np.sort(rows["_rowid"].to_numpy())
        best: list[list[tuple[float, str]]] = [[] for _ in queries]
        scan = table.search().select(["id", *SCORED]).with_row_id(True).limit(count)
        for part in scan.to_batches(ROWS_SCORED):
            rows = pa.Table.from_batches([part])
            ids, names = rows["_rowid"].to_numpy(), rows["id"].to_pylist()
            whole, passages = dense_scores(rows, np.stack(list(vectors.values())))
            dense = mixture.whole * whole + mixture.passages * passages
            for number, query in enumerate(queries):
                scale = mixture.words * word_scale(len(query.words), count)
                scores = dense[:, places[id(query.vector)]] + scale * words[tuple(query.words)](ids)
                if query.where is not None:
                    scores[~np.isin(ids, allowed[query.where])] = -np.inf
                first = np.argsort(-scores)[:10]
                found = [(float(scores[row]), names[row]) for row in first if scores[row] > -np.inf]
                best[number] = heapq.nlargest(10, [*best[number], *found])
    return [[name for _, name in those] for those in best]


def _words_of_all(table: Any, words: Sequence[str], count: int) -> Callable[[NDArray[np.uint64]], NDArray[np.float64]]:
    """BM25 of every row, by their ids; 0 where a row has none of the words."""
    found = lance.matching(table, words, count, None).scores  # of all, which no search asks for
    ids = np.fromiter(found, np.uint64, len(found))
    order = np.argsort(ids)
    ids, scores = ids[order], np.fromiter(found.values(), np.float64, len(found))[order]

    def of(rows: NDArray[np.uint64]) -> NDArray[np.float64]:
        places = np.minimum(np.searchsorted(ids, rows), max(len(ids) - 1, 0))
        return np.where(ids[places] == rows, scores[places], 0.0) if len(ids) else np.zeros(len(rows))

    return of


def written(world: World, store: VectorStore) -> dict[str, float]:
    """Seconds of CPU time in this process, and of the clock, to write a store in one step, and to make its indexes."""
    told: dict[str, float] = {}
    fields = fields_of(world.metadata(number) for number in range(2))
    for name, work in (
        ("to_write", lambda: store.add(world.rows(store.info), replaces=False, fields=fields)),
        ("to_index", store.refresh),
    ):
        began, worked = time.perf_counter(), time.process_time()
        work()
        told[f"seconds_{name}"] = round(time.perf_counter() - began, 1)
        told[f"cpu_seconds_{name}"] = round(time.process_time() - worked, 1)
    return told


def opened(where: Path | str, world: World) -> tuple[VectorStore, dict[str, float]]:
    """The store there; made where there is none, and what that took."""
    place = place_of(where)
    store = place.open_if_made()
    if store is not None and store.count():
        return store, {}
    store = store or place.create(StoreInfo("made up", "0" * 16, DIM))
    return store, written(world, store)


def measure(
    folder: Path, world: World, queries: int, scored: list[int], wheres: list[str | None], other: str | None = None
) -> dict[str, Any]:
    """Everything but the cold query. other: another store that is asked, where the folder's only gives the exact
    ranking."""
    result: dict[str, Any] = {"documents": world.documents, "queries": queries}
    exact_store, told = opened(folder, world)
    assert isinstance(exact_store, lance.LanceStore)
    store: VectorStore = exact_store
    if other is not None:
        store, told = opened(other, world)
    result |= told
    plain = [world.query(number) for number in range(queries)]
    conditions = [None if where is None else parse_where(where) for where in wheres]
    every = exact_ranking(exact_store, [replace(query, where=each) for each in conditions for query in plain])
    for place, where in enumerate(wheres):
        asked = [replace(query, where=conditions[place]) for query in plain]
        exact = every[place * queries : (place + 1) * queries]
        timed_queries(store, asked[:5])
        for number in scored:
            vars(sys.modules[type(store).__module__])["SCORED_EXACTLY"] = number
            worked = time.process_time()
            times, found = timed_queries(store, asked)
            worked = time.process_time() - worked
            shares = [len(set(some) & set(best)) / len(best) for some, best in zip(found, exact, strict=True) if best]
            result[f"{number} scored exactly" + (f", where {where}" if where else "")] = {
                "warm_ms": round(float(np.median(times)), 1),
                "p95_ms": round(float(np.percentile(times, 95)), 1),
                "cpu_ms": round(1000 * worked / queries, 1),
                "recall_at_10": round(float(np.mean(shares)), 4),
            }
    size = store.sizes().bytes
    return result | {"bytes": size, "bytes_a_document": round(size / world.documents)}


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
    parser.add_argument("--median-tokens", type=float, default=MEDIAN_TOKENS)
    parser.add_argument("--spread", type=float, default=SPREAD, help="Of the logarithm of a document's tokens.")
    parser.add_argument("--topics", type=int, default=TOPICS)
    parser.add_argument("--where", action="append", default=[], help="Ask again under this condition; may be repeated.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--store", help="Ask this one, postgresql://…; that in the folder gives the exact ranking.")
    parser.add_argument("--cold", action="store_true", help="Only answer one query and print its milliseconds.")
    options = parser.parse_args()
    if options.cold:
        print(cold(options.folder, options.documents))
        return
    world = World(options.documents, 0, options.median_tokens, options.spread, options.topics)
    result = measure(options.folder, world, options.queries, options.scored, [None, *options.where], options.store)
    if options.store:
        print(json.dumps(result, indent=2))
        return
    again = [sys.executable, __file__, "--cold", "--documents", str(options.documents), "--folder", str(options.folder)]
    cold_ms = [float(subprocess.run(again, capture_output=True, check=True, text=True).stdout) for _ in range(3)]
    print(json.dumps(result | {"cold_ms": float(np.median(cold_ms))}, indent=2))


if __name__ == "__main__":
    main()
