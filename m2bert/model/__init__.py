"""The model: configuration, layers, poolings, files and tokenizer. It knows tensors and token ids, no documents."""

from __future__ import annotations

from m2bert._lazy import lazy_names

_PUBLIC = {
    "M2BertConfig": "m2bert.model.configuration",
    "M2BertForMaskedLM": "m2bert.model.modeling",
    "M2BertForSequenceClassification": "m2bert.model.modeling",
    "M2BertModel": "m2bert.model.modeling",
    "fingerprint": "m2bert.model.checkpoints",
    "load_model": "m2bert.model.checkpoints",
    "load_reference": "m2bert.model.reference",
    "load_tokenizer": "m2bert.model.tokenization",
    "save_model": "m2bert.model.checkpoints",
    "train_tokenizer": "m2bert.model.tokenization",
}
__all__ = list(_PUBLIC)
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
