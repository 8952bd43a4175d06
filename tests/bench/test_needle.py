"""Needle in a haystack: documents are what they say they are, and systems with known eyesight give known curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords

from m2bert.bench.needle import Needles, haystack, read_needles, run_needle, spread
from m2bert.bench.systems import BM25System, EncoderSystem
from m2bert.encoders.cache import CachedEncoder
from m2bert.errors import M2BertError

# Every passage has 10 words; what the query asks for stands in one passage alone.
TOPICS = {f"q{number}": f"topic{number} theme{number}" for number in range(12)}
PASSAGES = {query_id: f"{topic} " + "filler " * 8 for query_id, topic in TOPICS.items()}
POOL = [f"other{number} " + "filler " * 9 for number in range(60)]
NEEDLES = Needles(TOPICS, PASSAGES, POOL)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_needle_stands_where_it_is_said_to_and_nothing_else_moves() -> None:
    tasks = [haystack(NEEDLES, 8, position) for position in range(8)]
    for position, task in enumerate(tasks):
        for query_id, passage in PASSAGES.items():
            parts = task.corpus[f"doc-{query_id}"].split("\n\n")
            assert len(parts) == len(set(parts)) == 8 and parts.pop(position) == passage
            assert parts == tasks[0].corpus[f"doc-{query_id}"].split("\n\n")[1:]
            assert set(parts) <= set(POOL)
        assert task.qrels == {query_id: {f"doc-{query_id}": 1} for query_id in TOPICS}
    longer = haystack(NEEDLES, 20, 0).corpus["doc-q3"].split("\n\n")
    assert longer[:8] == tasks[0].corpus["doc-q3"].split("\n\n")
    assert haystack(NEEDLES, 8, 0, seed=1).corpus != tasks[0].corpus


def test_places_are_spread_from_the_first_to_the_last() -> None:
    assert spread(40, 40) == list(range(40)) and spread(5, 40) == [0, 1, 2, 3, 4]
    assert spread(40, 5) == [0, 10, 20, 29, 39] and spread(1, 5) == [0] and spread(9, 1) == [0]


def test_an_encoder_that_reads_the_beginning_falls_off_a_cliff_and_bm25_does_not() -> None:
    """With 25 of 80 words read, places 0 and 1 are whole and place 2 has its topic words; beyond is nothing."""
    systems = [EncoderSystem(BagOfWords(limit=25)), EncoderSystem(BagOfWords()), BM25System()]
    systems[1].encoder.name = "whole"
    report = run_needle(NEEDLES, systems, passages=[8], metrics=["RR@1", "nDCG@10"])
    curves = {system.name: [cell.metrics["RR@1"] for cell in system.cells] for system in report.systems}
    assert curves["whole"] == curves["BM25"] == [1.0] * 8
    assert curves["bag-of-words"][:3] == [1.0] * 3 and max(curves["bag-of-words"][3:]) < 0.5
    cut = report.systems[0]
    assert (cut.cells[0].tokens, cut.cells[0].truncated) == (80.0, 12)
    assert cut.averages[8].mean == pytest.approx(sum(curves["bag-of-words"]) / 8)
    assert cut.averages[8].low <= cut.averages[8].mean <= cut.averages[8].high
    assert report.systems[2].cells[0].tokens is None
    assert [cell.position for cell in cut.cells] == list(range(8))


def test_lengths_have_curves_of_their_own() -> None:
    report = run_needle(
        NEEDLES, [EncoderSystem(BagOfWords(limit=25))], passages=[20, 2, 8], positions=3, metrics=["RR@1"]
    )
    (system,) = report.systems
    assert [(cell.passages, cell.position) for cell in system.cells] == [
        (2, 0), (2, 1), (8, 0), (8, 4), (8, 7), (20, 0), (20, 10), (20, 19),
    ]  # fmt: skip
    assert system.averages[2].mean == 1.0 > system.averages[8].mean
    assert json.loads(json.dumps(report.to_dict()))["systems"][0]["averages"]["8"]["mean"] < 0.7


def test_pairs_and_tasks_are_read(tmp_path: Path) -> None:
    pairs = [{"query": f"ask {n}", "positive": f"tell {n // 2}", "dataset": "ab"[n % 2]} for n in range(40)]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": "one"}, {"passage": "two"}, {"positive": "tell 3"}])
    found = read_needles(path, [more], num_queries=10)
    assert len(found.queries) == 10 and len(set(found.passages.values())) == 10
    assert all(found.passages[q] == f"tell {int(found.queries[q].split()[1]) // 2}" for q in found.queries)
    assert not set(found.passages.values()) & set(found.distractors)
    assert set(found.passages.values()) | set(found.distractors) == {f"tell {n}" for n in range(20)} | {"one", "two"}
    assert all(int(query.split()[1]) % 2 for query in read_needles(path, dataset="b").queries.values())
    assert read_needles(path, num_queries=10, seed=1).queries != found.queries

    folder = tmp_path / "task"
    folder.mkdir()
    documents = [{"pid": f"p{n}", "passage": None if n == 7 else f"text {n}"} for n in range(9)]
    write_jsonl(folder / "documents.jsonl", documents)
    queries = [{"qid": f"q{n}", "query": f"ask {n}", "answer_pids": [f"p{n}", "p8"]} for n in range(8)]
    write_jsonl(folder / "queries.jsonl", queries)
    found = read_needles(folder)
    assert found.passages["q0"] == "text 0" and found.passages["q7"] == "text 8" and not found.distractors


def test_a_cached_run_gives_the_same_report_and_encodes_nothing(tmp_path: Path) -> None:
    class Counting(BagOfWords):
        calls = 0

        def encode_documents(self, texts: Any, *, passages: bool = True, progress: Any = None) -> Any:
            self.calls += len(texts)
            return super().encode_documents(texts, passages=passages, progress=progress)

    encoder = Counting(limit=25)
    seen: list[float] = []

    def repeat() -> Any:
        seen.clear()
        system = EncoderSystem(CachedEncoder(encoder, tmp_path))
        return run_needle(NEEDLES, [system], passages=[4], on_progress=lambda _, part: seen.append(part))

    first = repeat()
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert repeat() == first and encoder.calls == 4 * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passages": [62]}, "62 passages need 61 distractors, got 60"),
        ({"passages": [0]}, "must be at least 1"),
        ({"metrics": ["MAP"]}, "a metric must be one of"),
        ({"systems": []}, "systems of different names, got none"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(M2BertError, match=message):
        run_needle(NEEDLES, **{"systems": [BM25System()], **change})


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    for name, rows, message in [
        ("a.txt", [{}], "must be a .jsonl"),
        ("a.jsonl", [{"query": "x"}], "column 'positive' must be text"),
        ("b.jsonl", [{"query": "x", "positive": "y"}], "at least 2 queries"),
    ]:
        with pytest.raises(M2BertError, match=message):
            read_needles(write_jsonl(tmp_path / name, rows))
