"""`python -m m2ops`: what is built and what this machine has."""

from __future__ import annotations

import platform

import torch

import m2ops
from m2ops._library import CUDA_LIBRARY, binding, cuda_loaded


def main() -> None:
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
        "CUDA library": state,
        "operators": ", ".join(name for name in m2ops.__all__ if f"{name}_ref" in m2ops.__all__),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
