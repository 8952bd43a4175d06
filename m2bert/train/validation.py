"""What a masked LM is worth on held-out text: loss by length of the documents, and the long-range probe.

Test: tests/train/test_validation.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2bert.data.examples import MIN_TOKENS, SpecialIds, continuing_pieces, masked_batch, special_ids
from m2bert.data.probes import Probe, long_range_probes, probe_length
from m2bert.data.tokens import TokenStore, load_tokens
from m2bert.encoders.devices import chosen_device
from m2bert.errors import M2BertError
from m2bert.model.checkpoints import load_whole

# Longest document, [CLS] and [SEP] included, and the bucket's name.
BUCKETS = ((128, "128"), (2048, "2k"), (8192, "8k"), (32768, "32k"))
LONGER = "longer"
Batch = dict[str, Tensor]


def bucket_of(tokens: int) -> str:
    """Name of the bucket of a document of `tokens` tokens, [CLS] and [SEP] included."""
    return next((name for longest, name in BUCKETS if tokens <= longest), LONGER)


def validation_batches(
    store: TokenStore, ids: SpecialIds, *, longest: int, batch_tokens: int, mask_rate: float, tokens: int, seed: int
) -> dict[str, list[Batch]]:
    """Fixed masked batches of natural documents by bucket: whole where `longest` tokens hold them, else in parts.

    The buckets that the text has share `tokens` evenly; parts of under ten tokens are left out.
    """
    rng = np.random.default_rng([seed, 2])
    payload = longest - 2
    members: dict[str, list[int]] = {}
    for index, length in enumerate(store.lengths):
        members.setdefault(bucket_of(int(length) + 2), []).append(index)
    made = {}
    for name in [*(name for _, name in BUCKETS), LONGER]:
        left, rows = tokens // max(len(members), 1), []
        for index in members.get(name, []):
            if left <= 0:
                break
            document = store.document(index)[:left]
            rows += [document[start : start + payload] for start in range(0, len(document), payload)]
            left -= len(document)
        rows = sorted((row for row in rows if len(row) >= MIN_TOKENS), key=len)
        size = max(1, batch_tokens // longest)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches = [masked_batch(group, ids, rng, mask_rate) for group in groups]
        if batches:
            made[name] = [{key: torch.as_tensor(array) for key, array in batch.items()} for batch in batches]
    return made


def evaluate_mlm(model: Any, batches: Iterable[Batch], *, bf16: bool) -> dict[str, float]:
    """Mean masked-LM loss (nats per masked token), accuracy, and how many masked tokens, over fixed batches."""
    total = correct = count = 0.0
    with evaluating(model, bf16):
        for batch in batches:
            on_device = {name: array.to(model.device) for name, array in batch.items()}
            labels = on_device["labels"][on_device["labels"] != -100]
            if labels.numel() == 0:
                continue
            outputs = model(**on_device)
            total += float(outputs.loss) * labels.numel()
            correct += float((outputs.logits.argmax(-1) == labels).sum())
            count += labels.numel()
    return {"loss": total / max(count, 1.0), "accuracy": correct / max(count, 1.0), "masked": count}


def evaluate_probes(model: Any, probes: Sequence[Probe], *, batch_tokens: int, bf16: bool) -> dict[str, float]:
    """How much better the names are told with the early text that holds them than with another in its place.

    count; loss, accuracy of the probes; control_loss, control_accuracy of their controls; gain, the mean of
    control loss - loss in nats, and gain_error, its standard error. The gain of a model that reads no more than 1,000
    tokens is exactly 0.
    """
    size = max(1, batch_tokens // len(probes[0].ids))
    losses: dict[str, list[float]] = {"ids": [], "control": []}
    hits = {"ids": 0.0, "control": 0.0}
    with evaluating(model, bf16):
        for start in range(0, len(probes), size):
            group = probes[start : start + size]
            targets = torch.tensor([probe.target for probe in group], device=model.device)
            labels = torch.full((len(group), len(group[0].ids)), -100, device=model.device)
            labels[torch.arange(len(group)), [probe.place for probe in group]] = targets
            for name in losses:
                rows = torch.as_tensor(np.stack([getattr(probe, name) for probe in group]), device=model.device)
                logits = model(input_ids=rows, attention_mask=torch.ones_like(rows), labels=labels).logits.float()
                losses[name] += F.cross_entropy(logits, targets, reduction="none").tolist()
                hits[name] += float((logits.argmax(-1) == targets).sum())
    gains = np.asarray(losses["control"]) - np.asarray(losses["ids"])
    spread = float(gains.std(ddof=1)) if len(probes) > 1 else float("nan")
    return {
        "count": len(probes),
        "loss": float(np.mean(losses["ids"])),
        "control_loss": float(np.mean(losses["control"])),
        "accuracy": hits["ids"] / len(probes),
        "control_accuracy": hits["control"] / len(probes),
        "gain": float(gains.mean()),
        "gain_error": spread / len(probes) ** 0.5,
    }


@contextmanager
def evaluating(model: Any, bf16: bool) -> Iterator[None]:
    """No gradients, no dropout, bfloat16 if asked for; the model's mode is restored."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        yield
    model.train(was_training)


