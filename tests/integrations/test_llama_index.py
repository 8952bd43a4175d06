"""LlamaIndex's own classes on our encoder and our index; vectors: tests/integrations/test_agreement.py."""

from __future__ import annotations

import asyncio

import pytest
from optional import needs
from tiny import tiny_embedder

from m2bert.search import Document, Section
from m2bert.search.index import SearchIndex

pytestmark = [
    needs("llama-index", "llama_index"),
    pytest.mark.filterwarnings("ignore"),  # of the package's own future
]

DOCUMENTS = {"a.txt": "river stone light. paper engine.", "b.txt": "garden winter signal. harbor copper window."}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    index = SearchIndex(tmp_path_factory.mktemp("llama") / "store", tiny_embedder())
    index.add(Document(name, text, sections=(Section(0, "page 7"),)) for name, text in DOCUMENTS.items())
    return index


def test_their_index_finds_by_our_embeddings(index: SearchIndex) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from m2bert.integrations import LlamaIndexEmbedding

    model = LlamaIndexEmbedding(index.embedder)
    assert model.model_name == index.embedder.name
    nodes = [TextNode(text=text, id_=name) for name, text in DOCUMENTS.items()]
    retriever = VectorStoreIndex(nodes, embed_model=model).as_retriever(similarity_top_k=1)
    for name, text in DOCUMENTS.items():
        (found,) = retriever.retrieve(text)
        assert found.node.node_id == name and found.score == pytest.approx(1.0, abs=1e-5)
    assert asyncio.run(model.aget_query_embedding("river")) == model.get_query_embedding("river")


def test_a_retriever_gives_passages_or_whole_documents(index: SearchIndex) -> None:
    from m2bert.integrations import LlamaIndexRetriever

    expected = index.search("garden winter", 2, passages=1)
    found = LlamaIndexRetriever(index, k=2).retrieve("garden winter")
    assert [one.get_text() for one in found] == [result.passages[0].text for result in expected]
    assert [one.score for one in found] == [result.score for result in expected]
    hit = expected[0].passages[0]
    assert found[0].node.metadata == {
        "id": "b.txt", "source": expected[0].source, "start": hit.start, "end": hit.end,
        "place": "page 7",
    }  # fmt: skip
    (whole,) = LlamaIndexRetriever(index, k=1, passages=0).retrieve("garden winter")
    assert whole.get_text() == DOCUMENTS["b.txt"]
