"""Pretraining by several processes with gradients averaged over gloo, meeting in a file: no port, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forking import TRAINING, run_forked

SCRIPT = """
import json, os, sys
import torch.distributed as dist
meeting, path = sys.argv[1:]
world = int(os.environ["WORLD_SIZE"])
for rank in range(1, world):  # the last of them goes on as rank 0
    if not os.fork():
        break
else:
    rank = 0
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
from m2bert.train.pretrain import pretrain
from m2bert.train.settings import PretrainConfig
settings = json.load(open(path))
settings["lengths"] = {int(length): share for length, share in settings["lengths"].items()}
result = pretrain(PretrainConfig(**settings))
json.dump(result, open(f"{path}.{rank}", "w"))
dist.destroy_process_group()
if rank == 0:
    assert all(os.wait()[1] == 0 for _ in range(1, world))
"""


def pretrain_in_ranks(settings: dict[str, Any], folder: Path, world: int = 2) -> list[dict[str, Any]]:
    """Results of every rank, as torchrun would start them, on one thread each."""
    path = folder / "ranks.json"
    path.write_text(json.dumps(settings))
    size = str(world)
    env = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = run_forked(SCRIPT, str(folder / "meeting"), str(path), imported=TRAINING, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(world)]
