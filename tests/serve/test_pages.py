"""The pages as the server makes them, read without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from serving import DOCUMENTS, EVIL, EVIL_TEXT, NOTES, ask, served
from tiny import story, tiny_embedder

from m2bert.search.index import SearchIndex
from m2bert.search.results import SearchHit
from m2bert.serve import pages
from m2bert.serve.service import Service

QUERY = "copper harbor"


class Page(HTMLParser):
    """What a page has: elements with their attributes, and its text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def links(self, prefix: str) -> list[str]:
        return [str(a["href"]) for tag, a in self.elements if tag == "a" and str(a.get("href", "")).startswith(prefix)]

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.elements if name in str(a.get("class", "")).split()]


def page(url: str, status: int = 200) -> Page:
    answer = ask(url)
    assert answer.status == status
    return Page(answer.body)


def test_results_are_there_without_a_script(url: str, store: Path) -> None:
    found = page(f"{url}/?{urlencode({'q': QUERY, 'k': 4})}")
    expected = SearchIndex(store, tiny_embedder()).search(QUERY, 4)
    assert len(found.classes("result")) == 4 and "4 documents, the best first." in found.text
    for result in expected:
        assert result.id in found.text and f"{result.score:.2f}" in found.text
        for name, value in result.parts.items():
            assert f"{name} {value:.2f}" in found.text
    assert len(found.classes("strip")) == sum(len(result.shares) > 1 for result in expected) > 0
    peaks = sum(len(result.passages) for result in expected if len(result.shares) > 1)
    assert len(found.classes("peak")) == peaks
    assert "notes" in found.text and NOTES not in found.text.replace("option", "")
    assert found.links("./?") and "k=8" in found.links("./?")[0]


def test_passages_say_their_page(url: str, store: Path) -> None:
    results = SearchIndex(store, tiny_embedder()).search(QUERY, 10)
    places = [hit.place for result in results if result.id == "long.txt" for hit in result.passages]
    assert len(places) == 3 and all(place.startswith("page ") for place in places)
    for address in (f"/?{urlencode({'q': QUERY})}", f"/read?{urlencode({'id': 'long.txt', 'q': QUERY})}"):
        text = page(url + address).text
        assert all(f"{place}, " in text for place in places)


def test_every_link_of_a_result_opens_its_passage(url: str) -> None:
    found = page(f"{url}/?{urlencode({'q': QUERY})}")
    links = found.links("read?")
    assert len(links) > len(DOCUMENTS)
    for link in links:
        place = urlsplit(link)
        document = page(f"{url}/{quote(link.partition('#')[0], safe='?&=%/+')}")
        assert parse_qs(place.query)["id"][0] in document.text
        if place.fragment:
            assert {"id": place.fragment, "tabindex": "-1"} in [a for tag, a in document.elements if tag == "mark"]


def test_a_document_is_read_whole_with_its_passages_marked(url: str) -> None:
    answer = ask(f"{url}/read?{urlencode({'id': 'long.txt', 'q': QUERY})}")
    html = answer.body.decode()
    text = re.sub(r"<span class=\"label\">[^<]*</span>", "", html[html.index("<article") : html.index("</article>")])
    assert re.sub(r"<[^>]*>", "", text) == DOCUMENTS[4].text
    assert html.count("<mark") == 3 and "← Results for" in html
    plain = page(f"{url}/read?id=long.txt")
    assert DOCUMENTS[4].text in plain.text and not plain.classes("strip")


def test_what_documents_hold_is_text(url: str) -> None:
    found = page(f"{url}/?{urlencode({'q': EVIL})}")
    assert EVIL in found.text and [a["value"] for tag, a in found.elements if tag == "input"] == [EVIL]
    document = page(f"{url}/read?{urlencode({'id': EVIL, 'q': 'river'})}")
    assert EVIL in document.text and EVIL_TEXT in document.text and "<i>other</i>" in document.text
    for each in (found, document):
        assert [a for tag, a in each.elements if tag == "script"] == [{"src": "page/page.js", "defer": None}]
        assert not [tag for tag, _ in each.elements if tag in ("img", "i")]


def test_nothing_comes_from_elsewhere_or_stands_inline(url: str) -> None:
    for address in (f"/?{urlencode({'q': QUERY})}", "/read?id=long.txt&q=river", "/docs", "/read?id=nothing"):
        answer = ask(url + address)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        for tag, attributes in Page(answer.body).elements:
            assert not [name for name in attributes if name == "style" or name.startswith("on")]
            assert tag != "style" and not str(attributes.get("src", attributes.get("href", ""))).startswith("http")
    for name in ("page.css", "page.js", "icon.svg"):
        answer = ask(f"{url}/page/{name}")
        assert answer.status == 200 and not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", answer.body)


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/", 200, "6 documents in notes"),
        ("/?q=zebra&rank=words", 200, "No document has any of these words"),
        ("/?q=river&source=elsewhere", 200, "There is no document here to find"),
        ("/?q=river&rank=best", 422, "rank: must be all, whole"),
        ("/?q=river&store=other", 404, "store must be one of notes, got 'other'"),
        ("/read?id=nothing", 404, "no document 'nothing' in the store 'notes'"),
    ],
)
def test_states_are_told(url: str, address: str, status: int, words: str) -> None:
    assert words in page(url + address, status).text
    if address.startswith("/?"):
        part = page(f"{url}{address}&part=results", status)
        assert words in part.text and not [tag for tag, _ in part.elements if tag == "html"]


@pytest.fixture(scope="module")
def without_stores() -> Iterator[str]:
    service = Service()
    service.add_model(tiny_embedder())
    with served(service) as address:
        yield address


def test_a_server_of_a_model_alone_says_so(without_stores: str) -> None:
    assert "This server has the model unnamed and no documents." in page(without_stores + "/?q=river").text
    answer = ask(without_stores + "/search?query=river")
    assert answer.status == 404 and "start it with `m2bert serve STORE`" in answer.error["message"]


def test_the_manual_lists_what_is_there(url: str) -> None:
    text = page(url + "/docs").text
    schema: dict[str, Any] = ask(url + "/openapi.json").json
    assert {"/v1/embeddings", "/v1/models", "/v1/rerank", "/rerank", "/search", "/documents", "/health"} <= set(
        schema["paths"]
    )
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text
    assert "text or list of text" in text and 'one of "float", "base64"' in text and "default 10" in text


def test_long_documents_are_shown_around_a_place(monkeypatch: Any) -> None:
    monkeypatch.setattr(pages, "READ_WHOLE", 100)
    monkeypatch.setattr(pages, "READ_AROUND", 30)
    text = story(100)
    assert pages.shown_range(text[:100], 50) == (0, 100)
    assert pages.shown_range(text, 50) == (20, 80)
    assert pages.shown_range(text, 0) == (0, 30)
    assert pages.shown_range(text, len(text)) == (len(text) - 30, len(text))


def test_pieces_are_the_text_in_order() -> None:
    text = "abcdefghij"
    hits = [SearchHit(6, 8, 0.9, 0.1, "", 10), SearchHit(1, 3, 0.5, 0.1, "", 10)]
    assert pages.marked(text, hits, 0, 10) == [(0, "a"), (2, "bc"), (0, "def"), (1, "gh"), (0, "ij")]
    assert pages.marked(text, hits, 2, 7) == [(2, "c"), (0, "def"), (1, "g")]
    assert pages.marked(text, hits, 3, 6) == [(0, "def")]
