"""Long filters of M2-BERT: LongConv generates them from time, FilterBank keeps their spectra at inference.

Test: tests/model/test_filters.py.

A filter is a small sine network over positional features, times an exponential window that decays at a rate
of its own in every channel. Everything here is computed in float32 whatever the model's dtype: bfloat16 tells
only about a thousand positions apart.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import m2ops
from m2bert.errors import M2BertError
from m2bert.model.architecture import Architecture

WINDOW_TARGET = 1e-2
FASTEST_DECAY, SLOWEST_DECAY = 0.3, 1.5
# Values of a filter that are turned into a spectrum at a time, 32 MB, and the fewest channels: products of fewer rows
# run at half of the rate, more would take memory. A GPU waits for Python between blocks: there a block is a gigabyte,
# all channels of 80M at 32,768.
BLOCK_VALUES, MIN_BLOCK = 1 << 23, 16
CUDA_BLOCK_VALUES = 1 << 28
CACHE_VARIABLE = "M2OPS_SPECTRUM_CACHE_MB"
CACHE_MEGABYTES = 1024.0
CUDA_CACHE_SHARE = 1 / 8  # of a GPU's memory: 80 GB hold the 24 spectra of 80M at 32,768, 4.8 GB, twice
# The longest transform whose filters outlive a call of an encoder: queries are shorter, and all of these lengths
# together take 52 MB of m2-bert-mini.
POSITIONS_OF_QUERIES = 512


def positional_features(max_positions: int, emb_dim: int) -> Tensor:
    """Initial features (max_positions, emb_dim) float32: time in [0, 1], cosines and negative sines."""
    bands = (emb_dim - 1) // 2
    positions = torch.arange(max_positions, dtype=torch.float64)
    time = positions / max(max_positions - 1, 1)
    angles = (
        (2 * math.pi / max_positions) * positions[:, None] * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float32)
    )
    return torch.cat([time[:, None], angles.cos(), -angles.sin()], dim=1).float()


def decay_rates(dim: int) -> Tensor:
    """Rates (dim,) float32 of the exponential windows, negative, per unit of time (the range is 1)."""
    return torch.linspace(
        math.log(WINDOW_TARGET) / SLOWEST_DECAY, math.log(WINDOW_TARGET) / FASTEST_DECAY, dim, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip


def decay_window(dim: int, max_positions: int, seqlen: int, device: torch.device) -> Tensor:
    """Windows (dim, seqlen) float32: exp(rate t) at the first `seqlen` of `max_positions` times."""
    time = torch.linspace(0, 1, max_positions, device=device, dtype=torch.float32)[:seqlen]
    return torch.exp(decay_rates(dim).to(device)[:, None] * time)


def _wide(x: Tensor) -> Tensor:
    """Float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def multiscale_window(dim: int, max_positions: int, seqlen: int, device: torch.device) -> Tensor:
    """Windows (dim, seqlen) float32 whose memory grows from 1 token to a third of the range, each of sum 1.

    The memories are log-spaced over the channels, so that neighbours can be told from far-away text from the first
    step on. A sum of 1 over all `max_positions` bounds what a filter can amplify by its network's largest value,
    whatever the length; without it one optimizer step changes the sum of a long filter several times over.
    """
    longest = math.log10(max(max_positions / 3, 1.0))
    memory = torch.logspace(0.0, longest, dim, device=device, dtype=torch.float32)[:, None]
    time = torch.arange(seqlen, device=device, dtype=torch.float32)
    # The geometric series of all max_positions terms in closed form.
    total = -torch.expm1(-max_positions / memory) / -torch.expm1(-1.0 / memory)
    return torch.exp(-time / memory) / total


class FilterOutput(nn.Linear):
    """The last layer of a filter; a type of its own because it is initialised by a rule of its own."""


