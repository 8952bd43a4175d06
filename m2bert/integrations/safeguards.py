"""What sentence-transformers would do to our models without a word: a conversion is refused, a cut is told.

It builds other kinds of models (SparseEncoder, MultiVectorEncoder) on any dense one, by layers that nobody has trained;
and it cuts texts where `max_seq_length` says. Its own classes are asked first, for our models alone. Loaded by
m2bert._registration as soon as sentence-transformers is.
Test: tests/integrations/test_sentence_transformers.py.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import sentence_transformers
from sentence_transformers.base.modules import Transformer

from m2bert.errors import M2BertError
from m2bert.model.modeling import M2BertModel
from m2bert.model.tokenization import count_tokens

REMEDY = {
    "SparseEncoder": "a text's words as learned weights are m2bert.integrations.sparse_encoder({name!r})",
    "MultiVectorEncoder": "open it as a SentenceTransformer",
}


def refuse_conversion(kind: Any, remedy: str) -> None:
    """Have a class of models refuse to be made of ours: M2BertError, with what to do instead."""
    convert = kind._load_converted_modules

    @functools.wraps(convert)
    def checked(self: Any, model_name_or_path: str, *args: Any, **options: Any) -> Any:
        modules, kwargs = convert(self, model_name_or_path, *args, **options)
        first = next(iter(modules.values() if hasattr(modules, "values") else modules))
        if isinstance(getattr(first, "model", None), M2BertModel):
            raise M2BertError(
                f"{kind.__name__}: {model_name_or_path!r} is a model of dense vectors, and a {kind.__name__} of it "
                f"would have layers that nobody has trained; {remedy.format(name=model_name_or_path)}"
            )
        return modules, kwargs

    kind._load_converted_modules = checked


def tell_of_cuts(kind: Any) -> None:
    """Have a class of modules that read texts warn where they cut one for a model of ours; once for each length."""
    preprocess = kind.preprocess

    @functools.wraps(preprocess)
    def told(self: Any, inputs: Sequence[Any], prompt: str | None = None, *args: Any, **options: Any) -> Any:
        features = preprocess(self, inputs, prompt, *args, **options)
        limit = options.get("max_length") or self.max_seq_length
        if isinstance(self.model, M2BertModel) and limit != getattr(self, "m2bert_told", None):
            mask = features.get("attention_mask")
            full = [] if mask is None else (mask.sum(dim=1) == limit).nonzero().flatten().tolist()
            texts = [(prompt or "") + inputs[row] for row in full if isinstance(inputs[row], str)]
            if (most := max(count_tokens(self.tokenizer, texts), default=0)) > (limit or 0):
                self.m2bert_told = limit
                warnings.warn(
                    f"m2bert: of a text of {most} tokens {limit} are read, because max_seq_length is {limit}; raise it "
                    "for the rest (this is said once)",
                    stacklevel=2,
                )
        return features

    kind.preprocess = told


for name, remedy in REMEDY.items():
    if hasattr(sentence_transformers, name):
        refuse_conversion(getattr(sentence_transformers, name), remedy)
tell_of_cuts(Transformer)
