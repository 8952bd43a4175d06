"""LangChain: our encoder as Embeddings, a search index as a retriever. Needs the extra `langchain`.

Test: tests/integrations/test_langchain.py.
"""

from __future__ import annotations

from typing import Any

from m2bert.encoders.embedder import Embedder
from m2bert.errors import missing_package
from m2bert.integrations.pieces import pieces_of

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise missing_package("langchain", "langchain-core", "langchain") from error


class LangChainEmbeddings(Embeddings):
    """The vectors of an Embedder, by default of m2-bert-mini, as lists of numbers; texts of any length."""

    def __init__(self, embedder: Embedder | None = None) -> None:
        self.embedder = embedder or Embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector of unit norm for each text. Raises M2BertError for a text without words."""
        return [vector.tolist() for vector in self.embedder.encode(texts)]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self.embed_documents([text])[0]


class LangChainRetriever(BaseRetriever):
    """The k best documents of a search index, each as its best passages, or whole where `passages` is 0.

    rank: as of SearchIndex.search. Metadata: m2bert.integrations.pieces, and the document's score.
    """

    index: Any  # SearchIndex, which pydantic does not know
    k: int = 10
    passages: int = 1
    rank: str = "all"

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        found = self.index.search(query, self.k, passages=self.passages, rank=self.rank)
        return [
            Document(text, metadata={**facts, "score": result.score})
            for result in found
            for text, facts in pieces_of(self.index, result)
        ]
