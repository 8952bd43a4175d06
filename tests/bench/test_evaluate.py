"""Evaluation end to end with encoders whose rankings are known, and the reports it writes."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bag_of_words import BagOfWords
from tiny import story, tiny_embedder

import m2bert.bench.systems
from m2bert.bench.evaluate import evaluate_loco, evaluate_tasks
from m2bert.bench.systems import BM25System, EncoderSystem, Fusion, Ranking
from m2bert.bench.tasks import RetrievalTask
from m2bert.errors import M2BertError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "retrieval.md"
METRICS = ["nDCG@10", "R@10", "RR@10"]


def make_task(name="animals", **changes):
    corpus = {
        "a": "the cat sat on the mat and purred all day long",
        "b": "the dog barked",
        "c": "a horse ran over fields and hills and fences until night fell",
    }
    queries = {"q1": "cat purred", "q2": "dog barked", "q3": "horse fields"}
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}}
    return RetrievalTask(
        **{"name": name, "split": "test", "corpus": corpus, "queries": queries, "qrels": qrels, **changes}
    )


class Constant(BagOfWords):
    """An encoder that has learnt nothing: every text has one and the same embedding."""

    name = "constant"

    def vector(self, text):
        return np.full(8, 0.1, dtype=np.float32)


class Opposite(BagOfWords):
    """Queries point away from the documents that share their words: the worst ranking."""

    name = "opposite"

    def encode(self, texts, *, progress=None):
        return -super().encode(texts, progress=progress)


class Broken(BagOfWords):
    """Gives the value for texts with a certain word."""

    def __init__(self, word, value):
        super().__init__()
        self.word, self.value = word, value

    def vector(self, text):
        vector = super().vector(text)
        return np.full_like(vector, self.value) if self.word in text else vector


def systems_of(report, task=0):
    return {system.name: system for system in report.tasks[task].systems}


def test_right_rankings_score_one_for_encoder_and_bm25():
    report = evaluate_tasks([make_task()], [EncoderSystem(BagOfWords()), BM25System()], metrics=METRICS)
    assert [system.name for system in report.tasks[0].systems] == ["bag-of-words", "BM25"]
    for system in report.tasks[0].systems:
        assert system.metrics == {"nDCG@10": 1.0, "R@10": 1.0, "RR@10": 1.0}
        assert list(system.per_query) == ["q1", "q2", "q3"]


def test_useless_encoders_score_what_they_deserve():
    """Negative control. All ties: documents come as c, b, a, so the answers stand at ranks 3, 2, 1."""
    systems = [EncoderSystem(Constant()), EncoderSystem(Opposite())]
    report = evaluate_tasks([make_task()], systems, metrics=["nDCG@10", "RR@1"])
    tied, worst = report.tasks[0].systems
    by_hand = [1 / math.log2(4), 1 / math.log2(3), 1.0]
    assert [row["nDCG@10"] for row in tied.per_query.values()] == pytest.approx(by_hand, abs=1e-9)
    assert tied.metrics["RR@1"] == pytest.approx(1 / 3)
    assert worst.metrics["nDCG@10"] == pytest.approx(1 / math.log2(4), abs=1e-9)
    assert worst.metrics["RR@1"] == 0.0


def test_similarity_is_the_cosine():
    class Long(BagOfWords):
        def vector(self, text):
            return super().vector(text) * (1000.0 if "dog" in text else 0.001)

    report = evaluate_tasks([make_task()], [EncoderSystem(Long())], metrics=["RR@1"])
    assert report.tasks[0].systems[0].metrics["RR@1"] == 1.0


def test_lengths_and_truncation_are_counted():
    task = make_task()
    counts = [len(text.split()) for text in task.corpus.values()]
    assert counts == [11, 3, 12]
    whole = evaluate_tasks([task], [EncoderSystem(BagOfWords(max_tokens=8))]).tasks[0].systems[0].lengths
    assert (whole.mean_tokens, whole.max_tokens) == (sum(counts) / 3, 12)
    assert (whole.num_windowed, whole.num_truncated, whole.tokens_lost) == (2, 0, 0)
    cut = evaluate_tasks([task], [EncoderSystem(BagOfWords(limit=5))]).tasks[0].systems[0].lengths
    assert (cut.num_truncated, cut.tokens_lost) == (2, 6 + 7)
    assert (cut.mean_tokens, cut.max_tokens) == (whole.mean_tokens, whole.max_tokens)


def test_slices_keep_the_order_and_the_progress(monkeypatch):
    corpus = {f"d{i}": f"word{i} common" for i in range(23)}
    queries = {f"q{i}": f"word{i}" for i in range(23)}
    task = make_task(corpus=corpus, queries=queries, qrels={f"q{i}": {f"d{i}": 1} for i in range(23)})
    whole = evaluate_tasks([task], [EncoderSystem(BagOfWords())], metrics=["RR@1"])
    monkeypatch.setattr(m2bert.bench.systems, "DOCUMENTS_ENCODED_AT_ONCE", 5)
    seen = {}
    sliced = evaluate_tasks(
        [task],
        [EncoderSystem(BagOfWords()), BM25System()],
        metrics=["RR@1"],
        on_progress=lambda label, fraction: seen.setdefault(label, []).append(fraction),
    )
    assert sliced.tasks[0].systems[0].per_query == whole.tasks[0].systems[0].per_query
    assert sliced.tasks[0].systems[0].metrics["RR@1"] == 1.0
    labels = ["animals: bag-of-words, queries", "animals: bag-of-words, documents", "animals: BM25"]
    assert list(seen) == labels
    for fractions in seen.values():
        assert fractions == sorted(fractions)
        assert fractions[-1] == pytest.approx(1.0)
    assert len(seen[labels[1]]) == 23


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_stops_the_run_by_name(value):
    with pytest.raises(M2BertError, match=r"by bag-of-words of document of animals 'b' is not finite"):
        evaluate_tasks([make_task()], [EncoderSystem(Broken("the dog", value))])
    with pytest.raises(M2BertError, match=r"query of animals 'q3' is not finite"):
        evaluate_tasks([make_task()], [EncoderSystem(Broken("horse fields", value))])


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_text_that_the_encoder_refuses_is_named_by_its_id(number):
    class Picky(BagOfWords):
        def encode_documents(self, texts, *, passages=True, progress=None):
            for place, text in enumerate(texts):
                if f"word{number} " in text:
                    raise M2BertError(f"Embedder: text {place} has 9 tokens; use overflow='window'")
            return super().encode_documents(texts, passages=passages, progress=progress)

    corpus = {f"d{i}": f"word{i} common" for i in range(7)}
    task = make_task(corpus=corpus, queries={"q": "word0"}, qrels={"q": {"d0": 1}})
    with pytest.raises(
        M2BertError, match=rf"document of animals 'd{number}' cannot be encoded. Embedder: text 0 has 9"
    ):
        evaluate_tasks([task], [EncoderSystem(Picky())])


def test_a_refusal_that_is_not_about_one_text_is_passed_on():
    class Moody(BagOfWords):
        def encode(self, texts, *, progress=None):
            if len(texts) > 2:
                raise M2BertError("Embedder: out of sorts")
            return super().encode(texts)

    with pytest.raises(M2BertError, match=r"^Embedder: out of sorts$"):
        evaluate_tasks([make_task()], [EncoderSystem(Moody())])


def test_the_embedder_of_this_package_is_an_encoder():
    """Windows of 64 tokens, two of them [CLS] and [SEP]: a longer document is windowed, cut or refused."""
    task = make_task(
        corpus={"long": story(300), "short": "paper engine market"},
        queries={"q": "paper engine"},
        qrels={"q": {"short": 1}},
    )
    windowed, cut = (
        evaluate_tasks([task], [EncoderSystem(tiny_embedder(overflow=overflow))]).tasks[0].systems[0].lengths
        for overflow in ("window", "truncate")
    )
    assert windowed.max_tokens == cut.max_tokens > 300
    assert (windowed.num_windowed, windowed.num_truncated, windowed.tokens_lost) == (1, 0, 0)
    assert (cut.num_windowed, cut.num_truncated, cut.tokens_lost) == (0, 1, cut.max_tokens - 62)
    with pytest.raises(M2BertError, match="document of animals 'long' cannot be encoded"):
        evaluate_tasks([task], [EncoderSystem(tiny_embedder(overflow="error"))])
    damaged = tiny_embedder()
    with torch.no_grad():
        next(damaged._model.parameters()).fill_(math.nan)
    with pytest.raises(M2BertError, match=r"query of animals 'q' cannot be encoded.*finite"):
        evaluate_tasks([task], [EncoderSystem(damaged)])


def test_embeddings_without_direction_or_of_a_wrong_shape_are_refused():
    with pytest.raises(M2BertError, match=r"document of animals 'b' is zero"):
        evaluate_tasks([make_task()], [EncoderSystem(Broken("the dog", 0.0))])

    class Short(BagOfWords):
        def encode(self, texts, *, progress=None):
            return super().encode(texts)[1:]

    with pytest.raises(M2BertError, match=r"must have shape \(3, dim\), got \(2, 4096\)"):
        evaluate_tasks([make_task()], [EncoderSystem(Short())])


def test_evaluation_edits_nothing():
    task = make_task()
    before = copy.deepcopy(task)
    evaluate_tasks([task], [EncoderSystem(BagOfWords()), BM25System()], metrics=METRICS)
    assert task == before


def test_bad_requests_are_refused():
    task, system = make_task(), EncoderSystem(BagOfWords())
    for tasks, systems, metrics, message in [
        ([], [system], METRICS, "at least one task"),
        ([task], [], METRICS, "systems of different names, got none"),
        ([task], [system, system], METRICS, "got bag-of-words, bag-of-words"),
        ([task], [system], ["MAP"], "a metric must be one of"),
        ([task], [system], [], "at least one metric"),
    ]:
        with pytest.raises(M2BertError, match=message):
            evaluate_tasks(tasks, systems, metrics=metrics)


def test_report_holds_what_is_needed_to_repeat_it(tmp_path):
    tasks = [make_task(), make_task("damaged", qrels={"q1": {"b": 1}, "q2": {"b": 1}, "q3": {"c": 1}})]
    report = evaluate_tasks(tasks, [EncoderSystem(BagOfWords()), BM25System()], metrics=["RR@1"])
    report.save(tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert saved["means"] == {name: {"RR@1": pytest.approx(5 / 6)} for name in ("bag-of-words", "BM25")}
    assert [task["data_fingerprint"] for task in saved["tasks"]] == [task.fingerprint for task in tasks]
    assert saved["tasks"][0]["data_fingerprint"] != saved["tasks"][1]["data_fingerprint"]
    encoder, bm25 = saved["tasks"][1]["systems"]
    assert encoder["fingerprint"] == BagOfWords.fingerprint
    assert encoder["lengths"]["num_truncated"] == 0
    assert "k1=1.2, b=0.75" in bm25["fingerprint"]
    assert bm25["per_query"]["q1"] == {"RR@1": 0.0}
    assert {"m2bert", "python", "numpy", "bm25s", "pytrec-eval-terrier"} <= set(saved["versions"])
    assert "document id descending" in saved["settings"]["tie_rule"]
    assert saved["settings"]["depth"] == 1


@pytest.mark.parametrize("by", ["scores", "ranks"])
def test_fusion_mends_what_one_member_gets_wrong(by):
    """The answer a has ranks 1 and 2, the rival c has 3 and 1: 1/61 + 1/62 > 1/63 + 1/61, and of the scores
    1, 1/2, 1/3, brought to 1, 1/4, 0, 1 + 1/4 > 0 + 1."""
    task = make_task(queries={"q": "x"}, qrels={"q": {"a": 1}})

    class Fixed:
        def __init__(self, name, order):
            self.name, self.order = name, order

        def rank(self, task, depth, on_progress):
            return Ranking({"q": {doc: 1.0 / place for place, doc in enumerate(self.order, 1)}}, self.name)

    systems = [Fixed("one", "abc"), Fixed("two", "cab")]
    fusion = Fusion("both", ("one", "two"), by=by)
    report = evaluate_tasks([task], systems, fusions=[fusion], metrics=["RR@10"], baseline="two")
    assert {name: system.metrics["RR@10"] for name, system in systems_of(report).items()} == {
        "one": 1.0,
        "two": 0.5,
        "both": 1.0,
    }
    assert report.comparison.overall["both"]["RR@10"].difference == 0.5
    assert report.buckets == []
    with pytest.raises(M2BertError, match="both needs one, two, got one"):
        evaluate_tasks([task], systems[:1], fusions=[fusion])
    with pytest.raises(M2BertError, match="fused by scores or ranks, got 'votes'"):
        Fusion("both", ("one", "two"), by="votes")
    first = Fusion("both", ("one", "two"), depth=1, by=by)
    # The first of each, a and c, are level, and the tie goes to c.
    report = evaluate_tasks([task], systems, fusions=[first], metrics=["RR@10"])
    assert systems_of(report)["both"].metrics["RR@10"] == 0.5


def test_buckets_go_by_the_longest_answer_in_the_tokens_of_the_encoder():
    task = make_task(corpus={"a": "cat " * 2047, "b": "dog " * 2048, "c": "horse"}, qrels={
        "q1": {"a": 1}, "q2": {"b": 1, "c": 1}, "q3": {"c": 1}})  # fmt: skip
    report = evaluate_tasks([task], [BM25System(), EncoderSystem(BagOfWords())], metrics=["RR@1"])
    assert report.tasks[0].answer_tokens == {"q1": 2047, "q2": 2048, "q3": 1}
    assert [(bucket.name, bucket.num_queries) for bucket in report.buckets] == [("<2k", 2), ("2-8k", 1)]


def test_report_that_cannot_be_written_says_so(tmp_path):
    report = evaluate_tasks([make_task()], [BM25System()])
    with pytest.raises(M2BertError, match=r"cannot write .*nowhere"):
        report.save(tmp_path / "nowhere" / "report.json")


def test_folder_is_read_and_checked_before_anything_is_encoded(tmp_path):
    class Untouched(BagOfWords):
        def encode(self, texts, *, progress=None):
            raise AssertionError("encoded before all tasks were read")

    for name, answer in (("good", "d1"), ("bad", "d9")):
        folder = tmp_path / name / "test"
        folder.mkdir(parents=True)
        (folder / "documents.jsonl").write_text(json.dumps({"pid": "d1", "passage": "x"}))
        (folder / "queries.jsonl").write_text(json.dumps({"qid": "q", "query": "x", "answer_pids": [answer]}))
    with pytest.raises(M2BertError, match="'d9' of query 'q' is no document"):
        evaluate_loco(tmp_path, ["good", "bad"], Untouched())
    report = evaluate_loco(tmp_path, ["good"], BagOfWords(), bm25=False)
    assert list(systems_of(report)) == ["bag-of-words"]


def test_docs_example_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], str(DOCS), "exec"), {})
    assert capsys.readouterr().out == "{'nDCG@10': 1.0, 'R@10': 1.0}\n"


def test_vectors_and_counts_are_all_that_evaluation_asks_for():
    """No passages are asked for or read, so that any encoder can be adapted in a few lines."""

    class Bare(BagOfWords):
        def encode_documents(self, texts, *, passages=True, progress=None):
            assert passages is False
            counts = {"num_tokens": 1, "num_windows": 1, "num_truncated": 0}
            return [SimpleNamespace(vector=self.vector(text), **counts) for text in texts]

    bare, full = (
        evaluate_tasks([make_task()], [EncoderSystem(encoder)], metrics=METRICS).tasks[0].systems[0].metrics
        for encoder in (Bare(), BagOfWords())
    )
    assert bare == full and full["RR@10"] > 0
