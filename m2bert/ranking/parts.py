"""A document's score: its whole, its best passages and its words, each times a weight.

    whole      cosine of the query and the document's vector, the paper's single vector
    passages   the highest cosine of the query and two neighbouring passages (m2bert.ranking.passages)
    words      BM25 over the square root of the query's words and the logarithm of the number of documents
               (m2bert.ranking.bm25.word_scale)

    terms      cosine of the sparse vectors of both, learned weights of the vocabulary's pieces (Embedder.encode_sparse)

"all" is the first three: beside BM25 the learned weights add nothing (docs/retrieval.md), so stores do not keep them.
None of the parts depends on what else was found, so they can be added whatever the query and the store. Stores,
evaluation and the demo rank by this one implementation. A leaf: numbers only.
Test: tests/ranking/test_parts.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from m2bert.errors import M2BertError

WHOLE, PASSAGES, WORDS, TERMS = PARTS = ("whole", "passages", "words", "terms")
ALL = "all"
FILE = "ranking.json"
"""Where a model's folder keeps its mixture, if it has one of its own."""

Scores = TypeVar("Scores", bound=Any)
"""A number, or an array of them."""


@dataclass(frozen=True)
class Mixture:
    """The weight of each part, 0 or more, not all 0. The defaults are those of the shipped model.

    They were chosen by `m2bert evaluate mixture` on train splits that the model had not seen (docs/retrieval.md).
    Raises M2BertError for other weights.
    """

    whole: float = 0.7
    passages: float = 0.3
    words: float = 0.7
    terms: float = 0.0

    def __post_init__(self) -> None:
        weights = [getattr(self, field.name) for field in fields(self)]
        if not all(isinstance(x, int | float) and 0 <= x < float("inf") for x in weights) or not any(weights):
            raise M2BertError(f"rank: weights must be numbers of 0 or more and not all 0, got {weights}")

    def only(self, rank: str) -> Mixture:
        """The mixture of the parts in `rank`: "all", or names joined by +; a part alone has weight 1.

        Raises M2BertError for other names.
        """
        if rank == ALL:
            return self
        names = str(rank).split("+")
        if not set(names) <= set(PARTS) or len(set(names)) < len(names):
            known = ", ".join((ALL, *PARTS))
            raise M2BertError(f"rank: must be {known}, or some of the parts joined by +, got {rank!r}")
        if len(names) == 1:
            return Mixture(**{part: float(part == names[0]) for part in PARTS})
        return Mixture(**{part: getattr(self, part) if part in names else 0.0 for part in PARTS})

    @property
    def used(self) -> list[str]:
        """The parts of a weight above 0."""
        return [part for part in PARTS if getattr(self, part) > 0]

    def weighted(self, scores: Mapping[str, Scores]) -> dict[str, Scores]:
        """What each part that counts adds to the score, given what each part says."""
        return {part: getattr(self, part) * scores[part] for part in self.used}

    def combined(self, scores: Mapping[str, Scores]) -> Scores:
        """The score: the sum of `weighted`."""
        total: Scores = sum(self.weighted(scores).values())
        return total

    @classmethod
    def read(cls, folder: Path) -> Mixture:
        """The mixture that a model's folder keeps, or the default one. Raises M2BertError for another file."""
        file = folder / FILE
        if not file.is_file():
            return cls()
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise M2BertError(
                f"rank: {file} must hold weights such as {json.dumps(asdict(cls()))}, but {error}; mend or remove it"
            ) from error


def mixture_of(encoder: Any) -> Mixture:
    """The encoder's own mixture, or the default one."""
    mixture: Mixture = getattr(encoder, "mixture", Mixture())
    return mixture
