"""Texts to embeddings, and to the contribution of every passage to them.

    texts -> token ids -> windows of the model's length -> batches of a token budget -> token states -> sums

With mean pooling the embedding of a document is the normalised mean of its token states, so its score against a query
is a sum over its tokens: the sum over a passage's tokens is exactly what that passage contributes. The same holds for
weighted pooling, where repetitions are counted over the whole document, all its windows together. Sparse vectors are
made of token ids alone; the model is not run.
Tests: tests/encoders/test_embedder.py, tests/encoders/test_shared_models.py, tests/model/test_term_weights.py.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2bert.encoders.devices import check_fork, chosen_device
from m2bert.encoders.passages import cut_passages
from m2bert.encoders.protocol import EncodedDocument, Passage, Progress, SparseVector
from m2bert.encoders.tokens import tokens_of
from m2bert.encoders.windows import Batch, Plan, batches_of, groups_of_stream, inputs_of, passages_in
from m2bert.errors import M2BertError, TextError
from m2bert.model.checkpoints import fingerprint, load_network, model_folder
from m2bert.model.filters import FilterBank
from m2bert.model.network import M2BertNetwork, for_evaluation
from m2bert.model.pooling import repetition_weights
from m2bert.model.tokenization import PlainTokenizer
from m2bert.ranking.parts import Mixture

DEFAULT_MODEL = "m2-bert-mini"
OVERFLOWS = ("error", "truncate", "window")


class Embedder:
    """Encodes texts with an M2-BERT model; what a text is batched with does not change its embedding.

    Several threads may use one; a process that is forked after it was used with several threads may not, and is refused
    by name. A model that was given stays as it is, whatever mode it is in, and may be used and
    trained beside: embeddings follow its weights. The long filters that queries need are kept from call to call, within
    the environment's M2OPS_SPECTRUM_CACHE_MB (1024, on a GPU an eighth of its memory).
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] = DEFAULT_MODEL,
        *,
        overflow: str = "window",
        batch_tokens: int = 8192,
        threads: int | None = None,
        device: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        """`model`: a shipped model's name, a model folder, or a pair (M2BertModel, tokenizer).

        `overflow` says what to do with a text longer than the model: "window" encodes it in windows of equal length and
        averages their token states together, "truncate" drops the rest and counts it (`encode`, which returns no
        counts, warns once), "error" refuses. `batch_tokens`: tokens, padding included, that go through the model at
        once. `threads`: torch's threads while encoding (None: as they are). `device`: "cpu", "cuda" or "cuda:1", where
        the model is moved to; None takes the GPU for a model that is loaded here, if there is one and m2ops has kernels
        for it, and leaves a model that was given where it is. `truncate_dim`: how many of an embedding's first numbers
        are kept, brought to unit norm again (None: all). Raises M2BertError on bad arguments, unreadable models and
        devices that are not there.
        """
        if overflow not in OVERFLOWS:
            raise M2BertError(f"Embedder: overflow must be one of {', '.join(OVERFLOWS)}, got {overflow!r}")
        for name, value in (("batch_tokens", batch_tokens), ("threads", threads), ("truncate_dim", truncate_dim)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise M2BertError(f"Embedder: {name} must be a whole number of at least 1, got {value!r}")
        self.overflow = overflow
        self.batch_tokens = batch_tokens
        self.threads = threads
        self._told = False
        place = chosen_device(device, "Embedder")
        self._model, self._tokenizer, self.name, self.location, self.mixture = _opened(model)
        if device is not None or not isinstance(model, tuple):
            self._model.to(place)
        self.full_dim = int(self._model.config.embedding_size)
        if truncate_dim is not None and truncate_dim > self.full_dim:
            raise M2BertError(
                f"Embedder: truncate_dim must be at most {self.full_dim}, the length of an embedding of {self.name!r}, "
                f"got {truncate_dim}"
            )
        self.dim = truncate_dim or self.full_dim
        self.max_tokens = min(int(self._model.config.max_position_embeddings), self._tokenizer.model_max_length)
        self._check_model()

    def _check_model(self) -> None:
        """Raise M2BertError unless model and tokenizer can be used together."""
        if self.max_tokens < 3:
            raise M2BertError(f"Embedder: a model must read 3 tokens, {self.name!r} reads {self.max_tokens}")
        rows = int(self._model.config.vocab_size)
        if len(self._tokenizer) > rows:
            raise M2BertError(
                f"Embedder: the tokenizer of {self.name!r} must have at most the model's {rows} pieces, "
                f"got {len(self._tokenizer)}; use the tokenizer it was trained with"
            )
        for token in ("cls_token", "sep_token"):
            if getattr(self._tokenizer, f"{token}_id") is None:
                raise M2BertError(f"Embedder: the tokenizer of {self.name!r} must have a {token}; set it")
        config = self._model.config
        fields = (config.bilinear_features, config.projection_dim, config.term_weights)
        learned = config.pooling in ("cls_dense", "weighted") or any(fields)
        if learned and not self._model.add_pooling:
            raise M2BertError(f"Embedder: {self.name!r} must have the layers of its pooling; make it with them")

    @property
    def fingerprint(self) -> str:
        """16 hex digits naming weights, configuration, tokenizer and truncate_dim together; computed at every call."""
        whole = fingerprint(self._model, self._tokenizer)
        if self.dim == self.full_dim:
            return whole
        return hashlib.sha256(f"{whole} {self.dim}".encode()).hexdigest()[:16]

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
            if embedding.num_truncated and not self._told:
                self._told = True
                read = embedding.num_tokens
                warnings.warn(
                    f"Embedder: of text {plan.number}, {read + embedding.num_truncated} tokens, {read} are read, "
                    "because overflow is 'truncate'; 'window' reads all of it (this is said once)",
                    stacklevel=2,
                )
        return result

    def encode_stream(self, texts: Iterable[str]) -> Iterator[NDArray[np.float32]]:
        """Embeddings (dim,) float32 of texts of any number, in their order; those of encode, to rounding.

        A million characters or 4,096 texts are read and encoded together, and handed out before more are read. Raises
        M2BertError naming the text that has none by its number in the stream.
        """
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            kind = type(texts).__name__
            raise M2BertError(f"Embedder: texts must be an iterable of strings, got one {kind}; wrap it in []")
        begun = 0
        for group in groups_of_stream(texts):
            try:
                vectors = self.encode(group)
            except TextError as error:
                raise TextError("Embedder", begun + error.number, error.reason) from error
            begun += len(group)
            yield from vectors

    def encode_documents(
        self, texts: Sequence[str], *, passages: bool = True, progress: Progress | None = None
    ) -> list[EncodedDocument]:
        """Embeddings with their passages and token counts, in the order of `texts`; the vectors are encode's.

        passages: False makes none, which takes less time and memory. Raises M2BertError naming the text that has no
        embedding.
        """
        _check_texts(texts)
        finished = self._embed(texts, progress, with_passages=passages)
        found = {plan.number: embedding for plan, embedding in finished}
        return [found[number] for number in range(len(texts))]

    def encode_sparse(self, texts: Sequence[str]) -> list[SparseVector]:
        """The words of each text as learned weights over the model's own vocabulary, of unit norm.

        Piece i, n times in the text, has a weight in proportion to w_i log2(1 + n) (m2bert.model.pooling.TermWeights);
        special tokens and pieces that weigh 0 are left out. The model is not run, and no text is cut. `piece` says in
        letters what an index means. Raises M2BertError for a model without term weights, and naming the text that has
        none.
        """
        _check_texts(texts)
        layer = self._model.term_weights
        if layer is None:
            raise M2BertError(
                f"Embedder: {self.name!r} has no term weights, so its texts have no sparse vectors; "
                "use another model, or fine-tune it with term_weights"
            )
        weights = layer.weight.detach().cpu().double().numpy()
        found = []
        for number, (ids, _) in enumerate(tokens_of(self._tokenizer.backend_tokenizer, texts, offsets=False)):
            indices, counts = np.unique(ids, return_counts=True)
            values = weights[indices] * np.log2(1.0 + counts)
            kept = values != 0
            if not kept.any():
                raise TextError("Embedder", number, f"holds no word of weight, got {texts[number][:40]!r}")
            norm = np.linalg.norm(values)
            found.append(SparseVector(indices[kept], (values[kept] / norm).astype(np.float32)))
        return found

    def piece(self, index: int) -> str:
        """The piece of the vocabulary at an index of a sparse vector; ## marks one that goes on a word."""
        known = 0 <= index < len(self._tokenizer)
        piece: str | None = self._tokenizer.backend_tokenizer.id_to_token(int(index)) if known else None
        if piece is None:
            raise M2BertError(f"Embedder: an index must be 0 or more and below {len(self._tokenizer)}, got {index}")
        return piece

    def _embed(
        self, texts: Sequence[str], progress: Progress | None, *, with_passages: bool
    ) -> Iterator[tuple[Plan, EncodedDocument]]:
        """Embeddings in the order they are finished."""
        plans = list(self._plan_all(texts, with_passages=with_passages))
        total = sum(len(plan.ids) + 2 * len(plan.windows) for plan in plans)
        done = 0
        if progress is not None:
            progress(done, total)
        network, bank = for_evaluation(self._model), self._model.filter_bank.for_one_call()
        with self._threads_and_precision():
            for batch in self._batches(plans):
                self._add_states(batch, network, bank)
                for plan in dict((plan.number, plan) for plan, _ in batch).values():
                    if plan.open_windows == 0:
                        yield plan, self.finished(plan, passages=with_passages)
                done += sum(last - first + 2 for _, (first, last) in batch)
                if progress is not None:
                    progress(done, total)

    def plans(self, texts: Sequence[str], *, passages: bool = True) -> list[Plan]:
        """Texts as windows of tokens, for who decides what goes through the model when (m2bert.serve).

        `run` takes windows, in any order and mixture; when all of a plan's are done, `finished` makes its embedding.
        Raises M2BertError naming the text that has none.
        """
        _check_texts(texts)
        return list(self._plan_all(texts, with_passages=passages))

    def run(self, batch: Batch) -> None:
        """One pass of the model over windows of plans, for one thread at a time.

        The filters it needs are kept from call to call, within the environment's M2OPS_SPECTRUM_CACHE_MB.
        """
        with self._threads_and_precision():
            self._add_states(batch, for_evaluation(self._model), self._model.filter_bank)

    def _plan_all(self, texts: Sequence[str], *, with_passages: bool) -> Iterator[Plan]:
        with_passages = with_passages and self._model.config.sums_states
        made = tokens_of(self._tokenizer.backend_tokenizer, texts, offsets=with_passages)
        for number, (ids, offsets) in enumerate(made):
            yield self._plan(number, texts[number], ids, offsets if with_passages else None)

    def _plan(self, number: int, text: str, ids: NDArray[np.int32], offsets: NDArray[np.int64] | None) -> Plan:
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
        if offsets is not None:
            offsets = offsets[: len(ids)]
            read = text[: offsets[-1][1]] if num_truncated else text
            firsts, spans = cut_passages(read, offsets)
        count = -(-len(ids) // room)
        bounds = [number * len(ids) // count for number in range(count + 1)]
        windows = list(pairwise(bounds))
        factors = self._repetition_factors(ids, count) if self._model.config.counts_repetitions else None
        return Plan(number, ids, np.asarray(firsts, dtype=np.int64), spans, num_truncated, windows, factors)

    def _repetition_factors(self, ids: NDArray[np.int32], windows: int) -> NDArray[np.float64]:
        """repetition_weights of [CLS], `ids` and [SEP] over the whole document: each window's [CLS] and [SEP] count."""
        own = np.concatenate([[self._tokenizer.cls_token_id], ids, [self._tokenizer.sep_token_id]])
        counts = np.bincount(own).astype(np.float64)
        counts[own[[0, -1]]] += windows - 1
        result: NDArray[np.float64] = repetition_weights(torch.from_numpy(counts)).numpy()[own]
        return result

    def _batches(self, plans: list[Plan]) -> Iterator[Batch]:
        return batches_of(plans, self.batch_tokens, self.width)

    def width(self, num_tokens: int) -> int:
        """Tokens that a window of `num_tokens`, [CLS] and [SEP] included, takes in the model."""
        config = self._model.config
        return int(config.max_position_embeddings) if config.pad_to_max_length else num_tokens

    @contextmanager
    def _threads_and_precision(self) -> Iterator[None]:
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            with torch.autocast(next(self._model.parameters()).device.type, enabled=False):
                yield
        finally:
            if self.threads is not None:
                torch.set_num_threads(before)

    @torch.inference_mode()
    def _add_states(self, batch: Batch, network: M2BertNetwork, bank: FilterBank) -> None:
        """Run the model on one batch of windows and add its states to the sums of their passages."""
        check_fork("Embedder")
        tokens, device = self._tokenizer, next(network.parameters()).device
        assert tokens.cls_token_id is not None and tokens.sep_token_id is not None
        inputs = inputs_of(batch, tokens.cls_token_id, tokens.sep_token_id, tokens.pad_token_id or 0)
        input_ids, mask, counts = (
            torch.from_numpy(x).to(device) for x in (inputs.input_ids, inputs.mask, inputs.counts)
        )
        factors = None if inputs.factors is None else torch.from_numpy(inputs.factors).to(device)
        made = network.sums(input_ids, mask, counts, factors, bank=bank)
        sums, start = made.cpu().numpy(), 0
        for plan, window in batch:
            lowest, end = passages_in(plan, window)
            if plan.sums is None:
                plan.sums = np.zeros((len(plan.firsts), sums.shape[1]), sums.dtype)
            plan.sums[lowest:end] += sums[start : start + end - lowest]
            start += end - lowest
            plan.open_windows -= 1

    def finished(self, plan: Plan, *, passages: bool = True) -> EncodedDocument:
        """The embedding of a plan whose windows are all done. Raises M2BertError where it is not finite."""
        assert plan.sums is not None and plan.open_windows == 0
        sums, plan.sums = plan.sums[:, : self.dim], None
        total = sums.sum(axis=0, dtype=np.float64)
        norm = float(np.linalg.norm(total))
        if not np.isfinite(norm) or norm == 0.0:
            raise M2BertError(
                f"Embedder: the embedding of text {plan.number} must be finite and not zero, "
                f"got norm {norm}; the weights of {self.name!r} are damaged"
            )
        found = []
        if passages and self._model.config.sums_states:
            sums /= np.float32(norm)
            found = [Passage(*span, share) for span, share in zip(plan.spans, sums, strict=True)]
        vector = (total / norm).astype(np.float32)
        return EncodedDocument(vector, found, len(plan.ids), len(plan.windows), plan.num_truncated)


def _opened(model: Any) -> tuple[M2BertNetwork, PlainTokenizer, str, str, Mixture]:
    """The network and tokenizer of what an Embedder was given, its name, the place that opens it again, its mixture."""
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], M2BertNetwork):
        name = Path(getattr(model[0].config, "_name_or_path", "") or "unnamed").name
        return model[0], PlainTokenizer.of(model[1]), name, name, Mixture()
    if not isinstance(model, str | os.PathLike):
        raise M2BertError(
            f"Embedder: model must be a name, a folder or a pair (M2BertModel, tokenizer), "
            f"got {type(model).__name__}; give one of these"
        )
    network, tokenizer = load_network(model)
    mixture = Mixture.read(model_folder(model, "Embedder"))
    folder = Path(model)
    if folder.is_dir():
        return network, tokenizer, folder.resolve().name, str(folder.resolve()), mixture
    return network, tokenizer, str(model), str(model), mixture


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
