"""Draw the results of ablations: `python scripts/plot_ablations.py docs/ablations/*.json` makes a .png beside each.

Reads what scripts/ablations.py writes. Needs matplotlib. Test: tests/train/test_ablations.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2bert.bench import plots

Run = Mapping[str, Any]
LEAST_QUERIES = 10  # of a point in a figure


def names_of(run: Run) -> list[str]:
    """Names of the arms, each once, in the order they were run."""
    return list(dict.fromkeys(row["arm"] for row in run["arms"]))


def mean(values: Sequence[float]) -> float:
    """The mean over seeds."""
    return sum(values) / len(values)


def seeds_note(run: Run) -> str:
    """How many seeds the figure shows."""
    count = len({row["seed"] for row in run["arms"]})
    return "one seed" if count == 1 else f"mean of {count} seeds, bars to each"


def mixture(run: Run) -> Any:
    """Held-out loss of each mixture by length of the document, less that of the mixed one, from the lowest seed to the
    highest; the long-range probe, where there is one."""
    probed = any("probe" in row for row in run["arms"])
    figure, axes = plots.new_figure(3.2, 2, width_ratios=(3, 2)) if probed else plots.new_figure(3.2)
    left, right = axes if probed else (axes, None)
    rows = {name: [row for row in run["arms"] if row["arm"] == name] for name in names_of(run)}
    buckets = list(run["arms"][0]["validation"])
    for number, (name, own) in enumerate(rows.items()):
        look = plots.style(number)
        losses = [
            [row["validation"][bucket]["loss"] - base["validation"][bucket]["loss"] for bucket in buckets]
            for row, base in zip(own, rows["mixed"], strict=True)
        ]
        columns = list(zip(*losses, strict=True))
        means = [mean(column) for column in columns]
        below = [value - min(column) for value, column in zip(means, columns, strict=True)]
        above = [max(column) - value for value, column in zip(means, columns, strict=True)]
        # Beside each other, so that their bars do not cover each other.
        places = [place + 0.08 * (number - 1) for place in range(len(buckets))]
        left.errorbar(places, means, (below, above), capsize=3, label=name, **look)
        probes = [row["probe"] for row in own if "probe" in row]
        if right is not None and probes:
            point = {**look, "linestyle": "none"}
            error = mean([probe["gain_error"] for probe in probes])
            right.errorbar(number, mean([probe["gain"] for probe in probes]), error, capsize=3, **point)
    left.set_xticks(range(len(buckets)), ["> 32k" if bucket == "longer" else f"≤ {bucket}" for bucket in buckets])
    plots.label(left, "tokens in the held-out document", "loss above mixed, nats", seeds_note(run))
    if right is not None:
        right.set_xticks(range(len(rows)), list(rows))
        right.set_xlim(-0.5, len(rows) - 0.5)
        right.axhline(0.0, color=plots.GREY, linewidth=1, linestyle="--")
        plots.label(right, "examples", "gain of the probe, nats", "± 1 standard error")
    left.legend(fontsize=plots.FONT_SIZE - 1, handlelength=4)
    return figure


def losses(run: Run) -> Any:
    """Retrieval with each loss: mean over tasks with intervals, and by the length of the answer."""
    scores = run["scores"]
    metric, names = scores["metric"], names_of(run)
    figure, (left, right) = plots.new_figure(3.4, 2)
    overall = scores["comparison"]["overall"]
    # The mean of a handful of queries says nothing.
    buckets = [bucket for bucket in scores["buckets"] if bucket["num_queries"] >= LEAST_QUERIES]
    order = [*names, "start", "BM25"]
    for number, name in enumerate(order):
        place, estimate = len(order) - 1 - number, overall[name][metric]
        look = {**plots.style(number), "linestyle": "none"}
        error = [[estimate["mean"] - estimate["low"]], [estimate["high"] - estimate["mean"]]]
        left.errorbar(estimate["mean"], place, xerr=error, capsize=3, **look)
        for seed in scores["seeds"] if name in names and len(scores["seeds"]) > 1 else []:
            value = scores["by_seed"][f"{name}-{seed}"][metric]
            left.plot(value, place + 0.25, marker="|", markersize=7, color=look["color"])
        values = [bucket["means"][name][metric] for bucket in buckets]
        right.plot(range(len(values)), values, label=name, **plots.style(number))
    left.set_yticks(range(len(order)), order[::-1])
    left.set_ylim(-0.6, len(order) - 0.4)
    right.set_xticks(range(len(buckets)), [bucket["name"] for bucket in buckets])
    right.set_ylim(0, 1.03)
    plots.label(left, f"{metric}, mean over tasks (95 %)", "", seeds_note(run))
    plots.label(right, "tokens in the answer", metric)
    handles = right.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=plots.FONT_SIZE - 1, handlelength=4)
    return figure


def mean_curve(run: Run, arm: str) -> tuple[list[float], list[float]]:
    """Thousands of tokens and training loss of an arm, step by step the mean over its seeds."""
    logs = [row["log"] for row in run["arms"] if row["arm"] == arm]
    steps = list(zip(*logs, strict=False))
    tokens, losses = ([mean([point[axis] for point in step]) for step in steps] for axis in (0, 1))
    return [count / 1e3 for count in tokens], losses


def extension(run: Run) -> Any:
    """Training loss of long models by how they start, for each window of filters."""
    arms = [name.partition("-") for name in names_of(run)]
    windows = list(dict.fromkeys(window for window, _, _ in arms))
    figure, axes = plots.new_figure(3.2, len(windows), sharey=True)
    note = seeds_note(run).partition(",")[0]
    for axis, window in zip([axes] if len(windows) == 1 else axes, windows, strict=True):
        x, y = mean_curve(run, f"{window}-short")
        short = f"at {run['settings']['short']:,} tokens"
        axis.plot([tokens - x[-1] for tokens in x], y, color=plots.GREY, linewidth=1, label=short)
        starts = [start for other, _, start in arms if other == window and start != "short"]
        for number, start in enumerate(starts):
            x, y = mean_curve(run, f"{window}-{start}")
            axis.plot(x, y, label=start, markersize=4, markevery=max(1, len(x) // 6), **plots.style(number))
        axis.axvline(0.0, color=plots.GREY, linewidth=0.8, linestyle=":")
        plots.label(axis, "thousand tokens after the switch", "training loss, nats", f"{window} windows, {note}")
    first = axes if len(windows) == 1 else axes[0]
    handles = first.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=plots.FONT_SIZE - 1, handlelength=4)
    return figure


FIGURES: dict[str, Callable[[Run], Any]] = {
    "ablation-mixture": mixture,
    "ablation-losses": losses,
    "ablation-extension": extension,
}


def main(*files: str) -> None:
    """A figure beside every file."""
    for name in files:
        run = json.loads(Path(name).read_text(encoding="utf-8"))
        plots.save(FIGURES[run["kind"]](run), Path(name).with_suffix(".png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
