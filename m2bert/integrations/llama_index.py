"""LlamaIndex: our encoder as an embedding model, a search index as a retriever. Needs the extra `llama-index`.

Test: tests/integrations/test_llama_index.py.
"""

from __future__ import annotations

from typing import Any

from m2bert.encoders.embedder import Embedder
from m2bert.errors import missing_package
from m2bert.integrations.pieces import pieces_of
from m2bert.search.index import SearchIndex

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise missing_package("llama_index", "llama-index-core", "llama-index") from error


class LlamaIndexEmbedding(BaseEmbedding):
    """The vectors of an Embedder, by default of m2-bert-mini; texts of any length."""

    embedder: Any  # Embedder, which pydantic does not know

    def __init__(self, embedder: Embedder | None = None, **options: Any) -> None:
        chosen = embedder or Embedder()
        super().__init__(embedder=chosen, model_name=chosen.name, **options)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.embedder.encode(texts).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class LlamaIndexRetriever(BaseRetriever):
    """The best documents of a search index as nodes: of each its best passages, or all of it where `passages` is 0."""

    def __init__(self, index: SearchIndex, k: int = 10, passages: int = 1, rank: str = "all") -> None:
        self.index, self.k, self.passages, self.rank = index, k, passages, rank
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self.index.search(query_bundle.query_str, self.k, passages=self.passages, rank=self.rank)
        return [
            NodeWithScore(node=TextNode(text=text, metadata=facts), score=result.score)
            for result in found
            for text, facts in pieces_of(self.index, result)
        ]
