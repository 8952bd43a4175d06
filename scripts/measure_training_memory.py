"""Peak memory of one training step of a masked LM on a single document, with and without gradient checkpointing.

    python scripts/measure_training_memory.py --preset 80m-32k --tokens 32768

With --count: what the encoder keeps for the gradient of that document, counted on tensors without contents.

Every setting runs in a process of its own: model, gradients, AdamW's state and one step (forward, backward, update)
with 30 % of the tokens masked. Prints one JSON line each: peak_gib, of which before_step_gib before the first forward
pass, and seconds of the step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

GIB_IN_KIB = 1 << 20


def peak_gib() -> float:
    """The most memory this process has held, in GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB_IN_KIB


def measure(preset: str, tokens: int, layers: int, checkpointing: bool, bf16: bool) -> dict[str, Any]:
    """One step in this process."""
    from m2bert.model.configuration import M2BertConfig
    from m2bert.model.modeling import M2BertForMaskedLM
    from m2bert.train.settings import PRESETS
    from m2bert.train.trainer import checkpoint_blocks

    torch.manual_seed(0)
    fields = {**PRESETS[preset], **({"num_hidden_layers": layers} if layers else {})}
    model = M2BertForMaskedLM(M2BertConfig(**fields)).train()
    if checkpointing:
        checkpoint_blocks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    # AdamW makes its state with the first step; two parameters' worth of memory belong to what training always holds.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    before = peak_gib()
    input_ids = torch.randint(5, model.config.vocab_size, (1, tokens))
    labels = torch.where(torch.rand(1, tokens) < 0.3, input_ids, -100)
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    return {
        "preset": preset,
        "tokens": tokens,
        "layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "gradient_checkpointing": checkpointing,
        "dtype": "bfloat16 autocast" if bf16 else "float32",
        "before_step_gib": round(before, 2),
        "peak_gib": round(peak_gib(), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


def kept_bytes(preset: str, tokens: int, layers: int, bf16: bool) -> int:
    """Bytes that a forward pass of the encoder keeps for its gradient, weights aside: counted, nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from m2bert.model.configuration import M2BertConfig
    from m2bert.model.modeling import M2BertForMaskedLM
    from m2bert.train.settings import PRESETS

    kept: dict[int, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = M2BertForMaskedLM(M2BertConfig(**{**PRESETS[preset], "num_hidden_layers": layers})).train()
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def count(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return x

        counting = torch.autograd.graph.saved_tensors_hooks(count, lambda x: x)
        with counting, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.m2bert(input_ids=torch.zeros(1, tokens, dtype=torch.long))
    return sum(kept.values())


def count(preset: str, tokens: int, bf16: bool) -> dict[str, Any]:
    """What a step keeps, with and without gradient checkpointing, from one block and two."""
    from m2bert.model.configuration import M2BertConfig
    from m2bert.train.settings import PRESETS

    config = M2BertConfig(**PRESETS[preset])
    one, two = (kept_bytes(preset, tokens, layers, bf16) for layers in (1, 2))
    block, rest, layers = two - one, 2 * one - two, config.num_hidden_layers
    # Of every block its input is kept, and all of the one whose gradient is being computed.
    state = config.hidden_size * tokens * (2 if bf16 else 4)
    return {
        "preset": preset,
        "tokens": tokens,
        "layers": layers,
        "dtype": "bfloat16 autocast" if bf16 else "float32",
        "kept_gib": round((rest + layers * block) / 2**30, 2),
        "kept_with_checkpointing_gib": round((rest + block + layers * state) / 2**30, 2),
    }


def main() -> None:
    """Measure in this process what --one says, or start a process for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="80m-32k", help="model size, as of m2bert pretrain")
    parser.add_argument("--tokens", type=int, default=32768, help="length of the document")
    parser.add_argument("--layers", type=int, default=0, help="layers instead of the preset's")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--one", choices=("plain", "checkpointing"), help="this setting alone, in this process")
    parser.add_argument("--count", action="store_true", help="count what is kept instead, which takes no time")
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count(options.preset, options.tokens, options.bf16)), flush=True)
        return
    if options.one:
        row = measure(options.preset, options.tokens, options.layers, options.one == "checkpointing", options.bf16)
        print(json.dumps(row), flush=True)
        return
    for one in ("checkpointing", "plain"):
        subprocess.run([sys.executable, *sys.argv, "--one", one], check=True)


if __name__ == "__main__":
    main()
