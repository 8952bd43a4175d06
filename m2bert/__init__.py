"""M2-BERT: long-context retrieval encoders built from Monarch Mixer, their training, benchmark and search.

Public names only; each is imported when it is first used, so that `import m2bert` stays quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DocumentEmbedding": "m2bert.embedding",
    "Embedder": "m2bert.embedding",
    "M2BertConfig": "m2bert.configuration",
    "M2BertError": "m2bert.errors",
    "M2BertForMaskedLM": "m2bert.modeling",
    "M2BertForSequenceClassification": "m2bert.modeling",
    "M2BertModel": "m2bert.modeling",
    "SearchIndex": "m2bert.index",
    "load_model": "m2bert.checkpoints",
    "load_reference": "m2bert.checkpoints",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'm2bert' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
