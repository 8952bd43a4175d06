"""The model: configuration, layers, poolings, files and tokenizer. It knows tensors and token ids, no documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
if TYPE_CHECKING:
    from m2bert.model.checkpoints import fingerprint as fingerprint, load_model as load_model, save_model as save_model
    from m2bert.model.configuration import M2BertConfig as M2BertConfig
    from m2bert.model.modeling import (
        M2BertForMaskedLM as M2BertForMaskedLM,
        M2BertForSequenceClassification as M2BertForSequenceClassification,
        M2BertModel as M2BertModel,
    )
    from m2bert.model.reference import load_reference as load_reference
    from m2bert.model.tokenization import load_tokenizer as load_tokenizer, train_tokenizer as train_tokenizer
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
