"""Training of the mini configuration against its plain-torch twin and a BERT of the same width and depth with SDPA.

One step is forward, backward and an AdamW update of rate 0 (all of its work, and the weights stay the same for
everybody's next step) on one document of 2,048 tokens, 30 % of them masked; tokens per second are 2,048 / seconds. The
BERT gets our masked-LM head, which scores the masked positions alone, so that encoders are compared and not heads.
"matrix products" is what a step of the plain-torch twin multiplies, forward and backward, and nothing else: a step that
makes the same products by torch cannot be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from m2bert import M2BertConfig, M2BertForMaskedLM
from m2bert.model.cross_entropy import cross_entropy_sum
from m2bert.model.layers import MaskedLMHead
from m2bert.train.settings import PRESETS

VOCABULARY = 16384


class BertWithOurHead(nn.Module):
    """transformers' BERT with SDPA, and the head of M2BertForMaskedLM."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.hidden_size // 64,
                intermediate_size=config.intermediate_size,
                max_position_embeddings=config.max_position_embeddings,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )
        self.head = MaskedLMHead(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids).last_hidden_state[labels != -100]
        logits = nn.functional.linear(self.head(hidden), self.bert.embeddings.word_embeddings.weight, self.bias)
        return cross_entropy_sum(logits, labels[labels != -100]) / len(logits)


def step_of(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A training step; returns the loss and the logarithm of every gradient's norm: small ones count as well."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        norms = [p.grad.norm().clamp(min=1e-12).log() for p in model.parameters() if p.grad is not None]
        return torch.stack([loss.detach(), *norms])

    return step


class MatrixProducts(TorchDispatchMode):
    """Records the matrix products of what runs under it, and makes them again on other numbers."""

    KINDS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Tensor]] = []
        self.operands: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.KINDS:
            operands = [self.like(x) for x in args]
            self.calls.append(lambda: func(*operands))
        return func(*args, **(kwargs or {}))

    def like(self, x: Tensor) -> Tensor:
        """A tensor of the shape and strides of x."""
        key = (x.shape, x.stride())
        if key not in self.operands:
            self.operands[key] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).normal_()
        return self.operands[key]

    def again(self) -> Tensor:
        with torch.no_grad():
            for call in self.calls:
                last = call()
        return last


@pytest.mark.parametrize("seqlen", [2048])
def test_training_step(versus: Callable[..., None], seqlen: int) -> None:
    fields: dict[str, Any] = {**PRESETS["mini"], "vocab_size": VOCABULARY}
    ours, twin = (M2BertForMaskedLM(M2BertConfig(**fields, kernels=kernels)) for kernels in ("m2ops", "reference"))
    twin.load_state_dict(ours.state_dict())
    bert = BertWithOurHead(ours.config)
    input_ids = torch.randint(5, VOCABULARY, (1, seqlen))
    labels = torch.where(torch.rand(1, seqlen) < 0.3, input_ids, -100)
    steps = {
        name: step_of(model.train(), lambda model=model: model(input_ids=input_ids, labels=labels).loss)
        for name, model in (("ours", ours), ("plain torch", twin))
    }
    steps["BERT, SDPA"] = step_of(bert.train(), lambda: bert(input_ids, labels))
    with MatrixProducts() as products:
        exact = steps["plain torch"]().double()
    steps["matrix products"] = products.again
    versus(
        "training step of the mini configuration, float32",
        f"1 x {seqlen} tokens",
        steps.pop("ours"),
        steps,
        exact=exact,
        bound=1e-4,
        rounds=3,
    )
