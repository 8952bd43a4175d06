"""Our encoder and our search as the classes that other libraries expect; each library is loaded when its class is used.

sentence-transformers, transformers and mteb open our model folders themselves after `import m2bert`, and so does what
is built on them; here stands only what that does not give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "LangChainEmbeddings": "m2bert.integrations.langchain",
    "LangChainRetriever": "m2bert.integrations.langchain",
    "LlamaIndexEmbedding": "m2bert.integrations.llama_index",
    "LlamaIndexRetriever": "m2bert.integrations.llama_index",
    "sparse_encoder": "m2bert.integrations.sentence_transformers",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.integrations.langchain import (
        LangChainEmbeddings as LangChainEmbeddings,
        LangChainRetriever as LangChainRetriever,
    )
    from m2bert.integrations.llama_index import (
        LlamaIndexEmbedding as LlamaIndexEmbedding,
        LlamaIndexRetriever as LlamaIndexRetriever,
    )
    from m2bert.integrations.sentence_transformers import sparse_encoder as sparse_encoder
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
