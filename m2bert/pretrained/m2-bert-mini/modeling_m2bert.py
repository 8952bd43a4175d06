from m2bert.model.modeling import (  # noqa: F401
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
)
