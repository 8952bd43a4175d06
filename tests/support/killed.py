"""A training run in a process of its own that kills itself without warning (SIGKILL) after a step."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from forking import TRAINING, run_forked

SCRIPT = """
import importlib, json, os, signal, sys, torch
torch.set_num_threads(1)
stage, config_name, path, step = sys.argv[1:]
module = importlib.import_module(f"m2bert.train.{stage}")

def watch(progress):
    if progress.fraction > 0 and progress.step == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

settings = json.load(open(path))
if "lengths" in settings:
    settings["lengths"] = {int(length): share for length, share in settings["lengths"].items()}
getattr(module, stage)(getattr(module, config_name)(**settings), watch)
"""


def run_until_killed(stage: str, config_name: str, settings: dict[str, Any], step: int, folder: Path) -> None:
    """Run `m2bert.train.<stage>` with `settings` on one thread; the process is gone by SIGKILL after `step` steps."""
    path = folder / "killed.json"
    path.write_text(json.dumps(settings))
    done = run_forked(SCRIPT, stage, config_name, str(path), str(step), imported=TRAINING)
    assert done.returncode == -signal.SIGKILL, done.stderr
