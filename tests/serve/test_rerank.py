"""Documents scored by a query: the scores of explanations, in the shapes of two protocols."""

from __future__ import annotations

import pytest
from serving import ask
from tiny import story, tiny_embedder

from m2bert.search.explain import explain_text

QUERY = "copper harbor in winter"
TEXTS = [story(1500, seed=3), "copper", story(12, seed=4), story(40, seed=5)]


def test_scores_are_those_of_explanations(url: str) -> None:
    answer = ask(url + "/v1/rerank", {"query": QUERY, "documents": [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]}).json
    expected = {number: explain_text(tiny_embedder(), QUERY, text) for number, text in enumerate(TEXTS)}
    order = sorted(expected, key=lambda number: -expected[number].score)
    assert [one["index"] for one in answer["results"]] == order
    for one in answer["results"]:
        found = expected[one["index"]]
        assert one["relevance_score"] == pytest.approx(found.score, abs=1e-5)
        assert one["parts"] == pytest.approx(found.parts, abs=1e-5)
        assert one["document"]["text"] == TEXTS[one["index"]]
        assert one["passages"][0]["score"] == pytest.approx(max(pair.value for pair in found.pairs), abs=1e-5)
        for passage in one["passages"]:
            assert passage["text"] == TEXTS[one["index"]][passage["start"] : passage["end"]]
    assert len(answer["results"][order.index(0)]["passages"]) > 1
    tokens = sum(each.num_tokens for each in expected.values())
    assert answer["usage"]["total_tokens"] == tokens + tiny_embedder().encode_documents([QUERY])[0].num_tokens


def test_top_n_and_no_documents(url: str) -> None:
    body = {"query": QUERY, "documents": TEXTS, "top_n": 2, "return_documents": False}
    results = ask(url + "/v1/rerank", body).json["results"]
    assert len(results) == 2 and all("document" not in one for one in results)


def test_tei_has_the_same_scores(url: str) -> None:
    ours = ask(url + "/v1/rerank", {"query": QUERY, "documents": TEXTS}).json["results"]
    tei = ask(url + "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True}).json
    assert [one["index"] for one in tei] == [one["index"] for one in ours]
    assert [one["score"] for one in tei] == pytest.approx([one["relevance_score"] for one in ours])
    assert [one["text"] for one in tei] == [TEXTS[one["index"]] for one in tei]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": QUERY, "documents": []}, "documents must hold at least one text"),
        ({"query": " ", "documents": TEXTS}, "text 0 is empty"),
        ({"documents": TEXTS}, "query: Field required"),
    ],
)
def test_bad_requests_are_told_in_words(url: str, body: object, words: str) -> None:
    answer = ask(url + "/v1/rerank", body)
    assert answer.status == 422 and words in answer.error["message"]
