"""From a batch of queries and documents to its loss: which part of the model is trained, its vectors, their scores.

Queries and documents are encoded apart, so that neither is padded to the other's length.
Tests: tests/train/test_finetune.py, tests/train/test_trained_part.py, tests/train/test_scores.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from m2bert.errors import M2BertError
from m2bert.train.scores import passage_counts, passage_sums, score_matrix
from m2bert.train.trainer import LossFn

# Token ids and attention mask (rows, tokens) -> vectors (rows, dim) or (rows, passages, dim).
Vectors = Callable[[Tensor, Tensor], Tensor]
# Scores (nq, nd), and which of them are no negatives -> a scalar.
RetrievalLoss = Callable[[Tensor, Tensor | None], Tensor]


class TrainedPart(Protocol):
    """What of a model a run trains: `module`, whose parameters alone move and are kept in checkpoints."""

    module: torch.nn.Module

    def check_tokens(self, longest: int, longest_query: int) -> None:
        """Raise M2BertError when it cannot read documents and queries of so many tokens."""

    def vectors(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (rows, dim) by `module`, or by what several processes wrap around it."""

    def passages(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, most: int) -> Tensor:
        """What each passage adds to them (rows, most, dim), as m2bert.train.scores.passage_sums."""


class WholeModel:
    """Every parameter is trained; a text's vector is what the model pools."""

    def __init__(self, model: Any) -> None:
        self.module = model

    def check_tokens(self, longest: int, longest_query: int) -> None:
        """Raise M2BertError for more tokens than the model has positions."""
        positions = self.module.config.max_position_embeddings
        if max(longest, longest_query) > positions:
            raise M2BertError(
                f"finetune: lengths must be within the model's {positions} positions, got "
                f"{longest} for documents and {longest_query} for queries; lower them"
            )

    def vectors(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See TrainedPart."""
        pooled: Tensor = module(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return pooled

    def passages(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, most: int) -> Tensor:
        """See TrainedPart."""
        states = module(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return passage_sums(self.module, states, input_ids, attention_mask, most)


class TermWeightsAlone:
    """The term weights are trained by the cosines of sparse vectors; the encoder is never run.

    They are one number per piece of the vocabulary, so that texts of any length cost next to nothing.
    Raises M2BertError for a model without term weights.
    """

    def __init__(self, model: Any) -> None:
        if model.term_weights is None:
            raise M2BertError(
                "finetune: only_term_weights needs a model with term weights, got none; "
                "pass --set term_weights=true or another start"
            )
        self.module = model.term_weights

    def check_tokens(self, longest: int, longest_query: int) -> None:
        """Any number will do: no positions are involved."""

    def vectors(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See TrainedPart."""
        terms: Tensor = module(input_ids=input_ids, attention_mask=attention_mask)
        return terms

    def passages(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, most: int) -> Tensor:
        """Raises M2BertError: log2(1 + n) of a text is no sum over its passages."""
        raise M2BertError("finetune: only_term_weights has no passages; set passages to 0")


def encode(
    vectors_of: Vectors, input_ids: Tensor, attention_mask: Tensor, chunk_tokens: int, *, cached: bool = False
) -> Tensor:
    """Vectors (rows, ...) of padded rows, in groups of similar length, each padded to its own longest.

    With `cached` only the vectors are kept for the gradient, and a group's activations are made again when its turn
    comes: GradCache (arXiv 2101.06983) for any loss.
    """
    lengths = attention_mask.sum(dim=1)
    order = lengths.argsort(descending=True).tolist()
    vectors, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        group = order[start : start + max(1, chunk_tokens // longest)]
        rows = input_ids[group, :longest], attention_mask[group, :longest]
        vectors.append(checkpoint(vectors_of, *rows, use_reentrant=False) if cached else vectors_of(*rows))
        start += len(group)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.as_tensor(order)] = torch.arange(len(order))
    return torch.cat(vectors)[back.to(input_ids.device)]


@dataclass(frozen=True)
class Scoring:
    """How a run scores queries and documents: by the vectors of `part`, the best pair of passages counting `passages`.

    chunk_tokens, cached: as in encode. passages: 0 to 1, the share of the passages in a score.
    """

    part: TrainedPart
    chunk_tokens: int
    cached: bool = False
    passages: float = 0.0

    def queries(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (rows, dim)."""
        return self._encoded(partial(self.part.vectors, module), input_ids, attention_mask)

    def documents(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (rows, passages, dim) and counts (rows,) of passages; the whole as the only one if none are scored."""
        if self.passages == 0:
            vectors = self._encoded(partial(self.part.vectors, module), input_ids, attention_mask)
            return vectors[:, None], torch.ones(len(vectors), dtype=torch.long, device=vectors.device)
        counts = passage_counts(attention_mask)
        sums_of = partial(self.part.passages, module, most=int(counts.max()))
        return self._encoded(sums_of, input_ids, attention_mask), counts

    def _encoded(self, vectors_of: Vectors, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return encode(vectors_of, input_ids, attention_mask, self.chunk_tokens, cached=self.cached)

    def scores(self, queries: Tensor, documents: tuple[Tensor, Tensor], dim: int | None = None) -> Tensor:
        """Scores (nq, nd) by the first `dim` numbers of what `queries` and `documents` gave; None for all."""
        sums, counts = documents
        return score_matrix(queries[:, :dim], sums[:, :, :dim], counts, self.passages)


def retrieval_loss(loss: RetrievalLoss, scoring: Scoring, matryoshka: Sequence[int] = ()) -> LossFn:
    """`loss` of a batch of query_*, document_* and, optionally, `ignored`, as the training loop wants it.

    matryoshka: lengths; the result is the mean of the losses of whole vectors and of so many of their first numbers,
    each brought to unit norm again (arXiv 2205.13147, all lengths of the same importance).
    """

    def loss_of(module: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        queries = scoring.queries(module, inputs["query_input_ids"], inputs["query_attention_mask"])
        documents = scoring.documents(module, inputs["document_input_ids"], inputs["document_attention_mask"])
        ignored = inputs.get("ignored")
        losses = [loss(scoring.scores(queries, documents, dim), ignored) for dim in (None, *matryoshka)]
        return torch.stack(losses).mean()

    return loss_of
