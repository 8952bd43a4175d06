"""sentence-transformers: the words of a text as learned weights, as a SparseEncoder. Needs the extra `peers`.

Our model folders themselves open as dense SentenceTransformers after `import m2bert`.
Test: tests/integrations/test_sentence_transformers.py.
"""

from __future__ import annotations

import os
from typing import Any

from m2bert.errors import M2BertError, missing_package
from m2bert.model.checkpoints import model_folder


def sparse_encoder(model: str | os.PathLike[str] = "m2-bert-mini", device: str | None = None) -> Any:
    """A SparseEncoder whose vectors are those of Embedder.encode_sparse, of texts of any length.

    model: a shipped model's name, a model folder, or owner/name[@revision] on the hub, with term weights. Saved by its
    `save`, it opens as any SparseEncoder after `import m2bert`. Raises M2BertError for a model without term weights,
    and without sentence-transformers.
    """
    try:
        from sentence_transformers import SparseEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling
    except ImportError as error:
        raise missing_package("sparse_encoder", "sentence-transformers", "peers") from error
    transformer = Transformer(
        str(model_folder(model, "sparse_encoder")),
        processing_kwargs={"text": {"truncation": False}},  # counts, unlike a model, take any length
        modality_config={"text": {"method": "term_vectors", "method_output_name": None}},
        module_output_name="token_embeddings",
    )
    if transformer.model.term_weights is None:
        raise M2BertError(
            f"sparse_encoder: the model must have term weights, {str(model)!r} has none; fine-tune it with term_weights"
        )
    # The model hands over one state for each text, which is its vector.
    pooling = Pooling(transformer.model.config.vocab_size, "cls")
    return SparseEncoder(modules=[transformer, pooling], similarity_fn_name="dot", device=device)
