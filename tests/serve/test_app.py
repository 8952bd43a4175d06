"""What Prometheus reads, and what is said of failures that nobody foresaw."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import ask, served
from tiny import story, tiny_embedder

from m2bert.serve.limits import Refusal
from m2bert.serve.service import Service


class Failing:
    """An embedder whose batches fail once `fails` is set."""

    fails = False

    def __init__(self) -> None:
        self._embedder = tiny_embedder()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def run(self, batch: Any) -> None:
        if self.fails:
            raise RuntimeError("secret at /home/somebody/model")
        self._embedder.run(batch)


@pytest.fixture(scope="module")
def encoder() -> Failing:
    return Failing()


@pytest.fixture(scope="module")
def url(encoder: Failing) -> Iterator[str]:
    service = Service()
    service.add_model(encoder)
    with served(service) as address:
        yield address


def metrics(url: str) -> dict[tuple[str, ...], float]:
    text = ask(url + "/metrics").body.decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_requests_times_queue_batches_and_tokens(url: str) -> None:
    before = metrics(url)
    texts = [story(10, seed=number) for number in range(5)]
    tokens = sum(one.num_tokens + 2 for one in tiny_embedder().encode_documents(texts))
    assert ask(url + "/v1/embeddings", {"input": texts}).status == 200
    assert ask(url + "/v1/embeddings", {"input": []}).status == 422
    assert ask(url + "/elsewhere/of/no/use").status == 404
    after = metrics(url)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert grown("m2bert_requests_total", "/v1/embeddings", "200") == 1
    assert grown("m2bert_requests_total", "/v1/embeddings", "422") == 1
    assert grown("m2bert_requests_total", "other", "404") == 1
    assert grown("m2bert_request_seconds_count", "/v1/embeddings") == 2
    assert grown("m2bert_tokens_total") == grown("m2bert_batch_tokens_sum") == tokens
    assert grown("m2bert_batch_pieces_sum") == 5 and grown("m2bert_batch_seconds_count") >= 1
    assert after["m2bert_waiting_requests",] == after["m2bert_waiting_tokens",] == 0
    assert after["process_resident_memory_bytes",] > 1e7


def test_a_failure_is_told_without_its_trace(url: str, encoder: Failing, caplog: Any) -> None:
    encoder.fails = True
    try:
        answer = ask(url + "/v1/embeddings", {"input": "river"})
    finally:
        encoder.fails = False
    assert answer.status == 500 and answer.error["type"] == "server_error"
    assert answer.error["message"] == "the server failed at this; its log says why"
    assert "secret at /home/somebody/model" in caplog.text
    assert ask(url + "/v1/embeddings", {"input": "river"}).status == 200


def test_models_and_stores_of_the_same_name_are_told_apart(tmp_path: Any) -> None:
    from m2bert.search.index import SearchIndex

    service = Service()
    models = [service.add_model(tiny_embedder()), service.add_model(tiny_embedder(truncate_dim=8))]
    assert list(service.models) == ["unnamed", "unnamed@8"] and service.model(None) is models[0]
    for parent, options in (("a", {}), ("b", {"truncate_dim": 8})):
        SearchIndex(tmp_path / parent / "notes", tiny_embedder(**options)).add({"x": "river"})
    for parent, model in zip("ab", models, strict=True):
        service.add_store(tmp_path / parent / "notes", model)
    assert list(service.stores) == ["notes", "notes-2"] and service.store("notes-2").index.dim == 8
    with pytest.raises(Refusal, match=re.escape("store must be one of notes, notes-2, got 'other'")):
        service.store("other")
    service.close()
