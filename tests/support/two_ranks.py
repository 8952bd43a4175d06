"""Pretraining by several processes with gradients averaged over gloo, meeting in a file: no port, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import json, sys
import torch.distributed as dist
rank, world, meeting, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
from m2bert.train.pretrain import pretrain
from m2bert.train.settings import PretrainConfig
settings = json.load(open(path))
settings["lengths"] = {int(length): share for length, share in settings["lengths"].items()}
result = pretrain(PretrainConfig(**settings))
json.dump(result, open(f"{path}.{rank}", "w"))
dist.destroy_process_group()
"""


def pretrain_in_ranks(settings: dict[str, Any], folder: Path, world: int = 2) -> list[dict[str, Any]]:
    """Results of every rank, as torchrun would start them, on one thread each."""
    path = folder / "ranks.json"
    path.write_text(json.dumps(settings))
    processes = []
    for rank in range(world):
        surroundings = {
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(rank), str(world), str(folder / "meeting"), str(path)]
        processes.append(subprocess.Popen(command, env=surroundings, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)[-4000:]
    return [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(world)]
