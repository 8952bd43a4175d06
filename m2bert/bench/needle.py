"""Needle in a haystack: does a system find a document by one passage of it, wherever in the document that stands?

The paper's study (section 5.1, appendix A.7, table 15): the passage that answers a query is merged with 39 passages
that do not, and stands at place 0, 1, ... 39; every place is an evaluation of its own. What the paper leaves open is
fixed here and written into every run:

    distractors   drawn once per query, without repetition, by the seed and the query's id alone; the same passages in
                  the same order for every place and system, so that only the place of the needle differs. They never
                  answer a chosen query, and a document of n passages has the first n - 1 of them
    corpus        one merged document per query and nothing else; each query has one right answer
    separator     a blank line
    metric        nDCG@10 first, as everywhere in the paper; others on request

Test: tests/bench/test_needle.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2bert.bench.systems import Progress, System
from m2bert.bench.tasks import RetrievalTask
from m2bert.errors import M2BertError
from m2bert.jsonl import is_jsonl, read_jsonl
from m2bert.provenance import provenance
from m2bert.ranking.metrics import TIE_RULE, largest_cutoff, mean_over_queries, score_run
from m2bert.ranking.significance import Estimate, compare_systems

RUN_VERSION = 1
PASSAGES, POSITIONS, QUERIES = 40, 40, 100
SEPARATOR = "\n\n"
DEFAULT_METRICS = ("nDCG@10", "RR@10")
TEXT_COLUMNS = ("passage", "positive", "text")


@dataclass(frozen=True)
class Needles:
    """queries: query_id -> text; passages: query_id -> the passage that answers it; distractors: other passages."""

    queries: Mapping[str, str]
    passages: Mapping[str, str]
    distractors: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over all texts."""
        parts = [*map(str, self.queries.items()), *map(str, self.passages.items()), *self.distractors]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """One system, one length, one place: means over the queries, and the documents' mean length in tokens.

    tokens: as the system counts them (None for one that does not); truncated: documents that it read in part.
    per_query: {query_id: value of the first metric}.
    """

    passages: int
    position: int
    metrics: dict[str, float]
    tokens: float | None
    truncated: int
    per_query: dict[str, float]


@dataclass(frozen=True)
class NeedleResult:
    """One system: its cells, and for every length the first metric's mean over places with its 95 % interval.

    The interval draws queries, each with all its places: the same queries stand in every cell.
    """

    name: str
    fingerprint: str
    cells: list[Cell]
    averages: dict[int, Estimate]


@dataclass(frozen=True)
class NeedleReport:
    """All systems, what the documents were made of, and what is needed to repeat the numbers."""

    systems: list[NeedleResult]
    settings: dict[str, Any]
    data_fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """A run of kind "needle", as plain data for JSON."""
        return {"kind": "needle", "version": RUN_VERSION, **asdict(self), **provenance()}


def read_needles(
    needles: Path | str,
    distractors: Sequence[Path | str] = (),
    *,
    dataset: str | None = None,
    num_queries: int = QUERIES,
    seed: int = 0,
) -> Needles:
    """Queries with their passages, and passages to hide them among.

    needles: a JSON-lines file with `query` and `positive`, or a folder with `documents` and `queries` in LoCoV1's
    columns; of several answers the first counts. No two of the `num_queries` queries drawn share a passage, and
    passages that answer none of them are distractors, as is every `passage`, `positive` or `text` of the
    `distractors` files. dataset: take only rows of `needles` whose column `dataset` says so. Raises M2BertError for
    other files and too few rows.
    """
    place = Path(needles)
    pairs, passages = _read_folder(place, dataset) if place.is_dir() else _read_pairs(place, dataset)
    chosen: dict[str, str] = {}
    for query_id in sorted(pairs, key=lambda query_id: _draw(f"{seed}/{query_id}").random()):
        # A passage that answers two queries would make two right documents of which one counts as wrong.
        if len(chosen) < num_queries and pairs[query_id][1] not in chosen.values():
            chosen[query_id] = pairs[query_id][1]
    if len(chosen) < 2:
        raise M2BertError(f"needle: needs at least 2 queries to tell apart, got {len(chosen)} of {place}; give more")
    pool = dict.fromkeys(passages)
    for file in distractors:
        pool |= dict.fromkeys(_read_texts(Path(file)))
    answers, ids = set(chosen.values()), sorted(chosen)
    left = [text for text in pool if text not in answers]
    return Needles({q: pairs[q][0] for q in ids}, {q: chosen[q] for q in ids}, left)


