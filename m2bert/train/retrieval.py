"""From a batch of queries and documents to its loss: which part of the model is trained, how it makes their vectors.

Tests: tests/train/test_finetune.py, tests/train/test_trained_part.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from m2bert.errors import M2BertError
from m2bert.train.trainer import LossFn

# Token ids and attention mask (rows, tokens) -> vectors (rows, dim).
Vectors = Callable[[Tensor, Tensor], Tensor]
RetrievalLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class TrainedPart(Protocol):
    """What of a model a run trains: `module`, whose parameters alone move and are kept in checkpoints."""

    module: torch.nn.Module

    def check_tokens(self, longest: int, longest_query: int) -> None:
        """Raise M2BertError when it cannot read documents and queries of so many tokens."""

    def vectors(self, module: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (rows, dim) by `module`, or by what several processes wrap around it."""


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


def encode(
    vectors_of: Vectors, input_ids: Tensor, attention_mask: Tensor, chunk_tokens: int, *, cached: bool = False
) -> Tensor:
    """Vectors (rows, dim) of padded rows, in groups of similar length, each padded to its own longest.

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


def retrieval_loss(loss: RetrievalLoss, part: TrainedPart, chunk_tokens: int, cached: bool = False) -> LossFn:
    """`loss` of a batch of query_*, document_* and, optionally, `ignored`, as the training loop wants it."""

    def loss_of(module: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        def vectors_of(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return part.vectors(module, input_ids, attention_mask)

        sides = [
            encode(
                vectors_of, inputs[f"{side}_input_ids"], inputs[f"{side}_attention_mask"], chunk_tokens, cached=cached
            )
            for side in ("query", "document")
        ]
        return loss(sides[0], sides[1], inputs.get("ignored"))

    return loss_of
