"""POST /v1/embeddings and GET /v1/models, asked by OpenAI's client."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from serving import ask
from tiny import story, tiny_embedder

TEXTS = [story(1 + number % 60, seed=number) for number in range(500)]


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    import openai

    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def vectors(answer: Any) -> np.ndarray:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data])


def test_500_texts_have_the_vectors_of_the_embedder(client: Any) -> None:
    expected = tiny_embedder().encode_documents(TEXTS)
    answer = client.embeddings.create(model="unnamed", input=TEXTS)  # base64, as this client asks by itself
    np.testing.assert_allclose(vectors(answer), [one.vector for one in expected], atol=1e-5)
    assert answer.model == "unnamed"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(one.num_tokens for one in expected)


def test_base64_is_float(client: Any, url: str) -> None:
    floats = client.embeddings.create(model="unnamed", input=TEXTS[:9], encoding_format="float")
    body = {"input": TEXTS[:9], "encoding_format": "base64"}
    answer = ask(url + "/v1/embeddings", body).json
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in answer["data"]]
    np.testing.assert_array_equal(np.array(decoded), vectors(floats).astype(np.float32))


def test_dimensions_are_truncate_dim(client: Any) -> None:
    answer = client.embeddings.create(model="unnamed", input=TEXTS[:9], dimensions=5)
    np.testing.assert_allclose(vectors(answer), tiny_embedder(truncate_dim=5).encode(TEXTS[:9]), atol=1e-6)
    whole = client.embeddings.create(model="unnamed", input=TEXTS[:2], dimensions=16)
    np.testing.assert_allclose(vectors(whole), tiny_embedder().encode(TEXTS[:2]), atol=1e-6)


def test_one_text_and_queries(client: Any) -> None:
    answer = client.embeddings.create(model="unnamed", input="a river", extra_body={"input_type": "query"})
    np.testing.assert_allclose(vectors(answer), tiny_embedder().encode(["a river"]), atol=1e-6)


def test_models_are_listed(client: Any) -> None:
    [model] = client.models.list().data
    assert (model.id, model.dim, model.fingerprint) == ("unnamed", 16, tiny_embedder().fingerprint)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": [1, 2, 3]}, "token numbers belong to another model's vocabulary and are not taken, send text"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length=False"),
        ({"input": []}, "input must hold at least one text, got none"),
        ({"input": ["river", " "]}, "text 1 is empty; leave it out"),
        ({"input": "river", "dimensions": 17}, "dimensions must be 1 to 16, got 17"),
        ({"input": "river", "dimensions": 0}, "dimensions: Input should be greater than or equal to 1"),
        ({"input": "river", "encoding_format": "int8"}, "encoding_format: Input should be 'float' or 'base64'"),
        ({}, "input: Field required; GET /docs shows what is taken"),
    ],
)
def test_bad_requests_are_told_in_words(url: str, body: Any, words: str) -> None:
    answer = ask(url + "/v1/embeddings", body)
    assert answer.status == 422 and words in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"


def test_unknown_models_are_told_with_those_that_are_there(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="model must be one of unnamed, got 'text-embedding-3-small'"):
        client.embeddings.create(model="text-embedding-3-small", input="river")