def _draw(key: str) -> random.Random:
    """A generator that depends on the key alone: the same numbers in every version of Python."""
    return random.Random(key)


def _read_pairs(path: Path, dataset: str | None) -> tuple[dict[str, tuple[str, str]], list[str]]:
    if not is_jsonl(path):
        raise M2BertError(f"needle: {path} must be a .jsonl or .jsonl.gz file, or a folder of a task's split")
    pairs: dict[str, tuple[str, str]] = {}
    for number, (where, row) in enumerate(read_jsonl(path, who="needle")):
        if dataset in (None, row.get("dataset")):
            pairs[f"{number:08d}"] = (_text(row, "query", where), _text(row, "positive", where))
    return pairs, [passage for _, passage in pairs.values()]


def _read_folder(folder: Path, dataset: str | None) -> tuple[dict[str, tuple[str, str]], list[str]]:
    def rows(part: str) -> Iterator[tuple[str, dict[str, Any]]]:
        files = [folder / f"{part}{suffix}" for suffix in (".jsonl.gz", ".jsonl")]
        for where, row in read_jsonl(next((file for file in files if file.is_file()), files[1]), who="needle"):
            if dataset in (None, row.get("dataset")):
                yield where, row

    documents = {_text(row, "pid", where): row.get("passage") or "" for where, row in rows("documents")}
    pairs = {}
    for where, row in rows("queries"):
        answers = [documents.get(pid, "") for pid in row.get("answer_pids") or []]
        passage = next((text for text in answers if text.strip()), None)
        if passage is not None:
            pairs[_text(row, "qid", where)] = (_text(row, "query", where), passage)
    return pairs, [text for text in documents.values() if text.strip()]


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise M2BertError(f"needle: {where}: column {column!r} must be text that is not empty, got {value!r:.40}")
    return value


def _read_texts(path: Path) -> list[str]:
    texts = []
    for where, row in read_jsonl(path, who="needle"):
        column = next((name for name in TEXT_COLUMNS if name in row), TEXT_COLUMNS[0])
        if row.get(column) is not None:
            texts.append(_text(row, column, where))
    return texts