class ImplicitFilter(nn.Module):
    """The sine network of one direction: features (emb_dim, seqlen) to filter values (dim, seqlen)."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        order = config.filter_order
        self.layers = nn.ModuleList([nn.Linear(config.filter_emb_dim, order)])
        self.layers.extend([nn.Linear(order, order), nn.Linear(order, order)])
        self.out = FilterOutput(order, config.hidden_size, bias=False)

    def hidden(self, features: Tensor, frequency: Tensor) -> Tensor:
        """What the last layer reads (order, seqlen)."""
        # The sine magnifies rounding, so the frequency comes after the product, as in the reference.
        hidden, scale = features, frequency[:, None]
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            hidden = torch.addmm(_wide(layer.bias)[:, None], _wide(layer.weight), hidden)
            # In place where no gradient needs the product.
            hidden = hidden.mul(scale).sin() if hidden.requires_grad else hidden.mul_(scale).sin_()
        return hidden

    def channels(self, hidden: Tensor, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Channels first .. last of the filter (last - first, seqlen), in `out` if that is given."""
        return torch.mm(_wide(self.out.weight)[first:last], hidden, out=out)


class LongConv(nn.Module):
    """Parameters of one long convolution; `forward` generates its filters.

    skip (dim,), features (max_positions, emb_dim) trainable, frequency (order,) shared by all sines of both
    directions. The parameters stay in float32 when the model is cast to a narrower dtype.
    """

    def __init__(self, config: Architecture, index: int) -> None:
        super().__init__()
        self.index = index
        self.skip = nn.Parameter(torch.empty(config.hidden_size))
        self.features = nn.Parameter(torch.empty(config.max_position_embeddings, config.filter_emb_dim))
        self.frequency = nn.Parameter(torch.empty(config.filter_order))
        self.filter = ImplicitFilter(config)
        self.filter_rev = ImplicitFilter(config) if config.bidirectional else None

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor | None]:
        """Filters k and k_rev (dim, seqlen) float32 for the length of `window` (dim, seqlen)."""
        [filters] = self.blocks(window, window.shape[0])
        return filters

    def blocks(self, window: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The same, `size` channels at a time; where no gradient is wanted, in the memory of the ones before."""
        with torch.autocast(window.device.type, enabled=False):
            features = _wide(self.features[: window.shape[1]]).t()
            directions = [self.filter] if self.filter_rev is None else [self.filter, self.filter_rev]
            hidden = [network.hidden(features, _wide(self.frequency)) for network in directions]
            made: list[Tensor] = []
            for first in range(0, window.shape[0], size):
                part = window[first : first + size]
                again = [m if len(m) == len(part) and not m.requires_grad else None for m in made] or [None, None]
                # In place: neither the product's gradient nor the matmul before it needs the overwritten values.
                made = [
                    network.channels(states, first, first + size, memory).mul_(part)
                    for network, states, memory in zip(directions, hidden, again, strict=False)
                ]
                yield made[0], made[1] if len(made) > 1 else None

    @torch.no_grad()
    def source(self, taps: int) -> Tensor:
        """All values (n,) that filters of `taps` positions are made from; those of fewer positions are a prefix."""
        shared = [p for p in self.parameters() if p is not self.skip and p is not self.features]
        return torch.cat([p.reshape(-1) for p in (*shared, self.features[:taps])])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LongConv:
        def without_narrowing(x: Tensor) -> Tensor:
            out = fn(x)
            narrower = out.is_floating_point() and out.dtype.itemsize < x.dtype.itemsize
            return x.to(out.device) if narrower else out

        super()._apply(without_narrowing, recurse)
        return self


Key = tuple[int, int, str, str]  # convolution, transform length, kernels, device


@dataclass(eq=False)
class _Source:
    """Parameters that filters were made from; another object as soon as they are others."""

    values: Tensor


@dataclass
class _Entry:
    spectrum: m2ops.FilterSpectrum
    source: _Source | None  # None where nobody asks


def cache_budget_bytes(device: torch.device) -> int:
    """Bytes of spectra a model may keep on `device`: the environment's M2OPS_SPECTRUM_CACHE_MB.

    Without it, an eighth of a GPU's memory, and 1024 MB elsewhere. Raises M2BertError if it is no such number.
    """
    text = os.environ.get(CACHE_VARIABLE)
    if text is None and device.type == "cuda":
        return int(CUDA_CACHE_SHARE * torch.cuda.get_device_properties(device).total_memory)
    try:
        megabytes = CACHE_MEGABYTES if text is None else float(text)
    except ValueError:
        megabytes = -1.0
    if not 0 <= megabytes < math.inf:
        raise M2BertError(f"{CACHE_VARIABLE}: must be a number of megabytes of at least 0, got {text!r}")
    return int(megabytes * 2**20)


def channels_at_once(taps: int, device: torch.device) -> int:
    """Channels of a filter of `taps` positions that are made and transformed together."""
    return max(MIN_BLOCK, (CUDA_BLOCK_VALUES if device.type == "cuda" else BLOCK_VALUES) // taps)


class FilterBank:
    """Filters of all long convolutions of one model: generated for training, kept as spectra at inference.

    Spectra are kept per convolution and transform length, so that one serves every sequence up to that length. The
    parameters they were made from are kept beside them: an entry is used only while the parameters still have these
    values, however they were written (`.data` and fused optimizers leave no mark). The memory of spectra is bounded
    (cache_budget_bytes).
    """

    def __init__(self, config: Architecture) -> None:
        self.config = config
        self._entries: dict[Key, _Entry] = {}
        self._sources: dict[int, _Source] = {}
        self._window: Tensor | None = None
        self._pins = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> FilterBank:
        return FilterBank(self.config)

    def __reduce__(self) -> tuple[type[FilterBank], tuple[Architecture]]:
        return FilterBank, (self.config,)

    @property
    def nbytes(self) -> int:
        """Bytes of the spectra kept."""
        return sum(entry.spectrum.nbytes for entry in list(self._entries.values()))

    @property
    def pinned(self) -> bool:
        """Whether somebody is inside of `pin`."""
        return self._pins > 0

    def clear(self) -> None:
        """Forget everything kept."""
        self._entries.clear()
        self._sources.clear()
        self._window = None

    @contextmanager
    def pin(self) -> Iterator[None]:
        """Keep spectra inside, without looking for changed parameters; the last to leave forgets them."""
        with self._lock:
            self._pins += 1
            self.clear()  # what is there may be out of date, and is not looked at again
        try:
            yield
        finally:
            with self._lock:
                self._pins -= 1
                if not self._pins:
                    self.clear()

    def for_one_call(self) -> FilterBank:
        """A bank for one call of an encoder: filters of short texts stay in this one, those of long ones end with it.

        So queries find their filters made, and the memory that an index run needs is given back.
        """
        return _OneCall(self)

    def filters(self, conv: LongConv, seqlen: int) -> tuple[Tensor | m2ops.FilterSpectrum, Tensor | None]:
        """Filters (k, k_rev) of `conv` for `seqlen` positions, or (spectrum, None) where spectra are kept."""
        trained = conv.training and not self.pinned
        if trained and not torch.compiler.is_compiling():
            self._entries.clear()  # of no use until the next evaluation, whose parameters will be others
        # What is compiled or exported makes its filters itself: a bank outside of the graph would hold its tensors.
        if trained or torch.is_grad_enabled() or torch.compiler.is_compiling():
            k, k_rev = conv(self.window(seqlen, conv.skip.device))
            return k, k_rev
        return self._spectrum(conv, seqlen), None

    def window(self, seqlen: int, device: torch.device) -> Tensor:
        """The decay window (dim, seqlen), the same for all convolutions; the longest one is kept."""
        make = multiscale_window if self.config.filter_window == "multiscale" else decay_window
        whole = self.config.hidden_size, self.config.max_position_embeddings
        if torch.compiler.is_compiling():
            return make(*whole, seqlen, device)
        kept = self._window
        # A tensor of inference mode may not be saved for a backward pass.
        if kept is not None and kept.is_inference() and torch.is_grad_enabled():
            kept = None
        if kept is None or kept.shape[1] < seqlen or kept.device != device:
            kept = self._window = make(*whole, seqlen, device)
        return kept[:, :seqlen]

    def _spectrum(self, conv: LongConv, seqlen: int) -> m2ops.FilterSpectrum:
        size = self._transform_length(seqlen)
        taps = min(size, self.config.max_position_embeddings)
        key = (conv.index, size, self.config.kernels, str(conv.skip.device))
        source = None if self.pinned else self._source(conv, taps)
        entry = self._entries.pop(key, None)
        if entry is not None and (source is None or entry.source is source):
            self._entries[key] = entry  # last in the order: the most recently used
            return entry.spectrum
        spectrum = self._make_spectrum(conv, taps)
        self._keep(key, _Entry(spectrum, source))
        return spectrum

    def _source(self, conv: LongConv, taps: int) -> _Source:
        """The parameters that `conv` has now: the object kept from before, if they are as they were."""
        now, kept = conv.source(taps), self._sources.get(conv.index)
        if kept is not None and kept.values.dtype == now.dtype and kept.values.device == now.device:
            shared = min(len(kept.values), len(now))
            if torch.equal(kept.values[:shared], now[:shared]):
                if len(now) > shared:
                    kept.values = now
                return kept
        fresh = self._sources[conv.index] = _Source(now)
        return fresh

    def _make_spectrum(self, conv: LongConv, taps: int) -> m2ops.FilterSpectrum:
        dim, window = self.config.hidden_size, self.window(taps, conv.skip.device)
        block, transform = channels_at_once(taps, conv.skip.device), self._kernel("filter_spectrum")
        if block >= dim:
            return transform(*conv(window), taps)
        whole: m2ops.FilterSpectrum = self._kernel("empty_spectrum")(dim, taps, window)
        for first, (k, k_rev) in zip(range(0, dim, block), conv.blocks(window, block), strict=True):
            transform(k, k_rev, taps, out=whole.rows(first, first + block))
        return whole

    def _keep(self, key: Key, entry: _Entry) -> None:
        """Store an entry if the budget allows, at the expense of other transform lengths only.

        Layers are visited in the same order in every pass: dropping the least recent spectrum of the same
        length would drop each one just before its next use.
        """
        budget = cache_budget_bytes(entry.spectrum.data.device) - entry.spectrum.nbytes
        for other in [other for other in list(self._entries) if other[1] != key[1]]:
            if self.nbytes <= budget:
                break
            self._entries.pop(other, None)
        if self.nbytes <= budget:
            self._entries[key] = entry

    def _transform_length(self, seqlen: int) -> int:
        if self.config.kernels == "reference":
            return 1 << max(seqlen - 1, 0).bit_length()
        return int(m2ops.fft_size(seqlen))

    def _kernel(self, name: str) -> Callable[..., Any]:
        return kernel(self.config, name)


class _OneCall(FilterBank):
    """The bank of FilterBank.for_one_call."""

    def __init__(self, kept: FilterBank) -> None:
        super().__init__(kept.config)
        self._kept = kept

    @property
    def nbytes(self) -> int:
        """Bytes of the spectra kept, those of short texts included."""
        return super().nbytes + self._kept.nbytes

    def _spectrum(self, conv: LongConv, seqlen: int) -> m2ops.FilterSpectrum:
        if self._transform_length(seqlen) <= POSITIONS_OF_QUERIES:
            return self._kept._spectrum(conv, seqlen)
        return super()._spectrum(conv, seqlen)


def kernel(config: Architecture, name: str) -> Callable[..., Any]:
    """The operator `name` of m2ops, or its plain-torch meaning, as `config.kernels` says."""
    return getattr(m2ops, f"{name}_ref" if config.kernels == "reference" else name)
