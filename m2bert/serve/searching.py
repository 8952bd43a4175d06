"""GET and POST /search, and the documents of stores: read, and where the server may write, added and deleted.

Test: tests/serve/test_searching.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from m2bert.search.documents import Document
from m2bert.search.results import SearchResult
from m2bert.serve.answers import JsonAnswer, in_thread, service_of
from m2bert.serve.embeddings import check_texts
from m2bert.serve.limits import Refusal
from m2bert.serve.service import ServedStore, Service

router = APIRouter(tags=["stores"])
MOST_RESULTS = 1000

StoreName = Annotated[str | None, Field(description="The name of a store; the first one without it.")]
Source = Annotated[str | None, Field(description="Where a document comes from: the folder or file that was indexed.")]


class SearchRequest(BaseModel):
    """A query, and how many documents of which kind."""

    query: Annotated[str, Field(description="What is looked for, in your own words.")]
    k: Annotated[int, Field(ge=1, le=MOST_RESULTS, description="Documents to find.")] = 10
    rank: Annotated[
        str, Field(description="all, or some of whole, passages and words joined by +: what counts in the score.")
    ] = "all"
    source: Annotated[str | None, Field(description="Rank the documents of this source alone.")] = None
    where: Annotated[
        str | None, Field(description="Rank the documents alone whose metadata meets this: year >= 2020.")
    ] = None
    passages: Annotated[int, Field(ge=0, le=100, description="Most passages of a document.")] = 3
    store: StoreName = None


class NewDocument(BaseModel):
    """A text under a name, and what searches may ask for."""

    id: str
    text: str
    source: Source = ""
    metadata: Annotated[
        dict[str, str | int | float | bool | None], Field(description="Names and values that where asks for.")
    ] = {}


class AddRequest(BaseModel):
    """Documents to add; those of the same id and source are replaced."""

    documents: list[NewDocument]
    store: StoreName = None


@router.get("/search", summary="Search a store")
async def search(body: Annotated[SearchRequest, Query()], request: Request) -> Response:
    """Ranked documents, what each part of the score gave, and the passages that match best."""
    return await _search(body, request)


@router.post("/search", summary="Search a store, with a JSON body")
async def search_by_body(body: SearchRequest, request: Request) -> Response:
    """As GET /search."""
    return await _search(body, request)


async def _search(body: SearchRequest, request: Request) -> Response:
    service = service_of(request)

    def work() -> Response:
        store, results = find(service, body)
        found = [as_result(result) for result in results]
        return JsonAnswer({"query": body.query, "store": store.name, "results": found})

    return await in_thread(request, work)


def find(service: Service, body: SearchRequest) -> tuple[ServedStore, list[SearchResult]]:
    """The store that was asked, and what it found. Raises Refusal and M2BertError."""
    store = service.store(body.store)
    check_texts([body.query], service.limits, "query")
    found = store.index.search(
        body.query, body.k, passages=body.passages, rank=body.rank, source=body.source, where=body.where
    )
    return store, found


def as_result(result: SearchResult) -> dict[str, Any]:
    """A ranked document as JSON has it; shares are triples of start, end and value."""
    return result.to_dict() | {"shares": [(share.start, share.end, share.value) for share in result.shares]}


@router.get("/documents/{id:path}", summary="A document and its passages")
async def read_document(id: str, request: Request, store: str | None = None, source: str | None = None) -> Response:
    """The text, where its passages begin and end, and its pages or headings."""
    service = service_of(request)

    def work() -> Response:
        record = service.store(store).index.document(id, source)
        passages = [{"start": int(start), "end": int(end)} for start, end in record.spans]
        keys = ("id", "source", "text", "num_tokens", "num_windows", "num_truncated")
        sections = [{"start": section.start, "label": section.label} for section in record.sections]
        found = {key: getattr(record, key) for key in keys}
        found["metadata"] = dict(record.metadata)
        return JsonAnswer(found | {"passages": passages, "sections": sections})

    return await in_thread(request, work)


@router.post("/documents", summary="Add documents")
async def add_documents(body: AddRequest, request: Request) -> Response:
    """All of them become visible at once. Where the client leaves before, nothing changes."""
    _check_writable(request)
    service = service_of(request)

    def work() -> Response:
        store = service.store(body.store)
        check_texts([each.text for each in body.documents], service.limits, "documents")
        documents = [Document(each.id, each.text, each.source or "", metadata=each.metadata) for each in body.documents]
        with store.writing:
            report = store.index.add(documents)
        store.changed()
        keys = ("added", "updated", "unchanged", "num_tokens")
        return JsonAnswer({key: getattr(report, key) for key in keys} | {"store": store.name})

    return await in_thread(request, work)


@router.delete("/documents/{id:path}", summary="Delete a document")
async def delete_document(id: str, request: Request, store: str | None = None, source: str = "") -> Response:
    """Of the source that is named; without one, of those that were added without one."""
    _check_writable(request)
    service = service_of(request)

    def work() -> Response:
        chosen = service.store(store)
        with chosen.writing:
            deleted = chosen.index.delete([id], source=source)
        chosen.changed()
        if not deleted:
            where = f"{id[:80]!r} of the source {source[:80]!r}"
            raise Refusal(404, "not_found", f"no document {where}; a search shows both")
        return JsonAnswer({"deleted": deleted, "store": chosen.name})

    return await in_thread(request, work)


def _check_writable(request: Request) -> None:
    if not request.app.state.writable:
        raise Refusal(403, "read_only", "this server only reads; start it with --writable to change its stores")
