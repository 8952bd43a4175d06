"""Draw the loss curves of training runs: `python scripts/plot_training.py OUT.png NAME=LOG.jsonl ...`.

Reads the log.jsonl that `m2bert pretrain` and `m2bert finetune` write. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(path: Path) -> tuple[list[float], list[float]]:
    """Millions of tokens and losses of one log."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "loss" in row]
    return [row["tokens"] / 1e6 for row in rows], [row["loss"] for row in rows]


def main(out: str, *runs: str) -> None:
    """One panel per run."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 3), constrained_layout=True, squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        name, _, path = run.partition("=")
        tokens, losses = read(Path(path))
        axis.plot(tokens, losses, color="#0072B2", linewidth=1.5)
        axis.set(title=name, xlabel="million tokens", ylabel="training loss")
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
