"""Loading of retrieval tasks: three layouts, QASPER's null passages, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import json

import pytest

from m2bert.bench.tasks import LOCO_TASKS, build_task, choose_tasks, find_tasks, load_task
from m2bert.errors import M2BertError

DOCUMENTS = [
    {"dataset": "pets", "pid": "d1", "passage": "cats purr"},
    {"dataset": "pets", "pid": "d2", "passage": "dogs bark — wuff"},
]
QUERIES = [
    {"dataset": "pets", "qid": "q1", "query": "what purrs?", "answer_pids": ["d1"]},
    {"dataset": "pets", "qid": "q2", "query": "what is a pet?", "answer_pids": ["d1", "d2"]},
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def build(documents=DOCUMENTS, queries=QUERIES):
    def rows(kind, table):
        return [(f"{kind}:{number}", row) for number, row in enumerate(table, 1)]

    return build_task("pets", "test", rows("documents", documents), rows("queries", queries))


def changed(table, row, **columns):
    return [{**old, **columns} if number == row else old for number, old in enumerate(table)]


def test_loco_table_has_the_sizes_of_the_paper():
    assert len(LOCO_TASKS) == 12
    for index, (train, test) in enumerate([(49456, 7734), (65862, 15075)]):
        assert sum(task.train_size[index] for task in LOCO_TASKS.values()) == train
        assert sum(task.test_size[index] for task in LOCO_TASKS.values()) == test
    assert LOCO_TASKS["qmsum"].title == "QMSUM"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("layout", ["pets/test/{}", "{}/pets_test", "{}"])
def test_every_layout_gives_the_same_task(tmp_path, layout, suffix):
    strangers = [{**DOCUMENTS[0], "dataset": "cars"}] if layout == "{}" else []
    write(tmp_path / (layout.format("documents") + suffix), DOCUMENTS + strangers)
    other = [{**QUERIES[0], "dataset": "cars"}] if layout == "{}" else []
    write(tmp_path / (layout.format("queries") + suffix), other + QUERIES)
    found = find_tasks(tmp_path)
    assert list(found) == (["cars", "pets"] if layout == "{}" else ["pets"])
    task = load_task("pets", found["pets"])
    assert task.corpus == {"d1": "cats purr", "d2": "dogs bark — wuff"}
    assert task.queries == {"q1": "what purrs?", "q2": "what is a pet?"}
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d1": 1, "d2": 1}}
    assert task.fingerprint == build().fingerprint


def test_null_passages_are_dropped_and_counted_with_their_queries():
    documents = [*DOCUMENTS, {"pid": "d3", "passage": None}, {"pid": "d4", "passage": " \n"}]
    queries = [
        *QUERIES,
        {"qid": "q3", "query": None, "answer_pids": ["d3"]},
        {"qid": "q4", "query": "two answers, one without text", "answer_pids": ["d4", "d2"]},
    ]
    task = build(documents, queries)
    assert (task.num_dropped_documents, task.num_dropped_queries) == (2, 1)
    assert list(task.corpus) == ["d1", "d2"]
    assert task.qrels["q4"] == {"d2": 1}
    assert "q3" not in task.queries


def test_fingerprint_depends_on_the_data_and_not_on_its_order():
    fingerprint = build().fingerprint
    assert build(DOCUMENTS[::-1], QUERIES[::-1]).fingerprint == fingerprint
    others = {
        build(changed(DOCUMENTS, 0, passage="cats purr.")).fingerprint,
        build(changed(DOCUMENTS, 1, pid="d3"), changed(QUERIES, 1, answer_pids=["d3"])).fingerprint,
        build(queries=changed(QUERIES, 0, query="what purrs")).fingerprint,
        build(queries=changed(QUERIES, 1, answer_pids=["d2"])).fingerprint,
    }
    assert len(others | {fingerprint}) == 5


@pytest.mark.parametrize(
    ("documents", "queries", "message"),
    [
        (changed(DOCUMENTS, 1, pid="d1"), QUERIES, r"documents:2: every pid must be unique, got 'd1' again"),
        (DOCUMENTS, changed(QUERIES, 1, qid="q1"), r"queries:2: every qid must be unique, got 'q1' again"),
        (DOCUMENTS, changed(QUERIES, 0, answer_pids=[]), r"queries:1: query 'q1' has no relevant document"),
        (DOCUMENTS, changed(QUERIES, 0, answer_pids=["d9"]), r"answer 'd9' of query 'q1' is no document"),
        (
            DOCUMENTS,
            changed(QUERIES, 0, answer_pids="d1"),
            r"answer_pids must be a list of document ids, got 'd1'",
        ),
        (DOCUMENTS, changed(QUERIES, 0, answer_pids=[1]), r"answer_pids must be a list of document ids"),
        (DOCUMENTS, changed(QUERIES, 0, query=" "), r"queries:1: query 'q1' is empty"),
        (DOCUMENTS, changed(QUERIES, 0, query=None), r"queries:1: query 'q1' is empty"),
        (changed(DOCUMENTS, 0, pid=7), QUERIES, r"documents:1: column 'pid' must be text, got int"),
        ([{"pid": "d1"}], QUERIES, r"documents:1: no column 'passage'; the row has pid"),
        (DOCUMENTS, [{"query": "what?"}], r"queries:1: no column 'qid'; the row has query"),
        ([], QUERIES, r"pets \(test\): no document has text \(dropped 0\)"),
        ([{"pid": "d1", "passage": None}], QUERIES, r"no document has text \(dropped 1\)"),
        (DOCUMENTS, [], r"pets \(test\): no query is left \(dropped 0\)"),
    ],
)
def test_bad_rows_are_refused_by_name(documents, queries, message):
    with pytest.raises(M2BertError, match=message):
        build(documents, queries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"pid": "d1", "passage": "x"}\n{"pid"', r"documents.jsonl:2: row must be one JSON object"),
        (b"[1]\n", r"documents.jsonl:1: row must be a JSON object, got list"),
        (b"[" * 100_000, r"documents.jsonl:1: row must be one JSON object"),
        (b'{"pid": "\xff"}\n', r"documents.jsonl:1: text must be UTF-8"),
        (b"\n\n", r"no document has text"),
    ],
)
def test_broken_lines_are_refused_with_their_number(tmp_path, content, message):
    write(tmp_path / "pets/test/queries.jsonl", QUERIES)
    (tmp_path / "pets/test/documents.jsonl").write_bytes(content)
    with pytest.raises(M2BertError, match=message):
        load_task("pets", find_tasks(tmp_path)["pets"])


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-12], lambda data: b"no gzip", lambda data: data[:20] + b"xxxx" + data[24:]]
)
def test_broken_gzip_is_refused(tmp_path, damage):
    write(tmp_path / "pets/test/queries.jsonl", QUERIES)
    path = tmp_path / "pets/test/documents.jsonl.gz"
    write(path, [{"pid": f"d{number}", "passage": str(number**9)} for number in range(500)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(M2BertError, match=r"documents.jsonl.gz is not a complete gzip file .*; copy it again"):
        load_task("pets", find_tasks(tmp_path)["pets"])


def test_choosing_tasks(tmp_path):
    for name in ("pets", "cars"):
        write(tmp_path / name / "test/documents.jsonl", DOCUMENTS)
        write(tmp_path / name / "test/queries.jsonl", QUERIES)
    (tmp_path / "notes").mkdir()
    assert list(choose_tasks(["all"], tmp_path)) == ["cars", "pets"]
    assert list(choose_tasks(["pets", "cars"], tmp_path)) == ["pets", "cars"]
    for names, message in [
        (["boats"], r"unknown task 'boats': not in .* \(test\), which has cars, pets"),
        (["qmsum"], r"LoCoV1 task 'qmsum': not in .*, which has cars, pets"),
        (["pets", "pets"], r"named once, got 'pets' 2 times"),
        ([], r"name at least one task, or all; .* has cars, pets"),
    ]:
        with pytest.raises(M2BertError, match=message):
            choose_tasks(names, tmp_path)


def test_missing_folders_splits_and_files_are_refused(tmp_path):
    with pytest.raises(M2BertError, match=r"no such data folder: .*nowhere"):
        find_tasks(tmp_path / "nowhere")
    with pytest.raises(M2BertError, match="split must be one of train, test, got 'dev'"):
        find_tasks(tmp_path, "dev")
    with pytest.raises(M2BertError, match=r"no task with a test split in .*; expected <task>/test/documents"):
        find_tasks(tmp_path)
    write(tmp_path / "pets/test/documents.jsonl", DOCUMENTS)
    with pytest.raises(M2BertError, match=r"pets \(test\) must have documents and queries, got .*documents.jsonl only"):
        find_tasks(tmp_path)
    with pytest.raises(M2BertError, match="no task with a train split"):
        find_tasks(tmp_path, "train")


def test_two_file_layout_has_the_test_split_only(tmp_path):
    write(tmp_path / "documents.jsonl", DOCUMENTS)
    write(tmp_path / "queries.jsonl", QUERIES)
    assert list(find_tasks(tmp_path)) == ["pets"]
    with pytest.raises(M2BertError, match="no task with a train split"):
        find_tasks(tmp_path, "train")


def test_shared_tasks_load(shared_dir):
    found = find_tasks(shared_dir / "data" / "loco")
    assert {"qmsum", "crd3", "stackoverflow"} <= set(found)
    task = load_task("qmsum", found["qmsum"])
    assert (len(task.queries), len(task.corpus), task.num_dropped_documents) == (551, 70, 0)
    train = load_task("qmsum", find_tasks(shared_dir / "data" / "loco", "train")["qmsum"], "train")
    assert not set(train.corpus) & set(task.corpus)
    assert not set(train.queries.values()) & set(task.queries.values())
