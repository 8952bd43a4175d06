"""`python -m m2ops`: what is built and what this machine has. `python -m m2ops plans`: plans of the CPU transforms.

Test: tests/ops/test_isa.py, tests/ops/test_plan.py.
"""

from __future__ import annotations

import argparse
import platform
import sys

import torch

import m2ops
from m2ops._library import CUDA_LIBRARY, binding, cuda_loaded
from m2ops._plans import machine_name, plans_file

USUAL_SEQLENS = [1 << bits for bits in range(7, 18)]


def main() -> None:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m m2ops", description="What is built and what this machine has.")
    commands = parser.add_subparsers(dest="command")
    plans = commands.add_parser("plans", help="show the plans of the CPU transforms, or search for faster ones")
    plans.add_argument("seqlens", nargs="*", type=int, default=USUAL_SEQLENS, help="sequence lengths")
    plans.add_argument("--search", action="store_true", help="time all plans and keep the fastest in the file")
    arguments = parser.parse_args()
    if arguments.command == "plans":
        show_plans(arguments.seqlens, search=arguments.search)
    else:
        show_facts()


def show_plans(seqlens: list[int], *, search: bool) -> None:
    """Print a line a plan; with `search`, find the fastest first and say what they gain."""
    try:
        if not search:
            print("fft_size = outer x n1 (radices) x n2 (radices)")
            for seqlen in seqlens:
                print(m2ops.fft_plan(seqlen))
            return
        show = sys.stderr.isatty()

        def progress(done: int, total: int) -> None:
            if show:
                print(f"{done} of {total} lengths", end="\r", file=sys.stderr)

        found = m2ops.search_fft_plans(seqlens, progress=progress)
    except ValueError as error:
        raise SystemExit(f"m2ops: {error}") from None
    for item in found:
        gain = item.usual_seconds / item.seconds
        print(f"{item.plan}  {item.seconds * 1e6:.1f} us, usual {item.usual_seconds * 1e6:.1f} us ({gain:.2f}x)")
    print(f"kept for {machine_name()} in {plans_file()}; used by processes started from now on")


def show_facts() -> None:
    """Print one fact per line."""
    info = binding.build_info()
    archs = info["cuda_archs"] or "not built"
    if not CUDA_LIBRARY.is_file():
        state = "not built (nvcc was not found, or M2OPS_CUDA=0)"
    elif cuda_loaded:
        state = f"built for {archs}, loaded, {torch.cuda.device_count()} device(s)"
    else:
        state = f"built for {archs}, not loaded: torch {torch.__version__} has no CUDA"
    facts = {
        "m2ops": m2ops.__version__,
        "compiler": f"{info['compiler']}, {info['build_type']}, against torch {info['torch_built_against']}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "instruction sets": ", ".join(
            name + (" (in use)" if name == m2ops.current_isa() else "") for name in m2ops.available_isas()
        ),
        "matrix tiles (AMX)": binding.amx_state(),
        "products of bfloat16 pairs (AVX512-BF16)": binding.bf16_state(),
        "CUDA library": state,
        "operators": ", ".join(name for name in m2ops.__all__ if f"{name}_ref" in m2ops.__all__),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
