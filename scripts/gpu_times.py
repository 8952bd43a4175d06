"""The times of scripts/gpu_check.py: rows against the memory floor and the peers, and the goals they must meet.

A row is timed interleaved with its peers in one process: medians, CUDA events on a GPU. A peer that cannot be imported
or refuses the sizes is named with its reason in the row.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import m2ops
from m2ops._monarch_mixer import _monarch_mixer, _monarch_mixer_bwd

REPEATS = 15
Call = Callable[[], Any]
FLOOR_GOALS = {length: 1.5 for length in (256, 1024, 4096, 8192)} | {32768: 2.2}


def seconds(call: Call, device: torch.device) -> float:
    """Seconds of one call: between two CUDA events on a GPU."""
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def medians(calls: dict[str, Call], device: torch.device, repeats: int) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each call, interleaved, after two unmeasured rounds; and why others could not run."""
    refused, alive = {}, dict(calls)
    for name, call in calls.items():
        try:
            call()
            call()
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del alive[name]
    times: dict[str, list[float]] = {name: [] for name in alive}
    for _ in range(repeats):
        for name, call in alive.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(values) for name, values in times.items()}, refused


def copy_rate(device: torch.device, tiny: bool) -> float:
    """Bytes a second of a large copy, reads and writes counted."""
    source = torch.ones(1 << (18 if tiny else 28), device=device)
    target = torch.empty_like(source)
    taken, _ = medians({"copy": lambda: target.copy_(source)}, device, 7)
    return 2 * source.numel() * 4 / taken["copy"]


def record(run: Any, group: str, case: str, calls: dict[str, Call], moved: int, rate: float) -> dict[str, Any]:
    """Time `calls` (ours first) and keep the row; `moved` is the bytes that have to cross memory."""
    times, refused = medians(calls, run.device, 2 if run.tiny else REPEATS)
    ours = times.get("ours")
    row: dict[str, Any] = {"group": group, "case": case, "seconds": times, "floor_seconds": moved / rate}
    row["ratio"] = {name: taken / ours for name, taken in times.items() if ours and name != "ours"}
    row["times_floor"] = ours / (moved / rate) if ours else None
    row["without"] = refused
    run.rows.append(row)
    return row


def flash_fft_conv(u: Tensor, k: Tensor, pre: Tensor, post: Tensor) -> Call:
    """FlashFFTConv with the same meaning for a causal filter: twice the length, both gates."""

    def call() -> Any:
        if not hasattr(call, "module"):
            made = importlib.import_module("flashfftconv").FlashFFTConv(2 * u.shape[-1], dtype=u.dtype).to(u.device)
            call.module = made  # type: ignore[attr-defined]
        return call.module(u, k, pregate=pre, postgate=post)  # type: ignore[attr-defined]

    return call


def nvidia_fft_conv(module: str, function: str, u: Tensor, k: Tensor, pre: Tensor, post: Tensor) -> Call:
    """NVIDIA's causal FFT convolutions, which have no gates: those around it by torch."""

    def call() -> Any:
        conv = getattr(importlib.import_module(module), function)
        return conv(u * pre, k.to(u.dtype)) * post

    return call


def with_backward(call: Call, leaves: list[Tensor]) -> Call:
    def both() -> Any:
        out = call()
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return both