def spread(passages: int, positions: int) -> list[int]:
    """`positions` places of 0 .. passages - 1, evenly from the first to the last; all where there are no more."""
    count = min(passages, positions)
    if count <= 1:
        return [0]
    return [(2 * number * (passages - 1) + count - 1) // (2 * (count - 1)) for number in range(count)]


def haystack(
    needles: Needles, passages: int, position: int, *, seed: int = 0, separator: str = SEPARATOR
) -> RetrievalTask:
    """The task in which every query's passage stands at `position` (from 0) of `passages`.

    Raises M2BertError if there are fewer than passages - 1 distractors.
    """
    if len(needles.distractors) < passages - 1:
        raise M2BertError(
            f"needle: {passages} passages need {passages - 1} distractors, got {len(needles.distractors)}; "
            "add files with --distractors or ask for fewer --passages"
        )
    corpus = {}
    for query_id, passage in needles.passages.items():
        parts = _distractors(needles.distractors, passages - 1, f"{seed}/{query_id}")
        corpus[f"doc-{query_id}"] = separator.join([*parts[:position], passage, *parts[position:]])
    qrels = {query_id: {f"doc-{query_id}": 1} for query_id in needles.queries}
    return RetrievalTask(f"needle {position} of {passages}", "test", corpus, needles.queries, qrels)


def _distractors(pool: Sequence[str], count: int, key: str) -> list[str]:
    """`count` different passages; a longer draw with the same key begins with a shorter one."""
    generator, found = _draw(key), dict[int, None]()
    while len(found) < count:
        found[int(generator.random() * len(pool))] = None
    return [pool[number] for number in found]


def run_needle(
    needles: Needles,
    systems: Sequence[System],
    *,
    passages: Sequence[int] = (PASSAGES,),
    positions: int = POSITIONS,
    metrics: Sequence[str] = DEFAULT_METRICS,
    separator: str = SEPARATOR,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> NeedleReport:
    """Score every system at every place of documents of every length (in passages).

    on_progress: called with the system's name and the part of its cells that is done. Raises M2BertError for
    unknown metrics, no or equally named systems, lengths below 1, too few distractors; and as systems do.
    """
    depth = largest_cutoff(metrics)
    names = [system.name for system in systems]
    if not names or len(set(names)) != len(names):
        raise M2BertError(f"needle: needs systems of different names, got {', '.join(names) or 'none'}")
    if not passages or min(passages) < 1 or positions < 1:
        raise M2BertError(f"needle: passages and positions must be at least 1, got {list(passages)} and {positions}")
    places = [(count, place) for count in sorted(set(passages)) for place in spread(count, positions)]
    haystack(needles, max(passages), 0, seed=seed)
    results = []
    for system in systems:
        cells, fingerprint = [], ""
        for number, (count, place) in enumerate(places):
            task = haystack(needles, count, place, seed=seed, separator=separator)
            progress = _within(on_progress, f"needle: {system.name}", number, len(places))
            cell, fingerprint = _score(system, task, count, place, metrics, depth, progress)
            cells.append(cell)
        results.append(NeedleResult(system.name, fingerprint, cells, _averages(system.name, cells)))
    settings = {
        "metrics": list(metrics), "passages": sorted(set(passages)), "positions": positions, "seed": seed,
        "separator": separator, "num_queries": len(needles.queries), "num_distractors": len(needles.distractors),
        "corpus": "one merged document per query", "tie_rule": TIE_RULE,
        "distractors": "drawn by seed and query id, the same for every place and system",
    }  # fmt: skip
    return NeedleReport(results, settings, needles.fingerprint)


def _within(on_progress: Progress | None, label: str, number: int, count: int) -> Progress:
    """Progress of one cell as a part of all of them; a system reports queries and documents under labels of its own."""

    def progress(stage: str, fraction: float) -> None:
        if on_progress is not None and not stage.endswith("queries"):
            on_progress(label, (number + fraction) / count)

    return progress


def _score(
    system: System, task: RetrievalTask, count: int, place: int, metrics: Sequence[str], depth: int, progress: Progress
) -> tuple[Cell, str]:
    ranking = system.rank(task, depth, progress)
    values = score_run(task.qrels, ranking.run, metrics)
    tokens = None if ranking.lengths is None else round(ranking.lengths.mean_tokens, 1)
    truncated = 0 if ranking.lengths is None else ranking.lengths.num_truncated
    first = {query_id: row[metrics[0]] for query_id, row in values.items()}
    return Cell(count, place, mean_over_queries(values), tokens, truncated, first), ranking.fingerprint


def _averages(name: str, cells: Sequence[Cell]) -> dict[int, Estimate]:
    """The mean over places by number of passages; each query counts with its mean over them."""
    averages = {}
    for count in sorted({cell.passages for cell in cells}):
        rows = [cell.per_query for cell in cells if cell.passages == count]
        means = {query_id: {"mean": sum(row[query_id] for row in rows) / len(rows)} for query_id in rows[0]}
        averages[count] = compare_systems({"needle": {name: means}}).overall[name]["mean"]
    return averages
