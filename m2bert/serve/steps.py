"""How encoders are run step by step: texts become pieces, pieces go through the model in batches that mix requests.

A piece is what the model reads at once: a window of a text for our models, a whole text for other people's.
Test: tests/serve/test_scheduler.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from m2bert.encoders.protocol import EncodedDocument, Encoder

if TYPE_CHECKING:
    from m2bert.encoders.embedder import Embedder
    from m2bert.encoders.sentence_transformer import SentenceTransformerEncoder

Kind = Literal["query", "document"]

# English text has about four characters a token; more are cut where a model's room ends.
CHARACTERS_PER_TOKEN = 4


@dataclass(eq=False)
class Piece:
    """Something that goes through the model at once. tokens: what it takes there. content: for who made it."""

    tokens: int
    content: Any


@dataclass
class Work:
    """A request's texts on their way: the pieces, and what makes embeddings of them when all are done."""

    pieces: list[Piece]
    finish: Callable[[], list[EncodedDocument]]


class Steps(Protocol):
    """An encoder as a scheduler drives it: `plan` in any thread, `run` in one."""

    def plan(self, texts: Sequence[str], kind: Kind, *, passages: bool) -> Work:
        """The work that texts are. Raises TextError naming the text that has no embedding."""

    def run(self, batch: Sequence[Piece]) -> None:
        """Put pieces of any works through the model."""


def steps_of(encoder: Encoder) -> Steps:
    """The steps of an Embedder, or of another encoder."""
    opened: Any = encoder
    return WindowSteps(opened) if hasattr(encoder, "plans") else TextSteps(opened)


class WindowSteps:
    """An Embedder: windows of different texts share a batch; queries and documents are encoded alike."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def plan(self, texts: Sequence[str], kind: Kind, *, passages: bool) -> Work:
        embedder = self._embedder
        plans = embedder.plans(texts, passages=passages)
        pieces = [
            Piece(embedder.width(last - first + 2), (plan, (first, last)))
            for plan in plans
            for first, last in plan.windows
        ]
        return Work(pieces, lambda: [embedder.finished(plan, passages=passages) for plan in plans])

    def run(self, batch: Sequence[Piece]) -> None:
        self._embedder.run([piece.content for piece in batch])


class TextSteps:
    """A SentenceTransformer: one piece a text. Its tokens are estimated until it is run, which counts them."""

    def __init__(self, encoder: SentenceTransformerEncoder) -> None:
        self._encoder = encoder

    def plan(self, texts: Sequence[str], kind: Kind, *, passages: bool) -> Work:
        room = self._encoder.max_tokens
        made: list[EncodedDocument | None] = [None] * len(texts)
        pieces = [
            Piece(min(len(text) // CHARACTERS_PER_TOKEN + 2, room), (kind, text, made, place))
            for place, text in enumerate(texts)
        ]
        return Work(pieces, lambda: [each for each in made if each is not None])

    def run(self, batch: Sequence[Piece]) -> None:
        contents = [piece.content for piece in batch]
        for kind in ("query", "document"):
            chosen = [content for content in contents if content[0] == kind]
            if chosen:
                for (_, _, made, place), one in zip(chosen, self._encoded(kind, [it[1] for it in chosen]), strict=True):
                    made[place] = one

    def _encoded(self, kind: str, texts: list[str]) -> list[EncodedDocument]:
        if kind == "document":
            return self._encoder.encode_documents(texts)
        counts = [self._encoder.count_tokens(text) for text in texts]
        vectors = self._encoder.encode(texts)
        return [EncodedDocument(vector, [], count, 1, 0) for vector, count in zip(vectors, counts, strict=True)]
