"""Embedding by a real cluster of Ray on this machine: a worker that is killed, runs that go on, object storage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from bag_of_words import BagOfWords
from ray_encoders import Mortal, embedded

from m2bert.errors import M2BertError
from m2bert.search.documents import Document
from m2bert.search.index import SearchIndex

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket of object storage that runs in this process."""
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urlopen(Request(f"{endpoint}/bucket", method="PUT")).close()
    yield endpoint
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Any]:
    """A cluster of this test file alone: three CPUs, two of them for workers. A worker costs seconds to start."""
    ray = pytest.importorskip("ray")
    values = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT": bucket, "AWS_ENDPOINT_URL": bucket,
        "AWS_ALLOW_HTTP": "true", "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{SUPPORT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        from m2bert.search.many_machines import OBJECT_STORE_BYTES, Cluster

        ray.init(
            address="local", num_cpus=3, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
            log_to_driver=False, logging_level="error",
        )  # fmt: skip
        yield Cluster("local", workers=1)
        ray.shutdown()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "noted"
    folder.mkdir()
    return folder


def write_parquet(folder: Path, count: int = 40, files: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [{"id": f"d{n}", "text": f"copper {n}", "year": 2000 + n % 5} for n in range(count)]
    for number in range(files):
        pa.parquet.write_table(pa.Table.from_pylist(rows[number::files]), folder / f"part-{number}.parquet")
    return folder


def found(store: str | Path, query: str = "copper", **options: Any) -> set[str]:
    index = SearchIndex.open(store, BagOfWords(dim=64, passage_words=4))
    return {result.id for result in index.search(query, 100, passages=0, rank="words", **options)}


def test_a_killed_worker_and_a_run_that_broke_off_cost_no_document_and_double_none(
    cluster: Any, tmp_path: Path, notes: Path, run: Any, monkeypatch: Any
) -> None:
    from m2bert.search import many_machines

    source, store = write_parquet(tmp_path / "source"), tmp_path / "store"
    make, cluster = partial(Mortal, str(notes)), replace(cluster, workers=2)

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(many_machines, "_commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            many_machines.embed_with_ray(str(source), store, make, cluster, documents_a_fragment=5)
    assert (notes / "killed").exists() and len(list(notes.glob("embedded-*"))) >= 2
    assert set(embedded(notes)) == {f"copper {n}" for n in range(40)}
    assert SearchIndex.open(store).stats().num_documents == 0
    report = many_machines.embed_with_ray(str(source), store, make, cluster, documents_a_fragment=5)
    assert (report.added, report.reused, report.updated, report.skipped) == (40, 40, 0, [])
    assert embedded(notes) == [] and not (store / "ray").exists()
    expected = {f"d{n}" for n in range(40)}
    index = SearchIndex.open(store)
    assert {identity for _, identity in index.stats(documents=True).documents} == expected
    assert index.stats().num_documents == 40 and found(store) == expected
    assert found(store, where="year = 2003") == {f"d{n}" for n in range(3, 40, 5)}
    code, out, err = run("search", store, "copper 13", "--rank", "words", "--json")
    assert code == 0 and json.loads(out)["results"][0]["id"] == "d13", err


def test_object_storage_holds_source_and_store(
    cluster: Any, tmp_path: Path, notes: Path, run: Any, monkeypatch: Any
) -> None:
    from m2bert.search.many_machines import embed_with_ray

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there, path = pyarrow.fs.FileSystem.from_uri("s3://bucket/source")
    pyarrow.fs.copy_files(str(write_parquet(tmp_path / "source", 12, 2)), path, destination_filesystem=there)
    store, make = "s3://bucket/stores/notes", partial(Mortal, str(notes), None)
    report = embed_with_ray("s3://bucket/source", store, make, cluster, documents_a_fragment=3)
    assert (report.added, report.unchanged) == (12, 0) and len(embedded(notes)) == 12
    assert found(store) == {f"d{n}" for n in range(12)}
    code, out, err = run("search", store, "copper 5", "--rank", "words", "--json")
    assert code == 0 and json.loads(out)["results"][0]["id"] == "d5", err
    # What has changed is embedded and takes the place of what was there, in one step.
    with there.open_output_stream(f"{path}/part-1.parquet") as file:
        pa.parquet.write_table(pa.table({"id": ["d1", "new"], "text": ["copper wire", "river"]}), file)
    report = embed_with_ray("s3://bucket/source", store, make, cluster, documents_a_fragment=3)
    assert (report.added, report.updated, report.unchanged) == (1, 1, 6)
    assert sorted(embedded(notes)) == ["copper wire", "river"]
    index = SearchIndex(store, BagOfWords(dim=64, passage_words=4))
    assert index.document("d1").text == "copper wire" and index.stats().num_documents == 13
    assert index.add({"by hand": "river"}).added == 1 and index.delete(["by hand"]) == 1


def test_json_lines_are_read_by_ray(cluster: Any, tmp_path: Path, notes: Path) -> None:
    from m2bert.search.many_machines import embed_with_ray

    lines = tmp_path / "docs.jsonl"
    rows = [{"id": 1, "text": "copper", "kind": "a"}, {"id": "x", "text": " "}, {"id": "y"}]
    rows.append({"id": "z", "text": "copper"})
    lines.write_text("\n".join(map(json.dumps, rows)) + "\nno json\n")
    report = embed_with_ray(str(lines), tmp_path / "store", partial(Mortal, str(notes)), cluster)
    assert report.added == 2 and len(report.skipped) == 3
    assert embedded(notes) == ["copper"]
    assert found(tmp_path / "store") == {"1", "z"} and found(tmp_path / "store", where="kind = 'a'") == {"1"}


def test_files_are_named_by_their_path_below_the_source() -> None:
    from m2bert.search.ray_source import documents_of_batch

    rows = [
        {"path": "/s/a.txt", "bytes": b"copper"}, {"path": "/s/below/b.log", "bytes": b"wire"},
        {"path": "/s/c.bin", "bytes": b"\0"}, {"path": "/s/d.pdf", "bytes": b"%PDF"},
    ]  # fmt: skip
    documents, skipped = documents_of_batch(pa.Table.from_pylist(rows), "/s")
    assert [(each.id, each.text, each.source) for each in documents] == [
        ("a.txt", "copper", "/s"), ("below/b.log", "wire", "/s"),
    ]  # fmt: skip
    assert [each.id for each in skipped] == ["c.bin", "d.pdf"]


def test_mistakes_are_told_before_anything_is_shown(tmp_path: Path, notes: Path) -> None:
    from m2bert.search import many_machines
    from m2bert.search.ray_source import documents_of_batch

    with pytest.raises(M2BertError, match=r"must have a string or a whole number under 'id' or 'pid', got None; name"):
        documents_of_batch(pa.table({"text": ["river"]}), "/s.parquet")
    make, place = partial(Mortal, str(notes)), many_machines.place_of(tmp_path / "store")
    info = many_machines._made(place, make())
    writer = many_machines.FragmentWriter(make, place.name, "s", info)
    told = [writer(pa.table({"id": [name], "text": ["river"]}))["manifest"][0] for name in ("a", "b", "a")]
    with pytest.raises(
        M2BertError, match=r"two documents are called 'a'; give each an id of its own; nothing is shown"
    ):
        many_machines._collect(iter(told), place, "s", None, lambda: None)
    with pytest.raises(M2BertError, match=r"two documents are called 'c'"):
        writer(pa.table({"id": ["c", "c"], "text": ["river", "stone"]}))
    with pytest.raises(
        M2BertError, match=r"'s' must hold at least one readable document, got none, the first of 1: ho"
    ):
        many_machines._collect(
            iter(writer(pa.table({"id": ["a"], "text": [""]}))["manifest"]), place, "s", None, lambda: None
        )
    assert SearchIndex.open(tmp_path / "store").stats().num_documents == 0
    with pytest.raises(M2BertError, match=r"was made with the model 'bag-of-words' of fingerprint"):
        many_machines._made(place, BagOfWords(dim=8))
    with pytest.raises(M2BertError, match=r"use `m2bert index` for PostgreSQL"):
        many_machines.embed_with_ray("s", "postgresql://me@host/notes", make)


def test_workers_make_the_indexes_of_a_large_table(cluster: Any, tmp_path: Path, notes: Path, monkeypatch: Any) -> None:
    """Scores are those of a store that one process has indexed, which here makes none of words and vectors."""
    from m2bert.search import many_machines, ray_indexes
    from m2bert.search.stores import lance, lance_indexes

    cluster = replace(cluster, workers=2)  # each makes its segment of an index, which are merged
    alone = SearchIndex(tmp_path / "alone", BagOfWords(dim=64, passage_words=4))
    source = str(write_parquet(tmp_path / "source", 300))
    alone.add([Document(f"d{n}", f"copper {n}", source) for n in range(300)])
    for module in (ray_indexes, lance_indexes):
        monkeypatch.setattr(module, "INDEXED_FROM", 30)
    for name in ("index_words", "index_vectors"):
        monkeypatch.setattr(lance, name, lambda *given: None)
    make = partial(Mortal, str(notes), None)
    report = many_machines.embed_with_ray(source, tmp_path / "store", make, cluster, documents_a_fragment=50)
    assert report.added == 300 and report.fragments >= 4
    index = SearchIndex.open(tmp_path / "store", alone.embedder)
    made = {each.column: (each.rows, each.behind, each.used) for each in index.sizes().indexes}
    assert made["words"] == made["vector"] == (300, 0, True)
    for rank in ("words", "whole"):
        expected = {each.id: each.score for each in alone.search("copper 7", 300, rank=rank)}
        assert {each.id: each.score for each in index.search("copper 7", 300, rank=rank)} == pytest.approx(expected)
        assert len(set(expected.values())) > 1
