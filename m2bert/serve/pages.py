"""The pages, made here and readable without scripts: search, a document with its passages, and what the server takes.

Templates escape everything that comes from documents and requests (Jinja's autoescape).
Test: tests/serve/test_pages.py, tests/serve/test_browser.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, Query, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from m2bert.errors import M2BertError
from m2bert.ranking.parts import PASSAGES, WHOLE, WORDS
from m2bert.search.results import SearchHit, SearchResult, hits_of, shares_of, snippet
from m2bert.search.stores import Record
from m2bert.serve.answers import in_thread, refusal_of, service_of
from m2bert.serve.limits import Refusal
from m2bert.serve.manual import operations
from m2bert.serve.searching import MOST_RESULTS, SearchRequest, find
from m2bert.serve.service import ServedStore, Service
from m2bert.serve.strip import Strip, strip_of

PAGE = Path(__file__).with_name("page")
SNIPPET = 480
# A longer document is shown in parts: so many characters before and behind the place that was asked for.
READ_WHOLE, READ_AROUND = 400_000, 100_000
RANKS = {
    "all": "everything", "whole+passages": "meaning alone", WORDS: "words alone", WHOLE: "the whole alone",
    PASSAGES: "the best passage alone",
}  # fmt: skip

router = APIRouter(include_in_schema=False)
_templates = Environment(
    loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


class Asked(SearchRequest):
    """What the page's form sends. part: "results" for these alone, which the page's script puts in place."""

    query: Annotated[str, Query(alias="q")] = ""
    part: str = ""


@dataclass(frozen=True)
class ShownPart:
    """What a part gave, and where it is drawn in the bar of the score, in percent."""

    name: str
    value: float
    left: float
    width: float


@dataclass(frozen=True)
class ShownPassage:
    """A passage in a list of results. place: where it is, in words."""

    number: int
    place: str
    score: float
    text: str
    href: str


@dataclass(frozen=True)
class ShownResult:
    """A ranked document as the page shows it."""

    result: SearchResult
    source: str
    href: str
    parts: list[ShownPart]
    strip: Strip | None
    passages: list[ShownPassage]

    @property
    def hrefs(self) -> dict[int, str]:
        """Where each passage is opened, by its number."""
        return {passage.number: passage.href for passage in self.passages}


@router.get("/")
async def search_page(asked: Annotated[Asked, Query()], request: Request) -> Response:
    """The search field, and what it finds."""
    service = service_of(request)

    def work() -> Response:
        values = _search_values(service, asked)
        return _page("results.html" if asked.part == "results" else "search.html", values)

    def told(refusal: Refusal) -> Response:
        values = _common(service, asked) | {"error": refusal.message}
        return _page("results.html" if asked.part == "results" else "search.html", values, refusal.status)

    return await _shown(request, work, told)


@router.get("/read")
async def read_page(
    request: Request, id: str, q: str = "", at: int = 0, source: str | None = None, store: str | None = None
) -> Response:
    """A document with its best passages for a query marked."""
    service = service_of(request)

    def work() -> Response:
        chosen = service.store(store)
        return _page("read.html", _read_values(chosen, chosen.index.document(id, source), q, at))

    return await _shown(request, work, lambda refusal: _page("error.html", {"error": refusal.message}, refusal.status))


@router.get("/docs")
async def manual_page(request: Request) -> Response:
    """What the server takes and gives, from its OpenAPI schema."""
    return _page("manual.html", {"operations": operations(request.app.openapi())})


def _page(template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    return HTMLResponse(_templates.get_template(template).render(values), status)


async def _shown(request: Request, work: Callable[[], Response], told: Callable[[Refusal], Response]) -> Response:
    """What `work` makes, or a page that tells what is wrong."""
    try:
        return await in_thread(request, work)
    except (Refusal, M2BertError) as error:
        return told(refusal_of(error, request))


def _common(service: Service, asked: Asked) -> dict[str, Any]:
    """What the form needs."""
    store = service.stores.get(asked.store or "") or next(iter(service.stores.values()), None)
    facts = None if store is None else store.facts()
    sources = [] if facts is None else [(source, source_name(source)) for source in facts.sources]
    return {
        "asked": asked, "stores": list(service.stores), "store": store, "sources": sources, "ranks": RANKS,
        "num_documents": 0 if facts is None else facts.num_documents, "models": list(service.models), "error": "",
        "found": [], "more": "", "status": "",
    }  # fmt: skip


def _search_values(service: Service, asked: Asked) -> dict[str, Any]:
    values = _common(service, asked)
    if values["store"] is None or not asked.query.strip():
        return values
    asked = asked.model_copy(update={"source": asked.source or None, "store": asked.store or None})
    store, results = find(service, asked)
    largest = max((sum(max(x, 0.0) for x in result.parts.values()) for result in results), default=0.0)
    values["found"] = [_shown_result(store, asked.query, result, largest) for result in results]
    values["status"] = f"{len(results)} document{'s' * (len(results) != 1)}, the best first."
    if not results:
        values["status"] = "Nothing was found."
    if len(results) == asked.k < min(values["num_documents"], MOST_RESULTS):
        fields = {"q": asked.query, "rank": asked.rank, "source": asked.source or "", "store": asked.store or ""}
        values["more"] = "./?" + urlencode(fields | {"k": min(2 * asked.k, MOST_RESULTS)})
    return values


def _shown_result(store: ServedStore, query: str, result: SearchResult, largest: float) -> ShownResult:
    fields = {"store": store.name, "source": result.source, "id": result.id, "q": query}
    passages = [
        ShownPassage(
            number, place_of(hit), hit.score, snippet(hit.text, SNIPPET),
            f"read?{urlencode(fields | {'at': hit.start})}#passage-{number}",
        )
        for number, hit in enumerate(result.passages, start=1)
    ]  # fmt: skip
    parts, left = [], 0.0
    for name, value in result.parts.items():
        width = max(value, 0.0) / (largest or 1.0) * 100
        parts.append(ShownPart(name, value, left, width))
        left += width
    strip = strip_of(result.shares, result.passages)
    return ShownResult(result, source_name(result.source), "read?" + urlencode(fields), parts, strip, passages)


def source_name(source: str) -> str:
    """The name of a source: of a path its last part."""
    return os.path.basename(source.rstrip(os.sep)) if os.path.isabs(source) else source


def place_of(hit: SearchHit) -> str:
    """Where a passage is, in words: its page or heading where it has one, and how far into the document it is."""
    far = f"{hit.position:.0%} into the document"
    return f"{hit.place}, {far}" if hit.place else far


def _read_values(store: ServedStore, record: Record, query: str, at: int) -> dict[str, Any]:
    hits: Sequence[SearchHit] = []
    strip = None
    if query.strip():
        vector = np.asarray(store.model.encode([query])[0], dtype=np.float32)
        hits = hits_of(record, vector, 3)
        strip = strip_of(shares_of(record, vector), hits)
    fields = {"store": store.name, "source": record.source, "id": record.id, "q": query}
    first, last = shown_range(record.text, at)
    hrefs = {
        number: f"#passage-{number}"
        if first <= hit.start < last
        else f"read?{urlencode(fields | {'at': hit.start})}#passage-{number}"
        for number, hit in enumerate(hits, start=1)
    }
    earlier = "read?" + urlencode(fields | {"at": max(first - READ_AROUND, 1)}) if first else ""
    later = (
        "read?" + urlencode(fields | {"at": min(last + READ_AROUND, len(record.text) - 1)})
        if (last < len(record.text))
        else ""
    )
    return {
        "record": record, "source": source_name(record.source), "query": query, "store": store.name, "strip": strip,
        "places": {number: place_of(hit) for number, hit in enumerate(hits, start=1)}, "hrefs": hrefs,
        "back": "./?" + urlencode({"q": query, "store": store.name}) if query else "./",
        "pieces": marked(record.text, hits, first, last), "earlier": earlier, "later": later,
    }  # fmt: skip


def shown_range(text: str, at: int) -> tuple[int, int]:
    """The characters of a document that are shown, those around `at` of a long one."""
    if len(text) <= READ_WHOLE:
        return 0, len(text)
    return max(at - READ_AROUND, 0), min(max(at, 0) + READ_AROUND, len(text))


def marked(text: str, hits: Sequence[SearchHit], first: int, last: int) -> list[tuple[int, str]]:
    """Characters first to last of a text in pieces, each with the number of the passage it is, 0 between passages."""
    pieces, here = [], first
    for number, hit in sorted(enumerate(hits, start=1), key=lambda item: item[1].start):
        start, end = min(max(hit.start, here), last), min(max(hit.end, here), last)
        if start < end:
            pieces += [(0, text[here:start]), (number, text[start:end])]
            here = end
    return [piece for piece in [*pieces, (0, text[here:last])] if piece[1]]
