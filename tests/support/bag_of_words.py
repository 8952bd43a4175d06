"""A text encoder without a model, for tests of what is built on encoders: hashed word counts, unit length."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np

from m2bert.encoders.protocol import EncodedDocument, Passage


class BagOfWords:
    """Counts words into `dim` buckets. Words beyond `limit` (if given) are lost and counted as truncated.

    A document has one passage, all that was read of it, or one for every `passage_words` words, which add up to its
    vector. Quick to start in a process of its own.
    """

    name = location = "bag-of-words"
    fingerprint = "0123456789ab"
    overflow = "window"

    def __init__(
        self, dim: int = 4096, max_tokens: int = 8, limit: int | None = None, passage_words: int | None = None
    ) -> None:
        self.dim, self.max_tokens, self.limit, self.passage_words = dim, max_tokens, limit, passage_words

    def counts(self, words: list[str]) -> np.ndarray:
        counts = np.zeros(self.dim, dtype=np.float32)
        for word in words:
            counts[zlib.crc32(word.encode()) % self.dim] += 1
        return counts

    def vector(self, text: str) -> np.ndarray:
        counts = self.counts(text.lower().split()[: self.limit])
        return counts / np.linalg.norm(counts)

    def passages(self, text: str, vector: np.ndarray) -> list[Passage]:
        if self.passage_words is None:
            return [Passage(0, len(text), vector)]
        found = list(re.finditer(r"\S+", text))[: self.limit]
        norm = np.linalg.norm(self.counts([word[0].lower() for word in found]))
        firsts = range(0, len(found), self.passage_words)
        cuts = [0, *(found[first].start() for first in firsts[1:]), len(text)]
        return [
            Passage(start, end, self.counts([word[0].lower() for word in found[first:][: self.passage_words]]) / norm)
            for first, start, end in zip(firsts, cuts[:-1], cuts[1:], strict=True)
        ]

    def encode(self, texts: Any, *, progress: Any = None) -> Any:
        if progress:
            progress(len(texts), len(texts))
        return np.stack([self.vector(text) for text in texts])

    def encode_documents(self, texts: Any, *, passages: bool = True, progress: Any = None) -> Any:
        encoded = []
        for done, text in enumerate(texts, 1):
            count = len(text.split())
            lost = max(0, count - self.limit) if self.limit else 0
            windows = -(-(count - lost) // self.max_tokens)
            vector = self.vector(text)
            parts = self.passages(text, vector) if passages else []
            encoded.append(EncodedDocument(vector, parts, count - lost, windows, lost))
            if progress:
                progress(done, len(texts))
        return encoded
