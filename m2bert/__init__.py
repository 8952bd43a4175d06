"""M2-BERT: long-context retrieval encoders built from Monarch Mixer, their training, benchmark and search.

Public names only; each is imported when it is first used, so that `import m2bert` stays quick. After it transformers'
Auto classes, and what is built on them, know our models.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names
from m2bert._moved import MovedModules
from m2bert._registration import register_with_transformers

__version__ = "0.1.0"

_PUBLIC = {
    "__version__": "m2bert",
    "DocumentEmbedding": "m2bert.encoders.protocol",
    "Embedder": "m2bert.encoders.embedder",
    "M2BertConfig": "m2bert.model.configuration",
    "M2BertError": "m2bert.errors",
    "M2BertForMaskedLM": "m2bert.model.modeling",
    "M2BertForSequenceClassification": "m2bert.model.modeling",
    "M2BertModel": "m2bert.model.modeling",
    "SearchIndex": "m2bert.search.index",
    "load_model": "m2bert.model.checkpoints",
    "load_reference": "m2bert.model.reference",
    "model_folder": "m2bert.model.checkpoints",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.encoders.embedder import Embedder as Embedder
    from m2bert.encoders.protocol import DocumentEmbedding as DocumentEmbedding
    from m2bert.errors import M2BertError as M2BertError
    from m2bert.model.checkpoints import load_model as load_model, model_folder as model_folder
    from m2bert.model.configuration import M2BertConfig as M2BertConfig
    from m2bert.model.modeling import (
        M2BertForMaskedLM as M2BertForMaskedLM,
        M2BertForSequenceClassification as M2BertForSequenceClassification,
        M2BertModel as M2BertModel,
    )
    from m2bert.model.reference import load_reference as load_reference
    from m2bert.search.index import SearchIndex as SearchIndex
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
sys.meta_path.append(MovedModules())
register_with_transformers()
