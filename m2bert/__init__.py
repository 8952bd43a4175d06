"""M2-BERT: long-context retrieval encoders built from Monarch Mixer, their training, benchmark and search.

Public names only; each is imported when it is first used, so that `import m2bert` stays quick.
"""

from __future__ import annotations

import sys

from m2bert._lazy import lazy_names
from m2bert._moved import MovedModules

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
}
__all__ = list(_PUBLIC)
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
sys.meta_path.append(MovedModules())
