"""Texts to vectors: our model, other people's, and a cache in front of either, behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "CachedEncoder": "m2bert.encoders.cache",
    "DocumentEmbedding": "m2bert.encoders.protocol",
    "Embedder": "m2bert.encoders.embedder",
    "EncodedDocument": "m2bert.encoders.protocol",
    "Encoder": "m2bert.encoders.protocol",
    "Passage": "m2bert.encoders.protocol",
    "SentenceTransformerEncoder": "m2bert.encoders.sentence_transformer",
    "open_encoder": "m2bert.encoders.opening",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.encoders.cache import CachedEncoder as CachedEncoder
    from m2bert.encoders.embedder import Embedder as Embedder
    from m2bert.encoders.opening import open_encoder as open_encoder
    from m2bert.encoders.protocol import (
        DocumentEmbedding as DocumentEmbedding,
        EncodedDocument as EncodedDocument,
        Encoder as Encoder,
        Passage as Passage,
    )
    from m2bert.encoders.sentence_transformer import SentenceTransformerEncoder as SentenceTransformerEncoder
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
