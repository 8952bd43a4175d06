"""The times of scripts/gpu_check.py: rows against the memory floor and the peers, and the goals they must meet.

A row is timed interleaved with its peers in one process: medians of CUDA graph replays (scripts/gpu_timing.py). A peer
that cannot be imported or refuses the sizes is named with its reason in the row. Inputs are read again and again: what
fits the L2 cache together (60 MB on an H200) is read from there, and its multiple of the floor says little.
Test: tests/cuda/test_gpu_check.py.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import Call, timed
from torch import Tensor

import m2ops
from m2ops._monarch_mixer import _monarch_mixer, _monarch_mixer_bwd

FLOOR_GOALS = {length: 1.5 for length in (256, 1024, 4096, 8192)} | {32768: 2.2}
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MOST_POSITIONS = 64 * 32768  # of a channel, all texts together: longer rows have a smaller batch
ROW_SECONDS = 6.0


def copy_rate(device: torch.device, tiny: bool) -> float:
    """Bytes a second of a large copy, reads and writes counted."""
    source = torch.ones(1 << (18 if tiny else 28), device=device)
    target = torch.empty_like(source)
    taken = timed({"copy": lambda: target.copy_(source)}, device, 7)
    return 2 * source.numel() * 4 / taken.seconds["copy"]


def record(run: Any, group: str, case: str, calls: dict[str, Call], moved: int, rate: float) -> dict[str, Any]:
    """Time `calls` (ours first) and keep the row; `moved` is the bytes that have to cross memory."""
    taken = timed(calls, run.device, 2 if run.tiny else 0)
    ours = taken.seconds.get("ours")
    row: dict[str, Any] = {"group": group, "case": case, "seconds": taken.seconds, "floor_seconds": moved / rate}
    row["ratio"] = {name: seconds / ours for name, seconds in taken.seconds.items() if ours and name != "ours"}
    row["times_floor"] = ours / (moved / rate) if ours else None
    row["timed"] = taken.ways
    row["without"] = taken.refused
    run.rows.append(row)
    return row


def flash_fft_conv(u: Tensor, k: Tensor, pre: Tensor, post: Tensor) -> Call:
    """FlashFFTConv with the same meaning for a causal filter: twice the length, both gates."""

    @functools.cache
    def module() -> Any:
        made = importlib.import_module("flashfftconv").FlashFFTConv(2 * u.shape[-1], dtype=u.dtype)
        return made.to(u.device)

    return lambda: module()(u, k, pregate=pre, postgate=post)


def nvidia_fft_conv(module: str, function: str, u: Tensor, k: Tensor, pre: Tensor, post: Tensor) -> Call:
    """NVIDIA's causal FFT convolutions, which have no gates: those around it by torch."""

    def call() -> Any:
        conv = getattr(importlib.import_module(module), function)
        return conv(u * pre, k.to(u.dtype)) * post

    return call


def with_backward(call: Call, leaves: list[Tensor], dout: Tensor) -> Call:
    """`call` and the gradients of its result, which get `dout`, made beforehand."""
    return lambda: torch.autograd.grad(call(), leaves, dout)


@dataclass(frozen=True)
class Conv:
    """One case of a long convolution, batch x 768 x seqlen."""

    dtype: torch.dtype
    batch: int
    dim: int
    seqlen: int
    causal: bool = False
    judged: bool = False  # whether the goals are about it

    @property
    def name(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.batch} x {self.dim} x {self.seqlen}"

    @property
    def group(self) -> str:
        return f"fft_conv, gated, {'causal' if self.causal else 'bidirectional'}"