class HeldOut:
    """Held-out text made ready once, to validate a masked LM on as often as one likes.

    longest: tokens per row at most; tokens: of all buckets together; probes: at most so many, none where `longest`
    cannot hold one or the text has none. Raises M2BertError when no document has ten tokens.
    """

    def __init__(
        self,
        store: TokenStore,
        ids: SpecialIds,
        *,
        continues: np.ndarray | None,
        longest: int,
        batch_tokens: int,
        mask_rate: float = 0.15,
        tokens: int = 100_000,
        probes: int = 64,
        seed: int = 17,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.buckets = validation_batches(
            store, ids, longest=longest, batch_tokens=batch_tokens, mask_rate=mask_rate, tokens=tokens, seed=seed
        )
        if not self.buckets:
            raise M2BertError(f"validation: needs a text of {MIN_TOKENS} tokens, got none; pass other files")
        self.probes: list[Probe] = []
        if longest >= probe_length():
            self.probes = long_range_probes(store, ids, continues, count=probes, seed=seed)

    def validate(self, model: Any, *, bf16: bool) -> dict[str, Any]:
        """validation_loss and validation_accuracy over all masked tokens; validation, the same by bucket with
        `masked` tokens of each; and, if there are probes, probe (see :func:`evaluate_probes`)."""
        scores = {name: evaluate_mlm(model, batches, bf16=bf16) for name, batches in self.buckets.items()}
        masked = max(sum(score["masked"] for score in scores.values()), 1.0)
        result: dict[str, Any] = {
            f"validation_{name}": sum(score[name] * score["masked"] for score in scores.values()) / masked
            for name in ("loss", "accuracy")
        }
        result["validation"] = scores
        if self.probes:
            result["probe"] = evaluate_probes(model, self.probes, batch_tokens=self.batch_tokens, bf16=bf16)
        return result


def validate_checkpoint(
    path: str,
    data: Sequence[str],
    *,
    length: int = 0,
    tokens: int = 100_000,
    probes: int = 64,
    seed: int = 17,
    cache: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Validate the masked LM in the folder, or run, `path` on the text files `data`, in float32.

    length: tokens per row at most, 0 for the model's positions. cache: folder that keeps the text's tokens. device:
    "cpu" or "cuda"; None takes the GPU, if there is one. Returns what :meth:`HeldOut.validate` does.
    Raises M2BertError when the model has no masked-LM head, for a length beyond its positions, without text, and for a
    device that is not there.
    """
    place = chosen_device(device, "validate")
    model, tokenizer = load_whole(path, "validate")
    if type(model).__name__ != "M2BertForMaskedLM":
        raise M2BertError(f"validate: needs a masked LM, got {type(model).__name__}; name a run of m2bert pretrain")
    positions = model.config.max_position_embeddings
    longest = length or positions
    if not MIN_TOKENS + 2 <= longest <= positions:
        raise M2BertError(f"validate: length must lie in {MIN_TOKENS + 2}..{positions}, got {longest}")
    held_out = HeldOut(
        load_tokens(data, tokenizer, cache, who="validate"),
        special_ids(tokenizer),
        continues=continuing_pieces(tokenizer),
        longest=longest,
        batch_tokens=max(longest, 8192),
        tokens=tokens,
        probes=probes,
        seed=seed,
    )
    return held_out.validate(model.to(place), bf16=False)
