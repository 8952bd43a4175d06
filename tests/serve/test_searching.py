"""Search and documents over HTTP, beside what SearchIndex says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from serving import DOCUMENTS, EVIL, ask, served
from tiny import tiny_embedder

from m2bert.search.explain import explain_stored
from m2bert.search.index import SearchIndex
from m2bert.serve.service import Service

QUERY = "copper harbor"


@pytest.fixture(scope="module")
def index(store: Path) -> SearchIndex:
    return SearchIndex(store, tiny_embedder())


def test_results_are_those_of_the_index(url: str, index: SearchIndex) -> None:
    by_address = ask(f"{url}/search?{urlencode({'query': QUERY, 'k': 4})}").json
    assert by_address == ask(url + "/search", {"query": QUERY, "k": 4}).json
    assert (by_address["query"], by_address["store"]) == (QUERY, "notes")
    for found, expected in zip(by_address["results"], index.search(QUERY, 4), strict=True):
        assert (found["id"], found["source"], found["rank"]) == (expected.id, expected.source, expected.rank)
        assert found["score"] == pytest.approx(expected.score, abs=1e-6)
        assert found["parts"] == pytest.approx(expected.parts, abs=1e-6)
        assert sum(found["parts"].values()) == pytest.approx(found["score"])
        for shown, hit in zip(found["passages"], expected.passages, strict=True):
            assert (shown["text"], shown["place"]) == (hit.text, hit.place)


def test_shares_are_the_curve_of_explain(url: str, index: SearchIndex) -> None:
    results = ask(f"{url}/search?{urlencode({'query': QUERY})}").json["results"]
    [long] = [one for one in results if one["id"] == "long.txt"]
    curve = explain_stored(index, QUERY, "long.txt").contributions
    assert [tuple(share[:2]) for share in long["shares"]] == [(each.start, each.end) for each in curve]
    assert [share[2] for share in long["shares"]] == pytest.approx([each.value for each in curve], abs=1e-3)
    assert len(curve) > 5 and max(abs(each.value) for each in curve) > 0.01


@pytest.mark.parametrize("rank", ["all", "whole", "passages", "words", "whole+passages"])
def test_one_source_alone(url: str, index: SearchIndex, rank: str) -> None:
    asked = {"query": QUERY, "source": "/home/somebody/notes", "rank": rank}
    found = ask(url + "/search", asked).json["results"]
    of_source = [one for one in index.search(QUERY, 10, rank=rank) if one.source == asked["source"]]
    assert 0 < len(of_source) < len(DOCUMENTS)
    assert [one["id"] for one in found] == [one.id for one in of_source]
    assert [one["score"] for one in found] == pytest.approx([one.score for one in of_source], abs=1e-6)
    assert ask(url + "/search", asked | {"source": "it's nowhere"}).json["results"] == []


def test_a_document_has_its_passages(url: str, index: SearchIndex) -> None:
    for document in DOCUMENTS[4:]:
        found = ask(f"{url}/documents/{quote(document.id)}").json
        record = index.document(document.id)
        assert (found["id"], found["text"], found["source"]) == (document.id, document.text, document.source)
        assert [[each["start"], each["end"]] for each in found["passages"]] == record.spans.tolist()
        assert [(each["start"], each["label"]) for each in found["sections"]] == [
            (section.start, section.label) for section in document.sections
        ]
        assert (found["num_tokens"], found["num_windows"]) == (record.num_tokens, record.num_windows)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/documents/nothing", 404, "no document 'nothing' in the store 'notes'"),
        ("/search?query=x&store=other", 404, "store must be one of notes, got 'other'"),
        ("/search?query=x&k=0", 422, "k: Input should be greater than or equal to 1"),
        ("/search?query=x&rank=best", 422, "rank: must be all, whole, passages, words, terms, or some"),
        ("/search?query=%20", 422, "the query must be some words of text"),
        ("/search", 422, "query: Field required"),
        ("/nowhere", 404, "GET /nowhere: Not Found; GET /docs lists what there is"),
    ],
)
def test_bad_requests_are_told_without_paths(url: str, store: Path, path: str, status: int, words: str) -> None:
    answer = ask(url + path)
    assert answer.status == status and words in answer.error["message"]
    assert str(store.parent) not in answer.body.decode()


def test_a_server_that_only_reads_says_how_to_write(url: str) -> None:
    for answer in (
        ask(url + "/documents", {"documents": [{"id": "a", "text": "b"}]}),
        ask(url + "/documents/long.txt", method="DELETE"),
    ):
        assert answer.status == 403 and "start it with --writable" in answer.error["message"]


def test_documents_are_added_replaced_and_deleted(store: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(store, copied)
    service = Service()
    service.add_store(copied, service.add_model(tiny_embedder()))
    new = {"documents": [{"id": "new/one", "text": "copper harbor"}, {"id": EVIL, "text": "stone", "source": "mine"}]}
    with served(service, writable=True) as url:
        added = ask(url + "/documents", new).json
        assert {key: added[key] for key in ("added", "updated", "unchanged")} == {
            "added": 2, "updated": 0, "unchanged": 0,
        }  # fmt: skip
        first: dict[str, Any] = ask(url + "/search", {"query": "copper harbor", "source": ""}).json["results"][0]
        assert first["id"] == "new/one" and first["passages"][0]["text"] == "copper harbor"
        new["documents"][0]["text"] = "paper engine"
        assert ask(url + "/documents", new).json["updated"] == 1
        assert ask(url + "/documents/new/one").json["text"] == "paper engine"
        assert ask(url + "/documents/new/one", method="DELETE").json == {"deleted": 1, "store": "copied"}
        assert ask(url + "/documents/new/one").status == 404
        gone = ask(url + "/documents/new/one", method="DELETE")
        assert gone.status == 404 and "no document 'new/one' of the source ''" in gone.error["message"]
        empty = ask(url + "/documents", {"documents": [{"id": "a", "text": " "}]})
        words = "text of document 'a' must be a string that is not empty"
        assert empty.status == 422 and words in empty.error["message"]
        assert SearchIndex(copied, tiny_embedder()).stats().num_documents == len(DOCUMENTS) + 1


def test_a_store_that_cannot_be_read_is_told_without_its_path(store: Path, tmp_path: Path, caplog: Any) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    service = Service()
    service.add_store(broken, service.add_model(tiny_embedder()))
    with served(service) as url:
        shutil.rmtree(broken / "documents.lance" / "data")
        answer = ask(url + "/search", {"query": QUERY})
    assert answer.status == 503 and answer.error["type"] == "server_error"
    assert "the server's log says why" in answer.error["message"] and str(tmp_path) not in answer.body.decode()
    assert "cannot be read or written" in caplog.text
