"""POST /v1/embeddings and GET /v1/models in OpenAI's shape.

Test: tests/serve/test_embeddings.py.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator
from starlette.responses import Response

from m2bert.serve.answers import JsonAnswer, in_thread, service_of
from m2bert.serve.limits import Limits, Refusal
from m2bert.serve.scheduled import ScheduledEncoder
from m2bert.serve.service import Service

router = APIRouter(tags=["models"])

TOKENS_REFUSED = (
    "token numbers belong to another model's vocabulary and are not taken, send text "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)


class EmbeddingsRequest(BaseModel):
    """What OpenAI's clients send; `input_type` is for models that treat queries in a way of their own."""

    input: Annotated[str | list[str], Field(description="A text, or a list of texts. Token numbers are not taken.")]
    model: Annotated[str | None, Field(description="A name that GET /v1/models lists; the first without one.")] = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[
        int | None, Field(ge=1, description="Keep so many of the first numbers, brought to length 1 again.")
    ] = None
    input_type: Literal["query", "document"] = "document"

    @field_validator("input", mode="before")
    @classmethod
    def _refuse_tokens(cls, value: Any) -> Any:
        first = next(iter(value), None) if isinstance(value, list) else value
        if isinstance(first, int | list):
            raise ValueError(TOKENS_REFUSED)
        return value


@router.post("/v1/embeddings", summary="Embed texts")
async def create_embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """A vector of length 1 for each text, whatever its length."""
    service = service_of(request)
    return await in_thread(request, lambda: _embeddings(service, body))


@router.get("/v1/models", summary="The models that are served")
async def list_models(request: Request) -> Response:
    """Names for `model`, with the length of their vectors."""
    models = service_of(request).models
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "m2bert", "dim": model.dim,
         "max_tokens": model.max_tokens, "fingerprint": model.fingerprint}
        for name, model in models.items()
    ]  # fmt: skip
    return JsonAnswer({"object": "list", "data": data})


def check_texts(texts: list[str], limits: Limits, what: str = "input") -> None:
    """Raise Refusal where there are none, too many, or one is too long."""
    if not texts:
        raise Refusal(422, "empty", f"{what} must hold at least one text, got none; send some")
    if len(texts) > limits.texts:
        raise Refusal(
            422,
            "too_many",
            f"{what} may hold {limits.texts:,} texts, got {len(texts):,}; send some at a time",
        )
    for number, text in enumerate(texts):
        if len(text) > limits.characters:
            raise Refusal(
                422, "too_long",
                f"{what}: a text may have {limits.characters:,} characters, text {number} has {len(text):,}; divide it",
            )  # fmt: skip


def _embeddings(service: Service, body: EmbeddingsRequest) -> Response:
    model = service.model(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    check_texts(texts, service.limits)
    _check_dimensions(model, body.dimensions)
    made = model.embed(texts, body.input_type)
    vectors = [shortened(one.vector, body.dimensions) for one in made]
    data = [
        {"object": "embedding", "index": number, "embedding": _written(vector, body.encoding_format)}
        for number, vector in enumerate(vectors)
    ]
    tokens = sum(one.num_tokens for one in made)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonAnswer({"object": "list", "data": data, "model": model.name, "usage": usage})


def _check_dimensions(model: ScheduledEncoder, dimensions: int | None) -> None:
    if dimensions is None or dimensions == model.dim:
        return
    if not model.shortens:
        raise Refusal(422, "dimensions", f"{model.name} gives {model.dim} numbers and no fewer; leave dimensions out")
    if dimensions > model.dim:
        raise Refusal(422, "dimensions", f"dimensions must be 1 to {model.dim}, got {dimensions}; ask for fewer")


def shortened(vector: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first numbers of a vector (dim,), of length 1 again; all of it for None."""
    if dimensions is None or dimensions == len(vector):
        return vector
    kept = vector[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(kept))
    return (kept / (length or 1.0)).astype(np.float32)


def _written(vector: NDArray[np.float32], encoding_format: str) -> NDArray[np.float32] | str:
    if encoding_format == "float":
        return np.ascontiguousarray(vector)
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
