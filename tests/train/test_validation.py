"""Held-out text: buckets by length, what is masked, and the loss over masked tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_config

from m2bert.data.examples import SpecialIds
from m2bert.data.tokens import TokenStore
from m2bert.errors import M2BertError
from m2bert.model.modeling import M2BertForMaskedLM
from m2bert.train.validation import HeldOut, bucket_of, evaluate_mlm, validation_batches

IDS = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4, vocab_size=97)
ALL = {"longest": 96, "batch_tokens": 400, "mask_rate": 0.15, "seed": 1}


def made_store(lengths: list[int]) -> TokenStore:
    tokens = np.random.default_rng(0).integers(5, 97, sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenStore(tokens, offsets, np.zeros(len(lengths), dtype=np.int32), ("made",))


def test_buckets_are_by_the_documents_own_length() -> None:
    names = [bucket_of(n) for n in (1, 128, 129, 2048, 2049, 8192, 8193, 32768, 32769)]
    assert names == ["128", "128", "2k", "2k", "8k", "8k", "32k", "32k", "longer"]
    made = validation_batches(made_store([60, 126, 127, 3000, 5, 40000]), IDS, tokens=10**6, **ALL)
    real = {name: sum(int(b["attention_mask"].sum()) for b in batches) for name, batches in made.items()}
    # 94 tokens a row and two special ones; a rest of 86 and 60 are kept, that of 5 tokens is not.
    assert real == {"128": 62 + 96 + 34, "2k": 96 + 35, "8k": 3000 + 2 * 32, "longer": 40000 + 2 * 426}
    assert max(b["input_ids"].shape[1] for batches in made.values() for b in batches) == 96


def test_buckets_share_the_tokens() -> None:
    made = validation_batches(made_store([90] * 200 + [1000] * 40), IDS, tokens=8000, **ALL)
    real = {name: sum(int(b["attention_mask"].sum()) for b in batches) for name, batches in made.items()}
    assert all(3900 < count < 4200 for count in real.values()) and set(real) == {"128", "2k"}
    masked = sum(int((b["labels"] != -100).sum()) for b in made["2k"])
    assert abs(masked - 0.15 * 4000) < 5 * (0.15 * 0.85 * 4000) ** 0.5


def test_loss_counts_masked_tokens_alone() -> None:
    model = M2BertForMaskedLM(tiny_config()).train()
    ids = torch.randint(5, 97, (3, 20))
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[2, 7] = 9, 11
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double().log_softmax(-1)
    expected = -(logits[0, 3, 9] + logits[2, 7, 11]) / 2
    nothing = {**batch, "labels": torch.full_like(ids, -100)}
    got = evaluate_mlm(model, [batch, nothing], bf16=False)
    assert got["loss"] == pytest.approx(expected.item(), rel=1e-5) and got["masked"] == 2
    assert model.training


def test_all_is_the_mean_over_the_buckets_tokens() -> None:
    held_out = HeldOut(made_store([90] * 5 + [500] * 3), IDS, continues=None, longest=96, batch_tokens=400, seed=1)
    model = M2BertForMaskedLM(tiny_config())
    result = held_out.validate(model, bf16=False)
    everything = [batch for batches in held_out.buckets.values() for batch in batches]
    together = evaluate_mlm(model, everything, bf16=False)
    assert result["validation_loss"] == pytest.approx(together["loss"], rel=1e-6)
    assert result["validation_accuracy"] == pytest.approx(together["accuracy"])
    assert set(result["validation"]) == {"128", "2k"} and "probe" not in result
    with pytest.raises(M2BertError, match="needs a text of 10 tokens"):
        HeldOut(made_store([5, 6]), IDS, continues=None, longest=96, batch_tokens=400)
