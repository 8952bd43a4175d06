"""Texts to vectors: our model, other people's, and a cache in front of either, behind one protocol."""

from __future__ import annotations

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
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
