"""LangChain's own classes on our encoder and our index; vectors: tests/integrations/test_agreement.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from optional import needs
from tiny import tiny_embedder

from m2bert.search import Document, Section
from m2bert.search.index import SearchIndex

pytestmark = needs("langchain", "langchain_core")
DOCUMENTS = {"a.txt": "river stone light. paper engine.", "b.txt": "garden winter signal. harbor copper window."}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    index = SearchIndex(tmp_path_factory.mktemp("chain") / "store", tiny_embedder())
    index.add(Document(name, text, sections=(Section(0, "page 7"),)) for name, text in DOCUMENTS.items())
    return index


def test_their_vector_store_finds_by_our_embeddings(index: SearchIndex) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    from m2bert.integrations import LangChainEmbeddings

    store = InMemoryVectorStore(LangChainEmbeddings(index.embedder))
    store.add_texts(list(DOCUMENTS.values()))
    for text in DOCUMENTS.values():
        (found, score), *_ = store.similarity_search_with_score(text, k=2)
        assert found.page_content == text and score == pytest.approx(1.0, abs=1e-5)


def test_a_retriever_gives_passages_or_whole_documents(index: SearchIndex) -> None:
    from m2bert.integrations import LangChainRetriever

    expected = index.search("garden winter", 2, passages=1)
    found = LangChainRetriever(index=index, k=2).invoke("garden winter")
    assert [one.page_content for one in found] == [result.passages[0].text for result in expected]
    first, hit = found[0].metadata, expected[0].passages[0]
    assert first == {
        "id": "b.txt", "source": expected[0].source, "score": expected[0].score, "start": hit.start, "end": hit.end,
        "place": "page 7",
    }  # fmt: skip
    whole = LangChainRetriever(index=index, k=1, passages=0).invoke("garden winter")
    assert [one.page_content for one in whole] == [DOCUMENTS["b.txt"]]
    words = LangChainRetriever(index=index, k=2, rank="words").invoke("paper")
    assert [one.metadata["id"] for one in words] == ["a.txt"]


def test_the_modules_are_small() -> None:
    folder = Path(__file__).resolve().parents[2] / "m2bert" / "integrations"
    for name in ("langchain", "llama_index"):
        assert len((folder / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60