def long_convolutions(run: Any, rate: float) -> None:
    """Gated bidirectional convolution; the peers know causal filters only and get one of the same work."""
    batch, dim, lengths = (1, 4, (64, 256)) if run.tiny else (64, 768, (128, 256, 1024, 4096, 8192, 32768))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for seqlen in lengths:
            name = f"{str(dtype).removeprefix('torch.')} {batch} x {dim} x {seqlen}"
            if not run.fits(f"fft_conv {name}", 0.5 if run.tiny else 12.0):
                continue
            u, pre, post = (torch.randn(batch, dim, seqlen, device=run.device).to(dtype) for _ in range(3))
            k, k_rev, skip = (torch.randn(*s, device=run.device) for s in ((dim, seqlen), (dim, seqlen), (dim,)))
            spectrum, reference = m2ops.filter_spectrum(k, k_rev, seqlen), m2ops.filter_spectrum_ref(k, k_rev, seqlen)
            gates = (u, k, pre, post)
            calls: dict[str, Call] = {
                "ours": lambda u=u, s=spectrum, d=skip, a=pre, b=post: m2ops.fft_conv(u, s, None, d, a, b),
                "torch.fft": lambda u=u, s=reference, d=skip, a=pre, b=post: m2ops.fft_conv_ref(u, s, None, d, a, b),
                "FlashFFTConv": flash_fft_conv(*gates),
                "cuDNN": nvidia_fft_conv("cudnn.ops", "fft_causal_conv1d", *gates),
                "subquadratic-ops": nvidia_fft_conv(
                    "subquadratic_ops_torch.fft_causal_conv1d", "fft_causal_conv1d", *gates
                ),
            }
            moved = 4 * u.numel() * u.element_size() + spectrum.data.numel() * 4
            row = record(run, "fft_conv, gated, bidirectional", name, calls, moved, rate)
            judge_forward(run, row, seqlen, dtype)
            if seqlen <= 8192 and run.fits(f"fft_conv backward {name}", 0.5 if run.tiny else 12.0):
                leaves = [x.requires_grad_() for x in (u, k, pre, post)]
                trained = {"ours": lambda u=u, k=k, a=pre, b=post: m2ops.fft_conv(u, k, None, None, a, b),
                           "torch.fft": lambda u=u, k=k, a=pre, b=post: m2ops.fft_conv_ref(u, k, None, None, a, b),
                           "FlashFFTConv": flash_fft_conv(*gates)}  # fmt: skip
                # Forward: three read, one written; backward: four read, three written.
                both = {peer: with_backward(call, leaves) for peer, call in trained.items()}
                row = record(run, "fft_conv, gated, causal, forward + backward", name, both, 11 * moved // 4, rate)
                judge_peer(run, row, "FlashFFTConv", 2.0)


def goal(run: Any, name: str, wanted: str, got: str, passed: bool) -> None:
    """Keep a goal's outcome; tiny sizes say nothing about it."""
    run.goals.append({"goal": name, "wanted": wanted, "got": got, "passed": None if run.tiny else passed})


def judge_peer(run: Any, row: dict[str, Any], peer: str, wanted: float) -> None:
    if peer in row["ratio"]:
        got = row["ratio"][peer]
        goal(run, f"{row['group']} {row['case']} over {peer}", f"{wanted:g} x", f"{got:.2f} x", got >= wanted)


def judge_forward(run: Any, row: dict[str, Any], seqlen: int, dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        return
    judge_peer(run, row, "FlashFFTConv", 2.0)
    judge_peer(run, row, "torch.fft", 8.0)
    limit = FLOOR_GOALS.get(seqlen, 1.5 if seqlen <= 8192 else 2.2)
    got = row["times_floor"]
    name = f"{row['group']} {row['case']} against the memory floor"
    goal(run, name, f"{limit} x", "did not run" if got is None else f"{got:.2f} x", got is not None and got <= limit)


def short_convolutions(run: Any, rate: float) -> None:
    batch, dim, seqlen = (1, 8, 64) if run.tiny else (16, 2304, 4096)
    for dtype in (torch.bfloat16, torch.float32):
        if not run.fits(f"short_conv {dtype}", 0.5 if run.tiny else 8.0):
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
            if not run.fits(f"monarch_mixer {name}", 0.5 if run.tiny else 8.0):
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
    tokens, dim, inter = (64, 64, 128) if run.tiny else (65536, 768, 3072)
    for dtype in (torch.bfloat16, torch.float32):
        if not run.fits(f"blockdiag_glu {dtype}", 0.5 if run.tiny else 8.0):
            continue
        shapes = ((tokens, dim), (4, inter // 2, dim // 4), (4, dim // 4, inter // 4))
        x, w_in, w_out = (torch.randn(*s, device=run.device).to(dtype) / 8 for s in shapes)
        calls: dict[str, Call] = {
            "ours": lambda x=x, a=w_in, b=w_out: m2ops.blockdiag_glu(x, a, b),
            "batched GEMM": lambda x=x, a=w_in, b=w_out: m2ops.blockdiag_glu_ref(x, a, b),
        }
        name = f"{str(dtype).removeprefix('torch.')} {tokens} tokens, {dim} -> {inter} -> {dim}"
        record(run, "blockdiag_glu", name, calls, 2 * x.numel() * x.element_size(), rate)


def encoders(run: Any, rate: float) -> None:
    """The 80M encoder against BERT-base with scaled dot-product attention, one long document."""
    seqlen = 128 if run.tiny else 32768
    if not run.fits(f"encoder {seqlen}", 3.0 if run.tiny else 40.0):
        return
    from transformers import BertConfig, BertModel

    from m2bert import M2BertConfig, M2BertModel

    small: dict[str, Any] = {"num_hidden_layers": 1} if run.tiny else {}
    dtype = torch.float32 if run.tiny else torch.bfloat16
    ours = M2BertModel(M2BertConfig(max_position_embeddings=seqlen, **small)).eval().to(run.device)
    bert = BertModel(BertConfig(max_position_embeddings=seqlen, attn_implementation="sdpa", **small)).eval()
    bert = bert.to(run.device, dtype)
    ids = torch.randint(1000, 30000, (1, seqlen), device=run.device)

    def encode(model: Any) -> Call:
        def call() -> Tensor:
            with torch.inference_mode(), torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=not run.tiny):
                return model(input_ids=ids).last_hidden_state

        return call

    calls = {"ours": encode(ours), "BERT-base SDPA": encode(bert)}
    row = record(run, "encoder", f"1 x {seqlen} tokens", calls, sum(p.numel() * 4 for p in ours.parameters()), rate)
    judge_peer(run, row, "BERT-base SDPA", 5.0)
    if "ours" not in row["seconds"]:
        goal(run, f"encoder {row['case']} over BERT-base SDPA", "5 x", "did not run", False)


def measure(run: Any) -> None:
    """All rows, the most telling first; a part that fails is a failed check."""
    rate = copy_rate(run.device, run.tiny)
    run.rows.append({"group": "copy", "case": "bytes a second, read and written", "bytes_per_second": rate})
    for part in (encoders, mlps, short_convolutions, sequence_mixers, long_convolutions):
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
