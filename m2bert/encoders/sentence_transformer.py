"""Other people's encoders: any SentenceTransformer as an m2bert.encoders.protocol.Encoder, its truncation counted.

Long texts are cut by sentence-transformers without a word; here every token is counted, and `split` divides a text
into pieces that are read whole. Needs sentence-transformers (the extra `peers`) when an encoder is made.
Test: tests/encoders/test_sentence_transformer.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2bert.encoders.protocol import EncodedDocument, Progress
from m2bert.errors import M2BertError, missing_package

# A GPU idles between small batches; on a processor large ones only leave its cache.
TEXTS_AT_ONCE = {"cpu": 32, "cuda": 256}
UNLIMITED = 1 << 30


class SentenceTransformerEncoder:
    """A SentenceTransformer: queries through encode_query, documents through encode_document, on its own terms.

    model: a folder, a name on the hub, or a SentenceTransformer, which stays where it is. device: "cpu", "cuda:1"; None
    leaves the choice to sentence-transformers. max_tokens: what it reads, prompt and special
    tokens included; what is longer is cut. Raises M2BertError if it cannot be loaded, or its tokenizer gives no places
    in the text.
    """

    overflow = "truncate"

    def __init__(self, model: Any, device: str | None = None) -> None:
        self.name = "SentenceTransformer" if not isinstance(model, str | Path) else Path(model).name
        self._model = _load(model, device) if isinstance(model, str | Path) else model
        self.location = str(model) if isinstance(model, str | Path) else self.name
        self._tokenizer = self._model.tokenizer
        if not getattr(self._tokenizer, "is_fast", False):
            raise M2BertError(f"peers: {self.name} must have a fast tokenizer, to count what it does not read")
        self.max_tokens = int(self._model.max_seq_length or UNLIMITED)
        prompt = (getattr(self._model, "prompts", None) or {}).get("document") or ""
        taken = self._tokenizer.num_special_tokens_to_add() + (len(self._offsets(prompt)) if prompt else 0)
        self._room = self.max_tokens - taken
        self.fingerprint = self._fingerprint()

    @cached_property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.encode(["one"]).shape[1])

    @property
    def device(self) -> str:
        """Where sentence-transformers runs the model: "cpu", "cuda:0"."""
        return str(self._model.device)

    @property
    def padding(self) -> str:
        """How texts of different lengths are brought to one, in words."""
        return "to the longest of a batch"

    def _fingerprint(self) -> str:
        """16 hex digits of weights, tokenizer, longest text and prompts."""
        digest = hashlib.sha256()
        for name, x in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().float().numpy().tobytes())
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        prompts = getattr(self._model, "prompts", None)
        modules = [str(module) for module in self._model]
        digest.update(json.dumps([vocabulary, self.max_tokens, prompts, modules], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings of queries (len(texts), dim) float32."""
        return self._encode(self._model.encode_query, texts, progress)

    def encode_documents(
        self, texts: Sequence[str], *, passages: bool = True, progress: Progress | None = None
    ) -> list[EncodedDocument]:
        """Embeddings of documents, cut where the model cuts them, with the number of tokens read and lost.

        There are no passages, asked for or not: what sentence-transformers pools has no parts.
        """
        vectors = self._encode(self._model.encode_document, texts, progress)
        counts = [len(each) for each in self._core().encode_batch(list(texts), add_special_tokens=False)]
        return [
            EncodedDocument(vector, [], min(count, self._room), 1, max(0, count - self._room))
            for vector, count in zip(vectors, counts, strict=True)
        ]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that are read, without special tokens."""
        return min(len(self._offsets(text)), self._room)

    def split(self, text: str) -> list[str]:
        """Pieces of equal numbers of tokens, as few as can be, each short enough to be read whole."""
        offsets = self._offsets(text)
        count = max(1, -(-len(offsets) // self._room))
        if count == 1:
            return [text]
        # One token less room: at a cut within a word a piece may have one more token than its share of the text.
        count = -(-len(offsets) // max(1, self._room - 1))
        cuts = [offsets[number * len(offsets) // count][0] for number in range(1, count)]
        return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def _core(self) -> Any:
        """The tokenizer itself, set to keep all of a text; the model sets it anew whenever it encodes."""
        core = self._tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        return core

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self._core().encode(text, add_special_tokens=False).offsets
        return offsets

    def _encode(
        self, encode: Callable[..., Any], texts: Sequence[str], progress: Progress | None
    ) -> NDArray[np.float32]:
        parts = []
        size = TEXTS_AT_ONCE.get(self.device.partition(":")[0], TEXTS_AT_ONCE["cpu"])
        for start in range(0, len(texts), size):
            chosen = list(texts[start : start + size])
            parts.append(np.asarray(encode(chosen, batch_size=size, show_progress_bar=False), np.float32))
            if progress is not None:
                progress(start + len(chosen), len(texts))
        return np.concatenate(parts)


def _load(model: str | Path, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing_package(f"peers: {model}", "sentence-transformers", "peers") from error
    try:
        return SentenceTransformer(str(model), device=device)
    except Exception as error:
        raise M2BertError(
            f"peers: {model} cannot be loaded as a SentenceTransformer ({' '.join(str(error).split())[:200]}); "
            "give the folder of one, or a name on the hub"
        ) from error
