"""Texts to embeddings, and to the contribution of every passage to them.

    texts -> token ids -> windows of the model's length -> batches of a token budget -> token states -> sums

With mean pooling the embedding of a document is the normalised mean of its token states, so its score against a query
is a sum over its tokens: the sum over a passage's tokens is exactly what that passage contributes. The same holds for
weighted pooling and lexical features, where repetitions are counted over the whole document, all its windows
together.
Tests: tests/encoders/test_embedder.py, tests/model/test_lexical_features.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2bert.encoders.passages import cut_passages
from m2bert.encoders.protocol import DocumentEmbedding, Passage, Progress
from m2bert.encoders.windows import Plan, groups_of_characters, repetition_factors_of
from m2bert.errors import M2BertError, TextError
from m2bert.model.checkpoints import fingerprint, load_model
from m2bert.model.pooling import sums_of_runs

DEFAULT_MODEL = "m2-bert-mini"
OVERFLOWS = ("error", "truncate", "window")
# Characters tokenised at once: the tokenizer's objects take some hundred bytes per token.
CHARACTERS_AT_ONCE = 4_000_000


class Embedder:
    """Encodes texts with an M2-BERT model; what a text is batched with does not change its embedding."""

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] = DEFAULT_MODEL,
        *,
        overflow: str = "window",
        batch_tokens: int = 8192,
        threads: int | None = None,
    ) -> None:
        """`model`: a shipped model's name, a model folder, or a pair (M2BertModel, tokenizer).

        `overflow` says what to do with a text longer than the model: "window" encodes it in windows of equal
        length and averages their token states together, "truncate" drops the rest and counts it, "error"
        refuses. `batch_tokens`: tokens, padding included, that go through the model at once. `threads`:
        torch's threads while encoding (None: as they are). Raises M2BertError on bad arguments and unreadable
        models.
        """
        if overflow not in OVERFLOWS:
            raise M2BertError(f"Embedder: overflow must be one of {', '.join(OVERFLOWS)}, got {overflow!r}")
        for name, value in (("batch_tokens", batch_tokens), ("threads", threads)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise M2BertError(f"Embedder: {name} must be a whole number of at least 1, got {value!r}")
        self.overflow = overflow
        self.batch_tokens = batch_tokens
        self.threads = threads
        if isinstance(model, tuple) and len(model) == 2 and hasattr(model[0], "config"):
            self._model, self._tokenizer = model
            self.name = Path(getattr(self._model.config, "_name_or_path", "") or "unnamed").name
            self.location = self.name
        elif not isinstance(model, str | os.PathLike):
            raise M2BertError(
                f"Embedder: model must be a name, a folder or a pair (M2BertModel, tokenizer), "
                f"got {type(model).__name__}; give one of these"
            )
        else:
            self._model, self._tokenizer = load_model(model)
            folder = Path(model)
            self.name = folder.resolve().name if folder.is_dir() else str(model)
            self.location = str(folder.resolve()) if folder.is_dir() else str(model)
        self.dim = int(self._model.config.embedding_size)
        positions = int(self._model.config.max_position_embeddings)
        self.max_tokens = min(positions, int(self._tokenizer.model_max_length))
        if self.max_tokens < 3:
            raise M2BertError(f"Embedder: a model must read 3 tokens, {self.name!r} reads {self.max_tokens}")
        rows = int(self._model.config.vocab_size)
        if len(self._tokenizer) > rows:
            raise M2BertError(
                f"Embedder: the tokenizer of {self.name!r} must have at most the model's {rows} pieces, "
                f"got {len(self._tokenizer)}; use the tokenizer it was trained with"
            )
        for token in ("cls_token", "sep_token"):
            if getattr(self._tokenizer, token) is None:
                raise M2BertError(f"Embedder: the tokenizer of {self.name!r} must have a {token}; set it")

    @property
    def fingerprint(self) -> str:
        """16 hex digits naming weights, configuration and tokenizer together; computed at every call."""
        return fingerprint(self._model, self._tokenizer)

    @property
    def device(self) -> str:
        """Where the model's weights lie: "cpu", "cuda:0"."""
        return str(next(self._model.parameters()).device)

    @property
    def padding(self) -> str:
        """How texts of different lengths are brought to one, in words."""
        if self._model.config.pad_to_max_length:
            return f"to {self._model.config.max_position_embeddings} tokens"
        return "to the longest of a batch"

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings (len(texts), dim) float32 of unit norm.

        Raises M2BertError naming the text that has none.
        """
        _check_texts(texts)
        result = np.empty((len(texts), self.dim), dtype=np.float32)
        for plan, embedding in self._embed(texts, progress, with_passages=False):
            result[plan.number] = embedding.vector
        return result

    def encode_documents(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[DocumentEmbedding]:
        """Embeddings with their passages and token counts, in the order of `texts`; the vectors are encode's.

        Raises M2BertError naming the text that has no embedding.
        """
        _check_texts(texts)
        finished = self._embed(texts, progress, with_passages=True)
        found = {plan.number: embedding for plan, embedding in finished}
        return [found[number] for number in range(len(texts))]

    def _embed(
        self, texts: Sequence[str], progress: Progress | None, *, with_passages: bool
    ) -> Iterator[tuple[Plan, DocumentEmbedding]]:
        """Embeddings in the order they are finished."""
        plans = list(self._plan_all(texts, with_passages=with_passages and self._sums_states))
        total = sum(len(plan.ids) + 2 * len(plan.windows) for plan in plans)
        done = 0
        if progress is not None:
            progress(done, total)
        with self._inference():
            for batch in self._batches(plans):
                self._add_states(batch)
                for plan in dict((plan.number, plan) for plan, _ in batch).values():
                    if plan.open_windows == 0:
                        yield plan, self._finish(plan)
                done += sum(last - first + 2 for _, (first, last) in batch)
                if progress is not None:
                    progress(done, total)

    @property
    def _sums_states(self) -> bool:
        return self._model.config.pooling in ("mean", "weighted")

    def _plan_all(self, texts: Sequence[str], *, with_passages: bool) -> Iterator[Plan]:
        core = self._tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        encode = core.encode_batch if with_passages else core.encode_batch_fast
        for start, stop in groups_of_characters(texts, CHARACTERS_AT_ONCE):
            encodings = encode(list(texts[start:stop]), add_special_tokens=False)
            for number, encoding in zip(range(start, stop), encodings, strict=True):
                yield self._plan(number, texts[number], encoding, with_passages)

    def _plan(self, number: int, text: str, encoding: Any, with_passages: bool) -> Plan:
        ids = np.asarray(encoding.ids, dtype=np.int32)
        room = self.max_tokens - 2
        if len(ids) == 0:
            raise TextError("Embedder", number, f"holds no tokens, got {text[:40]!r}; leave it out")
        if self.overflow == "error" and len(ids) > room:
            raise TextError(
                "Embedder",
                number,
                f"has {len(ids)} tokens and {self.name!r} reads at most {room}; "
                f"use overflow='window' or overflow='truncate'",
            )
        num_truncated = max(0, len(ids) - room) if self.overflow == "truncate" else 0
        ids = ids[: len(ids) - num_truncated]
        firsts, spans = [0], [(0, len(text))]
        if with_passages:
            offsets = encoding.offsets[: len(ids)]
            read = text[: offsets[-1][1]] if num_truncated else text
            firsts, spans = cut_passages(read, offsets)
        count = -(-len(ids) // room)
        bounds = [number * len(ids) // count for number in range(count + 1)]
        windows = list(pairwise(bounds))
        factors = self._repetition_factors(ids, count) if self._counts_repetitions else None
        return Plan(number, ids, np.asarray(firsts, dtype=np.int64), spans, num_truncated, windows, factors)

    @property
    def _counts_repetitions(self) -> bool:
        config = self._model.config
        return bool(config.pooling == "weighted" or config.lexical_features)

    def _repetition_factors(self, ids: NDArray[np.int32], windows: int) -> NDArray[np.float64]:
        """log2(1 + n) / n of [CLS], each of `ids` and [SEP]: n counts the document, each window's [CLS] and [SEP]."""
        own = np.concatenate([[self._tokenizer.cls_token_id], ids, [self._tokenizer.sep_token_id]])
        counts = np.bincount(own)
        counts[own[[0, -1]]] += windows - 1
        result: NDArray[np.float64] = (np.log2(1 + counts) / np.maximum(counts, 1))[own]
        return result

    def _batches(self, plans: list[Plan]) -> Iterator[list[tuple[Plan, tuple[int, int]]]]:
        """Windows in batches of similar length within the budget, the longest first."""
        windows = [(plan, window) for plan in plans for window in plan.windows]
        windows.sort(key=lambda item: item[1][0] - item[1][1])
        batch: list[tuple[Plan, tuple[int, int]]] = []
        width = 0
        for plan, (first, last) in windows:
            if batch and (len(batch) + 1) * width > self.batch_tokens:
                yield batch
                batch = []
            if not batch:
                width = self._width(last - first + 2)
            batch.append((plan, (first, last)))
        if batch:
            yield batch

    def _width(self, num_tokens: int) -> int:
        """Tokens that a window takes in the model."""
        config = self._model.config
        return int(config.max_position_embeddings) if config.pad_to_max_length else num_tokens

    @contextmanager
    def _inference(self) -> Iterator[None]:
        threads, training, pools = torch.get_num_threads(), self._model.training, self._model.add_pooling
        device_type = next(self._model.parameters()).device.type
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        self._model.eval()
        self._model.add_pooling = pools and not self._sums_states  # sums are taken here
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.autocast(device_type, enabled=False))
                stack.enter_context(self._model.cached_filters())
                yield
        finally:
            self._model.train(training)
            self._model.add_pooling = pools
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _add_states(self, batch: list[tuple[Plan, tuple[int, int]]]) -> None:
        """Run the model on one batch of windows and add its states to the sums of their passages."""
        device = next(self._model.parameters()).device
        input_ids, mask, rows = self._assemble(batch)
        output = self._model(input_ids.to(device), attention_mask=mask.to(device))
        num_rows = sum(len(plan.firsts) for plan, _ in batch)
        factors = repetition_factors_of(batch) if self._counts_repetitions else None
        if self._sums_states:
            chosen = output.last_hidden_state[mask.to(device)]
            weights = torch.ones(len(chosen), device=device)
            if self._model.config.pooling == "weighted":
                weights = (self._model.token_weights(chosen) * torch.from_numpy(factors).to(device)).float()
            counts = torch.bincount(rows, minlength=num_rows)
            sums = sums_of_runs(self._model.features(chosen).float(), weights, counts)
        else:
            sums = output.pooler_output
        sums_on_host, start = sums.float().cpu().numpy(), 0
        if self._model.config.lexical_features:
            assert factors is not None
            lexical = self._lexical_sums(input_ids[mask].numpy(), rows.numpy(), factors, num_rows)
            sums_on_host = np.concatenate([sums_on_host, lexical], axis=1)
        for plan, _ in batch:
            part = sums_on_host[start : start + len(plan.firsts)]
            start += len(plan.firsts)
            plan.sums = part.copy() if plan.sums is None else plan.sums + part
            plan.open_windows -= 1

    def _lexical_sums(
        self, ids: NDArray[np.int64], rows: NDArray[np.int64], factors: NDArray[np.float64], num_rows: int
    ) -> NDArray[np.float32]:
        """Sums (num_rows, lexical_features) of what each token adds to the lexical features of its row."""
        size = int(self._model.config.lexical_features)
        weights = self._model.lexical_features.signed_weights().double().cpu().numpy()
        sums = np.bincount(rows * size + ids % size, weights[ids] * factors, minlength=num_rows * size)
        return sums.astype(np.float32).reshape(num_rows, size)

    def _assemble(self, batch: list[tuple[Plan, tuple[int, int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """input_ids and mask (batch, seqlen), and for every real token in order the row of its passage's sum.

        The states of [CLS] and [SEP] belong to the mean, so they count with the window's first and last
        passage.
        """
        tokenizer = self._tokenizer
        seqlen = max(last - first for _, (first, last) in batch) + 2
        pad = tokenizer.pad_token_id or 0
        input_ids = torch.full((len(batch), seqlen), pad, dtype=torch.int64)
        mask = torch.zeros((len(batch), seqlen), dtype=torch.bool)
        rows, start = [], 0
        for number, (plan, (first, last)) in enumerate(batch):
            inside = torch.from_numpy(plan.ids[first:last].astype(np.int64))
            input_ids[number, 0] = tokenizer.cls_token_id
            input_ids[number, 1 : last - first + 1] = inside
            input_ids[number, last - first + 1] = tokenizer.sep_token_id
            mask[number, : last - first + 2] = True
            owners = np.searchsorted(plan.firsts, np.arange(first, last), side="right") - 1
            rows.append(start + np.concatenate([owners[:1], owners, owners[-1:]]))
            start += len(plan.firsts)
        return input_ids, mask, torch.from_numpy(np.concatenate(rows))

    def _finish(self, plan: Plan) -> DocumentEmbedding:
        assert plan.sums is not None
        total = plan.sums.sum(axis=0, dtype=np.float64)
        scales = self._scales(total)
        norm = float(np.linalg.norm(total * scales))
        if not np.isfinite(norm) or norm == 0.0:
            raise M2BertError(
                f"Embedder: the embedding of text {plan.number} must be finite and not zero, "
                f"got norm {norm}; the weights of {self.name!r} are damaged"
            )
        scales /= norm
        shares = plan.sums
        shares *= scales.astype(np.float32)
        plan.sums = None
        passages = []
        if self._sums_states:
            passages = [Passage(*span, share) for span, share in zip(plan.spans, shares, strict=True)]
        return DocumentEmbedding(
            (total * scales).astype(np.float32), passages, len(plan.ids), len(plan.windows), plan.num_truncated
        )

    def _scales(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the sums (dim,) of a text are multiplied by: m2bert.model.pooling.joined, but for the last norm."""
        config = self._model.config
        scales = np.ones_like(total)
        if config.lexical_features:
            split = self.dim - int(config.lexical_features)
            shares = 1 - config.lexical_share, config.lexical_share
            for part, share in zip((slice(0, split), slice(split, None)), shares, strict=True):
                scales[part] = share**0.5 / max(float(np.linalg.norm(total[part])), 1e-12)
        return scales


def _check_texts(texts: Sequence[str]) -> None:
    kind = type(texts).__name__
    if isinstance(texts, str | bytes):
        raise M2BertError(f"Embedder: texts must be a list of strings, got one {kind}; wrap it in []")
    if isinstance(texts, Mapping) or not hasattr(texts, "__getitem__"):
        raise M2BertError(f"Embedder: texts must be a list of strings, got {kind}; make a list of it")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TextError("Embedder", number, f"must be a string, got {type(text).__name__}; convert it")
        if not text.strip():
            raise TextError("Embedder", number, "is empty; leave it out")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise TextError(
                    "Embedder",
                    number,
                    f"must be Unicode text, got a lone surrogate at character {error.start}; "
                    f"decode the text with errors='replace'",
                ) from None
