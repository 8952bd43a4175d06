"""A text encoder without a model, for tests of what is built on encoders: hashed word counts, unit length."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EncodedText:
    """The members of a document embedding that evaluation reads."""

    vector: np.ndarray
    num_tokens: int
    num_windows: int
    num_truncated: int


class BagOfWords:
    """Counts words into `dim` buckets. Words beyond `limit` (if given) are lost and counted as truncated."""

    name = "bag-of-words"
    fingerprint = "0123456789ab"

    def __init__(self, dim: int = 4096, max_tokens: int = 8, limit: int | None = None) -> None:
        self.dim, self.max_tokens, self.limit = dim, max_tokens, limit

    def vector(self, text: str) -> np.ndarray:
        counts = np.zeros(self.dim, dtype=np.float32)
        for word in text.lower().split()[: self.limit]:
            counts[zlib.crc32(word.encode()) % self.dim] += 1
        return counts / np.linalg.norm(counts)

    def encode(self, texts, *, progress=None):
        if progress:
            progress(len(texts), len(texts))
        return np.stack([self.vector(text) for text in texts])

    def encode_documents(self, texts, *, progress=None):
        encoded = []
        for done, text in enumerate(texts, 1):
            count = len(text.split())
            lost = max(0, count - self.limit) if self.limit else 0
            windows = -(-(count - lost) // self.max_tokens)
            encoded.append(EncodedText(self.vector(text), count - lost, windows, lost))
            if progress:
                progress(done, len(texts))
        return encoded