def conv_cases(tiny: bool) -> Iterator[Conv]:
    """Every length in bfloat16 and float32, the goals' in float16; causal; the small batches of long texts."""
    if tiny:
        yield from (Conv(torch.bfloat16, 1, 4, n, causal, not causal) for n in (64, 256) for causal in (False, True))
        yield Conv(torch.float32, 2, 4, 64)
        return
    for dtype, lengths in ((torch.bfloat16, LENGTHS), (torch.float16, tuple(FLOOR_GOALS)), (torch.float32, LENGTHS)):
        for n in lengths:
            yield Conv(dtype, min(64, MOST_POSITIONS // n), 768, n, judged=n in FLOOR_GOALS and dtype.itemsize == 2)
    yield from (Conv(torch.bfloat16, min(64, MOST_POSITIONS // n), 768, n, causal=True) for n in LENGTHS)
    yield from (Conv(torch.bfloat16, batch, 768, n) for n in (4096, 32768) for batch in (1, 2, 4, 8))


def long_convolutions(run: Any, rate: float) -> None:
    """Gated convolutions; the peers know causal filters only and get one of the same work beside a bidirectional."""
    for case in conv_cases(run.tiny):
        if not run.fits(f"{case.group} {case.name}", 0.5 if run.tiny else ROW_SECONDS):
            continue
        seqlen = case.seqlen
        shape = (case.batch, case.dim, seqlen)
        u, pre, post = (torch.randn(*shape, device=run.device).to(case.dtype) for _ in range(3))
        k, k_rev, skip = (torch.randn(*s, device=run.device) for s in ((case.dim, seqlen),) * 2 + ((case.dim,),))
        filters = (k, None if case.causal else k_rev, seqlen)
        spectrum, reference = m2ops.filter_spectrum(*filters), m2ops.filter_spectrum_ref(*filters)
        gates = (u, k, pre, post)
        nvidia = "subquadratic_ops_torch.fft_causal_conv1d"
        calls: dict[str, Call] = {
            "ours": functools.partial(m2ops.fft_conv, u, spectrum, None, skip, pre, post),
            "torch.fft": functools.partial(m2ops.fft_conv_ref, u, reference, None, skip, pre, post),
            "FlashFFTConv": flash_fft_conv(*gates),
            "cuDNN": nvidia_fft_conv("cudnn.ops", "fft_causal_conv1d", *gates),
            "subquadratic-ops": nvidia_fft_conv(nvidia, "fft_causal_conv1d", *gates),
        }
        moved = 4 * u.numel() * u.element_size() + spectrum.data.numel() * 4
        row = record(run, case.group, case.name, calls, moved, rate)
        if case.judged:
            judge_forward(run, row, seqlen)
        del calls, spectrum, reference
        if case.causal or case.dtype != torch.bfloat16:
            convolutions_with_backward(run, case, gates, moved, rate)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()  # what the row's graphs held


def convolutions_with_backward(run: Any, case: Conv, gates: tuple[Tensor, ...], moved: int, rate: float) -> None:
    """A causal filter in time, forward and backward; the gradients of input, filter and gates."""
    if case.seqlen > 32768 or not run.fits(f"fft_conv backward {case.name}", 0.5 if run.tiny else ROW_SECONDS):
        return
    u, k, pre, post = leaves = [x.requires_grad_() for x in gates]
    trained: dict[str, Call] = {
        "ours": lambda: m2ops.fft_conv(u, k, None, None, pre, post),
        "torch.fft": lambda: m2ops.fft_conv_ref(u, k, None, None, pre, post),
        "FlashFFTConv": flash_fft_conv(u, k, pre, post),
    }
    dout = torch.ones_like(u)
    both = {peer: with_backward(call, leaves, dout) for peer, call in trained.items()}
    # Forward: three read, one written; backward: four read, three written.
    row = record(run, "fft_conv, gated, causal, forward + backward", case.name, both, 11 * moved // 4, rate)
    judge_peer(run, row, "FlashFFTConv", 2.0)


def goal(run: Any, name: str, wanted: str, got: str, passed: bool) -> None:
    """Keep a goal's outcome; tiny sizes say nothing about it."""
    run.goals.append({"goal": name, "wanted": wanted, "got": got, "passed": None if run.tiny else passed})


def judge_peer(run: Any, row: dict[str, Any], peer: str, wanted: float) -> None:
    if peer in row["ratio"]:
        got = row["ratio"][peer]
        goal(run, f"{row['group']} {row['case']} over {peer}", f"{wanted:g} x", f"{got:.2f} x", got >= wanted)


def judge_forward(run: Any, row: dict[str, Any], seqlen: int) -> None:
    judge_peer(run, row, "FlashFFTConv", 2.0)
    judge_peer(run, row, "torch.fft", 8.0)
    limit = FLOOR_GOALS.get(seqlen, 1.5)
    got = row["times_floor"]
    name = f"{row['group']} {row['case']} against the memory floor"
    goal(run, name, f"{limit} x", "did not run" if got is None else f"{got:.2f} x", got is not None and got <= limit)


def short_convolutions(run: Any, rate: float) -> None:
    batch, dim, seqlen = (1, 8, 64) if run.tiny else (16, 2304, 4096)
    for dtype in (torch.bfloat16, torch.float32):
        if not run.fits(f"short_conv {dtype}", 0.5 if run.tiny else ROW_SECONDS):
            continue
        x = torch.randn(batch, seqlen, dim, device=run.device).to(dtype)
        weight, bias = torch.randn(dim, 3, device=run.device), torch.randn(dim, device=run.device)
        low, offset, rows = weight.to(dtype), bias.to(dtype), x.transpose(1, 2)
        calls: dict[str, Call] = {
            "ours": lambda x=x, w=weight, b=bias: m2ops.short_conv(x, w, b, layout="bld"),
            "conv1d": lambda x=rows, w=low, b=offset: F.conv1d(x, w[:, None], b, padding=2, groups=w.shape[0]),
            "causal-conv1d": lambda x=rows, w=low, b=offset: importlib.import_module("causal_conv1d").causal_conv1d_fn(
                x, w, b
            ),
        }
        name = f"{str(dtype).removeprefix('torch.')} {batch} x {seqlen} x {dim}, width 3"
        record(run, "short_conv", name, calls, 2 * x.numel() * x.element_size(), rate)


def sequence_mixers(run: Any, rate: float) -> None:
    """The sequence mixer and its gradient, each against the composition of the other operators."""
    dim, tokens, lengths = (4, 256, (64,)) if run.tiny else (768, 65536, (256, 1024, 4096, 8192, 16384))
    for dtype in (torch.bfloat16, torch.float32):
        for seqlen in lengths:
            batch = tokens // seqlen
            name = f"{str(dtype).removeprefix('torch.')} {batch} x {seqlen} x {dim}"
            if not run.fits(f"monarch_mixer {name}", 0.5 if run.tiny else ROW_SECONDS):
                continue
            p, u, dout = (torch.randn(batch, seqlen, n * dim, device=run.device).to(dtype) for n in (3, 1, 1))
            taps = [torch.randn(dim, seqlen, device=run.device) / seqlen**0.5 for _ in range(2)]
            spectrum = m2ops.filter_spectrum(*taps, seqlen).data
            weight, bias, skip = (torch.randn(*s, device=run.device) for s in ((3 * dim, 3), (3 * dim,), (dim,)))
            mask = torch.ones(batch, seqlen, dtype=torch.bool, device=run.device)
            args = (p, u, weight, bias, spectrum, skip, spectrum, skip, mask)
            ways = {"forward": (torch.ops.m2ops.monarch_mixer, _monarch_mixer, args, 5),
                    "backward": (torch.ops.m2ops.monarch_mixer_bwd, _monarch_mixer_bwd, (dout, *args), 9)}  # fmt: skip
            for way, (ours, composition, given, rows) in ways.items():
                calls: dict[str, Call] = {
                    "ours": lambda op=ours, a=given: op(*a),
                    "composition": lambda op=composition, a=given: op(*a),
                }
                # Forward: p (three rows) and u read, one row written; backward: dout too, and four rows written.
                moved = rows * u.numel() * u.element_size() + (2 if way == "forward" else 4) * spectrum.numel() * 4
                record(run, f"monarch_mixer, {way}", name, calls, moved, rate)


def mlps(run: Any, rate: float) -> None:
    """The gated MLP, and its gradient on top."""
    tokens, dim, inter = (64, 64, 128) if run.tiny else (65536, 768, 3072)
    for dtype in (torch.bfloat16, torch.float32):
        if not run.fits(f"blockdiag_glu {dtype}", 0.5 if run.tiny else ROW_SECONDS):
            continue
        shapes = ((tokens, dim), (4, inter // 2, dim // 4), (4, dim // 4, inter // 4))
        leaves = [(torch.randn(*s, device=run.device).to(dtype) / 8).requires_grad_() for s in shapes]
        fixed = [x.detach() for x in leaves]
        ways = {"ours": m2ops.blockdiag_glu, "batched GEMM": m2ops.blockdiag_glu_ref}
        calls: dict[str, Call] = {peer: functools.partial(op, *fixed) for peer, op in ways.items()}
        name = f"{str(dtype).removeprefix('torch.')} {tokens} tokens, {dim} -> {inter} -> {dim}"
        moved = fixed[0].numel() * fixed[0].element_size()
        record(run, "blockdiag_glu", name, calls, 2 * moved, rate)
        dout = torch.ones_like(fixed[0])
        both = {peer: with_backward(functools.partial(op, *leaves), leaves, dout) for peer, op in ways.items()}
        # Forward: x read, the result written; backward: x and dout read, dx written.
        record(run, "blockdiag_glu, forward + backward", name, both, 5 * moved, rate)


def model_and_bert(run: Any, seqlen: int) -> tuple[Any, Any]:
    """The 80M encoder and BERT-base with scaled dot-product attention, random weights, one layer where tiny."""
    from transformers import BertConfig, BertModel

    from m2bert import M2BertConfig, M2BertModel

    small: dict[str, Any] = {"num_hidden_layers": 1} if run.tiny else {}
    ours = M2BertModel(M2BertConfig(max_position_embeddings=seqlen, **small), add_pooling_layer=False)
    config = BertConfig(max_position_embeddings=seqlen, attn_implementation="sdpa", **small)
    return ours.to(run.device), BertModel(config, add_pooling_layer=False).to(run.device)


def encoders(run: Any, rate: float) -> None:
    """The encoder against BERT-base, one long document: spectra kept, and filters made on the way."""
    seqlen = 128 if run.tiny else 32768
    if not run.fits(f"encoder {seqlen}", 3.0 if run.tiny else 40.0):
        return
    ours, bert = (model.eval() for model in model_and_bert(run, seqlen))
    bert = bert if run.tiny else bert.to(torch.bfloat16)
    ids = torch.randint(1000, 30000, (1, seqlen), device=run.device)

    def encode(model: Any) -> Tensor:
        with torch.inference_mode(), torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=not run.tiny):
            return model(input_ids=ids).last_hidden_state

    def encode_anew() -> Tensor:
        ours.filter_bank.clear()
        return encode(ours)

    moved, case = sum(p.numel() * 4 for p in ours.parameters()), f"1 x {seqlen} tokens"
    calls: dict[str, Call] = {"ours": lambda: encode(ours), "BERT-base SDPA": lambda: encode(bert)}
    with ours.cached_filters():
        row = record(run, "encoder, spectra kept", case, calls, moved, rate)
        judge_peer(run, row, "BERT-base SDPA", 5.0)
        record(run, "encoder, filters made", case, {"ours": encode_anew}, moved, rate)
    if "ours" not in row["seconds"]:
        goal(run, f"encoder {row['case']} over BERT-base SDPA", "5 x", "did not run", False)


def training_steps(run: Any, rate: float) -> None:
    """Forward, backward and a step of AdamW, bfloat16 by autocast, against BERT-base."""
    batch, seqlen = (1, 64) if run.tiny else (8, 4096)
    if not run.fits(f"training step {batch} x {seqlen}", 3.0 if run.tiny else 40.0):
        return
    ids = torch.randint(1000, 30000, (batch, seqlen), device=run.device)

    def stepping(model: Any) -> Call:
        on_gpu = run.device.type == "cuda"
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True, capturable=on_gpu)

        def step() -> None:
            with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=not run.tiny):
                states = model(input_ids=ids).last_hidden_state
            states.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    ours, bert = model_and_bert(run, seqlen)
    # Parameters, gradients and two moments: read, and all but the gradients written.
    moved = 7 * sum(p.numel() * 4 for p in ours.parameters())
    calls = {"ours": stepping(ours), "BERT-base SDPA": stepping(bert)}
    record(run, "training step", f"{batch} x {seqlen} tokens", calls, moved, rate)


def measure(run: Any) -> None:
    """All rows, the most telling first; a part that fails is a failed check."""
    rate = copy_rate(run.device, run.tiny)
    run.rows.append({"group": "copy", "case": "bytes a second, read and written", "bytes_per_second": rate})
    for part in (encoders, training_steps, mlps, short_convolutions, sequence_mixers, long_convolutions):
        run.check(f"times: {part.__name__}", lambda part=part: part(run, rate))
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def print_rows(rows: list[dict[str, Any]]) -> None:
    """One line a row: our time, its multiple of the floor, how many times as long the peers take, who could not run."""
    for row in rows:
        if "seconds" not in row:
            print(f"{row['group']}: {row['bytes_per_second'] / 1e9:.1f} GB/s")
            continue
        ours = row["seconds"].get("ours")
        text = f"{1000 * ours:9.3f} ms  {row['times_floor']:6.2f} x floor" if ours else "  did not run"
        peers = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratio"].items())
        absent = ", ".join(row["without"])
        print(f"{row['group'] + ', ' + row['case']:72} {text}  {peers}" + (f"  (without {absent})" if absent else ""))
