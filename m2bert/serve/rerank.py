"""POST /v1/rerank in the shape that Jina and Cohere have, and POST /rerank in TEI's: documents scored by a query.

The score is that of a store's ranking without its words, whose worth depends on a store: whole and passages, weighted.
Test: tests/serve/test_rerank.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from m2bert.encoders.protocol import EncodedDocument
from m2bert.ranking.parts import PASSAGES, WHOLE
from m2bert.ranking.passages import QuantisedPassages
from m2bert.search.results import SearchHit, hits_of
from m2bert.search.stores import Record
from m2bert.serve.answers import JsonAnswer, in_thread, service_of
from m2bert.serve.embeddings import check_texts
from m2bert.serve.service import Service

router = APIRouter(tags=["models"])
SHOWN = 3


class TextDocument(BaseModel):
    """A document as an object."""

    text: str


class RerankRequest(BaseModel):
    """What Jina's and Cohere's clients send."""

    query: str
    documents: list[str | TextDocument]
    model: str | None = None
    top_n: Annotated[int | None, Field(ge=1, description="Only so many of the best.")] = None
    return_documents: bool = True


class TeiRerankRequest(BaseModel):
    """What text-embeddings-inference takes; scores are as /v1/rerank has them, raw or not."""

    query: str
    texts: list[str]
    return_text: bool = False


@dataclass(frozen=True)
class Ranked:
    """A document's place in the request, its score, the parts it is the sum of, and its best passages."""

    index: int
    score: float
    parts: Mapping[str, float]
    hits: list[SearchHit]


@router.post("/v1/rerank", summary="Score documents by a query")
async def rerank(body: RerankRequest, request: Request) -> Response:
    """The best first, each with what its whole and its best passages add, and where these are."""
    service = service_of(request)
    texts = [each if isinstance(each, str) else each.text for each in body.documents]

    def work() -> Response:
        ranked, tokens, name = _ranked(service, body.model, body.query, texts)
        results = [_as_result(one, texts[one.index], body.return_documents) for one in ranked[: body.top_n]]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JsonAnswer({"object": "list", "model": name, "usage": usage, "results": results})

    return await in_thread(request, work)


@router.post("/rerank", summary="The same in the shape of text-embeddings-inference")
async def rerank_as_tei(body: TeiRerankRequest, request: Request) -> Response:
    """A list of {index, score}, the best first."""
    service = service_of(request)

    def work() -> Response:
        ranked, _, _ = _ranked(service, None, body.query, body.texts)
        texts = {one.index: {"text": body.texts[one.index]} if body.return_text else {} for one in ranked}
        return JsonAnswer([{"index": one.index, "score": one.score} | texts[one.index] for one in ranked])

    return await in_thread(request, work)


def _ranked(service: Service, name: str | None, query: str, texts: list[str]) -> tuple[list[Ranked], int, str]:
    """The documents, best first, the tokens that were read, and the name of the model."""
    model = service.model(name)
    check_texts([query], service.limits, "query")
    check_texts(texts, service.limits, "documents")
    [asked] = model.embed([query], "query")
    documents = model.embed(texts, "document", passages=True)
    mixture = model.mixture.only(f"{WHOLE}+{PASSAGES}")
    found = []
    for index, (text, one) in enumerate(zip(texts, documents, strict=True)):
        hits = hits_of(as_record(text, one), asked.vector, SHOWN)
        parts = mixture.weighted({WHOLE: float(one.vector @ asked.vector), PASSAGES: hits[0].score})
        found.append(Ranked(index, math.fsum(parts.values()), parts, hits))
    found.sort(key=lambda each: (-each.score, each.index))
    return found, asked.num_tokens + sum(one.num_tokens for one in documents), model.name


def as_record(text: str, one: EncodedDocument) -> Record:
    """An embedded text as a store would hold it, its passages rounded alike."""
    spans = np.array([(passage.start, passage.end) for passage in one.passages], dtype=np.int64).reshape(-1, 2)
    passages = None
    if len(one.passages) > 1:
        passages = QuantisedPassages.of(np.array([passage.vector for passage in one.passages], dtype=np.float32))
    counts = one.num_tokens, one.num_windows, one.num_truncated
    return Record("", "", "", text, *counts, one.vector, spans, passages)


def _as_result(one: Ranked, text: str, with_text: bool) -> dict[str, Any]:
    passages = [{"start": hit.start, "end": hit.end, "score": hit.score, "text": hit.text} for hit in one.hits]
    document = {"document": {"text": text}} if with_text else {}
    return {"index": one.index, "relevance_score": one.score, **document, "parts": one.parts, "passages": passages}
