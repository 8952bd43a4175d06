"""Figures of runs: legible in print, in grey, and to readers who do not tell colours apart.

Every series has a colour of the Okabe-Ito palette, a marker and a line style of its own. Functions take runs as plain
data (m2bert.bench.runs) and return matplotlib figures; nothing is shown on a screen and no global state is touched.
Needs matplotlib (the extra `plots`) when a figure is made.
Test: tests/bench/test_plots.py.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2bert.errors import M2BertError, missing_package

Run = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
GREY = "#767676"
WIDTH = 7.0
"""Inches: the text width of an A4 or letter page."""
DPI = 160
FONT_SIZE = 9.0
SMALL = 6.5
# Positions shown by name under the curve of an explanation.
NAMED_PASSAGES = 3


def load_matplotlib() -> Any:
    """The matplotlib module; M2BertError if it is missing. A long run asks before it begins."""
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package("plots", "matplotlib", "plots") from error
    return matplotlib


def save(figure: Any, path: Path | str) -> None:
    """Write a figure in the format that the name's ending says (.png, .svg, .pdf). Raises M2BertError."""
    try:
        with load_matplotlib().rc_context({"svg.hashsalt": "m2bert"}):
            figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:
        raise M2BertError(
            f"plots: cannot write {path} ({error}); choose a file ending in .png, .svg or .pdf"
        ) from error


def svg(figure: Any) -> str:
    """The figure as an <svg> element, to stand inside HTML; equal figures give equal text."""
    buffer = io.StringIO()
    with load_matplotlib().rc_context({"svg.hashsalt": "m2bert"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def style(place: int) -> dict[str, Any]:
    """Colour, marker and line of the series at a place in a legend."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


def new_figure(height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure `height` inches high and its axes (an array of them for several columns, or several rows)."""
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for each in [axes] if columns * rows == 1 else axes:
        each.tick_params(labelsize=FONT_SIZE - 1)
        each.grid(color="#DDDDDD", linewidth=0.6)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    return figure, axes


def label(axes: Any, x: str, y: str, title: str = "") -> None:
    """Names of the axes with their units, and a title."""
    axes.set_xlabel(x, fontsize=FONT_SIZE)
    axes.set_ylabel(y, fontsize=FONT_SIZE)
    if title:
        axes.set_title(title, fontsize=FONT_SIZE + 1, loc="left")


def explanation(run: Run) -> Any:
    """Along the document: what every passage adds to the cosine of the whole, above the cosines of pairs of passages.

    The passages that add most are numbered and quoted underneath; the best pair is marked.
    """
    parts: Sequence[Mapping[str, Any]] = run["contributions"]
    named = sorted(range(len(parts)), key=lambda number: -parts[number]["value"])[:NAMED_PASSAGES]
    quotes = [f"{place}  {_excerpt(parts[number]['text'])}" for place, number in enumerate(named, 1)]
    figure, (axes, lower) = new_figure(4.5 + 0.18 * len(quotes), rows=2, sharex=True)
    percent, widths = _places(parts, run["length"])
    values = [part["value"] for part in parts]
    colours = [COLOURS[1] if number in named else COLOURS[0] for number in range(len(parts))]
    axes.bar(percent, values, widths, align="edge", color=colours, edgecolor="white", linewidth=0.3)
    axes.axhline(run["cosine"] / len(parts), color=GREY, linestyle="--", linewidth=1)
    axes.axhline(0.0, color="black", linewidth=0.8)
    for place, number in enumerate(named, 1):
        middle = (percent[number] + widths[number] / 2, max(values[number], 0.0))
        axes.annotate(str(place), middle, (0, 2), textcoords="offset points", ha="center", fontsize=FONT_SIZE)
    axes.margins(y=0.12)
    axes.grid(visible=False, axis="x")
    added = " + ".join(f"{part} {value:.3f}" for part, value in run["parts"].items())
    score = f"score {run['score']:.3f} = {added}"
    title = f"{_excerpt(run['query'], 90)}\n{_excerpt(run['document'], 60)}, {run['num_tokens']:,} tokens\n{score}"
    label(axes, "", f"share of the whole's\ncosine {run['cosine']:.3f}", title)
    places, reach = _places(run["pairs"], run["length"])
    cosines = [pair["value"] for pair in run["pairs"]]
    best = cosines.index(max(cosines))
    middles = [place + half / 2 for place, half in zip(places, reach, strict=True)]
    lower.plot(middles, cosines, color=COLOURS[0], marker="o", markersize=3, linewidth=1)
    lower.plot(middles[best], cosines[best], color=COLOURS[1], marker="o", markersize=7)
    lower.axhline(0.0, color="black", linewidth=0.8)
    lower.set_xlim(0, 100)
    label(lower, "place in the document, % of its characters", "cosine of two\nneighbouring passages")
    figure.supxlabel("\n".join(quotes), x=0.02, ha="left", fontsize=FONT_SIZE - 1)
    return figure


def _places(parts: Sequence[Mapping[str, Any]], length: int) -> tuple[list[float], list[float]]:
    """Where stretches begin, and how far they reach, in percent of the document."""
    starts = [100 * part["start"] / length for part in parts]
    return starts, [100 * (part["end"] - part["start"]) / length for part in parts]


def needle(run: Run, paper: Run | None = None) -> Any:
    """The first metric by the place of the needle and, where documents of several lengths were made, by length.

    paper: the paper's curves ({"positions", "systems": {name: percent}}), drawn in grey: other data, the same question.
    """
    metric, lengths = run["settings"]["metrics"][0], run["settings"]["passages"]
    figure, axes = new_figure(3.6, 2 if len(lengths) > 1 else 1)
    places, by_length = axes if len(lengths) > 1 else (axes, None)
    for number, system in enumerate(run["systems"]):
        cells = [cell for cell in system["cells"] if cell["passages"] == lengths[-1]]
        every = max(1, len(cells) // 8)
        values = [cell["metrics"][metric] for cell in cells]
        places.plot(
            [cell["position"] for cell in cells], values, markevery=every, label=system["name"], **style(number)
        )
        if by_length is not None:
            averages = [system["averages"][str(length)] for length in lengths]
            means = [each["mean"] for each in averages]
            # An interval of no width may lie a rounding beside the mean.
            below = [max(0.0, each["mean"] - each["low"]) for each in averages]
            above = [max(0.0, each["high"] - each["mean"]) for each in averages]
            by_length.errorbar(lengths, means, (below, above), capsize=2, label=system["name"], **style(number))
    if paper is not None and lengths[-1] == paper["passages"]:
        for number, (name, percent) in enumerate(paper["systems"].items()):
            values = [value / 100 for value in percent]
            places.plot(
                paper["positions"], values, color=GREY, linewidth=1, linestyle=LINES[number], label=f"paper: {name}"
            )
    label(places, f"place of the needle among {lengths[-1]} passages", metric)
    places.set_ylim(0, 1.03)
    if by_length is not None:
        by_length.set_ylim(0, 1.03)
        by_length.set_xscale("log", base=2)
        by_length.set_xticks(lengths, [str(length) for length in lengths])
        label(by_length, "passages in a document", f"{metric}, mean over places")
    _legend(figure, places)
    return figure


def _legend(figure: Any, axes: Any) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=FONT_SIZE - 1, handlelength=4
    )


def encode_time(run: Run) -> Any:
    """Seconds for one document by its length, both logarithmic; bars from the fastest to the slowest round."""
    figure, axes = new_figure(3.4)
    for number, system in enumerate(run["systems"]):
        rows = system["rows"]
        medians = [row["median"] for row in rows]
        spread = [[row["median"] - row["fastest"] for row in rows], [row["slowest"] - row["median"] for row in rows]]
        name = f"{system['name']} (reads {system['max_tokens']:,})"
        axes.errorbar([row["tokens"] for row in rows], medians, spread, capsize=2, label=name, **style(number))
    lengths = run["settings"]["lengths"]
    every = [second for system in run["systems"] for row in system["rows"] for second in row["seconds"]]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(10 ** math.floor(math.log10(min(every))), 10 ** math.ceil(math.log10(max(every))))
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    label(axes, "tokens in the document; longer than the model: in pieces", "seconds, median of rounds")
    _legend(figure, axes)
    return figure


def score_by_context(run: Run, paper: Run) -> Any:
    """Mean score against the longest text that a model reads at once: the paper's on the left, this run's on the right.

    The panels have different tasks; only the shapes can be compared. Systems without a limit are lines.
    """
    metric = run["settings"]["metrics"][0]
    figure, (left, right) = new_figure(3.6, 2, sharey=True)
    for name, system in paper["systems"].items():
        ours = name.startswith("M2")
        colour, marker = (COLOURS[0], "o") if ours else (GREY, "s")
        look = {"color": colour, "marker": marker, "markersize": 4.5, "linestyle": "none"}
        left.plot(system["max_tokens"], system["mean"] / 100, **look)
        _name_point(left, name, system["max_tokens"], system["mean"] / 100)
    label(left, "tokens read at once", f"{metric}, mean over tasks", f"paper, {paper['table']}: 12 LoCoV1 tasks")
    for number, system in enumerate(run["tasks"][0]["systems"]):
        mean, name = run["means"][system["name"]][metric], system["name"]
        if system.get("max_tokens"):
            right.plot(system["max_tokens"], mean, **{**style(number), "linestyle": "none"})
            _name_point(right, name, system["max_tokens"], mean)
        else:
            right.axhline(mean, color=COLOURS[number % len(COLOURS)], linestyle=LINES[number % len(LINES)])
            place = (0.02 + 0.24 * (number % 4), mean)
            right.annotate(name, place, (0, 2), ("axes fraction", "data"), "offset points", fontsize=SMALL)
    label(right, "tokens read at once", "", f"this run: {len(run['tasks'])} tasks")
    limits = [system["max_tokens"] for system in run["tasks"][0]["systems"] if system.get("max_tokens")]
    ticks = [128, 512, 2048, 8192, 32768]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xlim(min([90, *(tokens / 2 for tokens in limits)]), max([200_000, *(4 * tokens for tokens in limits)]))
        axes.set_ylim(0, 1.08)
    return figure


def _name_point(axes: Any, name: str, x: float, y: float) -> None:
    axes.annotate(name, (x, y), (5, -2), textcoords="offset points", fontsize=SMALL)


def score_by_length(run: Run) -> Any:
    """The first metric of every task against the mean length of its documents, in tokens of the first encoder."""
    metric = run["settings"]["metrics"][0]
    figure, axes = new_figure(4.4)
    tasks = [task for task in run["tasks"] if any(system["lengths"] for system in task["systems"])]
    tasks.sort(key=mean_tokens)
    for number, system in enumerate(run["tasks"][0]["systems"]):
        values = [task["systems"][number]["metrics"][metric] for task in tasks]
        lengths = [mean_tokens(task) for task in tasks]
        axes.plot(lengths, values, label=system["name"], **{**style(number), "linestyle": "none"})
    for number, task in enumerate(tasks):
        # Names stand in a row of their own, in the order of the lengths, with a line to their task.
        place = ((number + 0.3) / len(tasks), 1.1)
        line = {
            "arrowstyle": "-",
            "color": GREY,
            "linewidth": 0.5,
            "relpos": (0, 0),
            "shrinkA": 0,
        }
        look = {"rotation": 40, "ha": "left", "va": "bottom", "fontsize": SMALL, "arrowprops": line}
        axes.annotate(task["task"], (mean_tokens(task), 1.03), place, "data", "axes fraction", **look)
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(8, 17) if mean_tokens(tasks[0]) / 2 <= 2**power <= mean_tokens(tasks[-1]) * 2]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    label(axes, "mean tokens in a document of the task", metric)
    _legend(figure, axes)
    return figure


def mean_tokens(task: Mapping[str, Any]) -> float:
    """The mean length of a task's documents in an evaluation run; 0 where nothing counted tokens."""
    return float(next((system["lengths"]["mean_tokens"] for system in task["systems"] if system["lengths"]), 0.0))


def lengths(run: Run) -> Any:
    """The distribution of document lengths in every task: percentiles 5 to 95 as lines, 25 to 75 as bars."""
    unit = "tokens" if "tokens" in run["tasks"][0]["documents"] else "characters"
    tasks = sorted(run["tasks"], key=lambda task: task["documents"][unit]["percentiles"][2])
    figure, axes = new_figure(1.1 + 0.34 * len(tasks))
    largest = max(max(task["documents"][unit]["histogram"]) / task["documents"][unit]["count"] for task in tasks)
    edges = run["edges"]
    for place, task in enumerate(tasks):
        summary = task["documents"][unit]
        heights = [0.42 * count / summary["count"] / largest for count in summary["histogram"]]
        low, high = [place - height for height in heights], [place + height for height in heights]
        axes.fill_between(edges, [*low, place], [*high, place], step="post", color=COLOURS[4], linewidth=0)
        p5, p25, p50, p75, p95 = summary["percentiles"]
        axes.plot([p5, p95], [place, place], color="black", linewidth=1)
        axes.plot([p25, p75], [place, place], color="black", linewidth=4, solid_capstyle="butt")
        axes.plot(p50, place, marker="o", color="white", markeredgecolor="black", markersize=5)
    axes.set_yticks(range(len(tasks)), [task["task"] for task in tasks])
    axes.set_xscale("log", base=2)
    span = [task["documents"][unit]["percentiles"] for task in tasks]
    smallest, widest = min(each[0] for each in span) / 2, max(task["documents"][unit]["largest"] for task in tasks)
    ticks = [2**power for power in range(4, 21) if smallest <= 2**power <= 2 * widest]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
    axes.set_xlim(smallest, 1.5 * widest)
    axes.minorticks_off()
    label(axes, f"{unit} in a document (line: 5 to 95 %, bar: 25 to 75 %, ring: median)", "")
    return figure


def clusters(run: Run) -> Any:
    """The t-SNE map of every encoder: a colour and a marker per kind of text."""
    systems, kinds = run["systems"], run["settings"]["kinds"]
    figure, axes = new_figure(3.9 if len(systems) > 1 else 4.6, len(systems))
    for axis, system in zip([axes] if len(systems) == 1 else axes, systems, strict=True):
        start = 0
        for number, (kind, count) in enumerate(kinds.items()):
            points = system["points"][start : start + count]
            start += count
            x, y = zip(*points, strict=True)
            # Seven colours; from the eighth kind on a colour comes back with another marker.
            look = {"color": COLOURS[number % 7], "marker": MARKERS[(number + number // 7) % 7]}
            axis.scatter(x, y, s=14, label=kind, alpha=0.75, linewidths=0, **look)
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.set_yticks([])
        measures = f"silhouette {system['silhouette']:.2f}, V-measure {system['v_measure']:.2f}"
        label(axis, "", "", f"{system['name']}\n{measures}")
    _legend(figure, axes if len(systems) == 1 else axes[0])
    return figure


def _excerpt(text: str, length: int = 105) -> str:
    """The beginning of a text on one line; dollar signs do not begin formulas."""
    return textwrap.shorten(" ".join(text.split()), length, placeholder=" …").replace("$", r"\$")


_BY_KIND = {
    "explanation": explanation,
    "needle": needle,
    "encode_time": encode_time,
    "lengths": lengths,
    "clusters": clusters,
}


def draw(run: Run) -> Any:
    """The figure of a run of a kind that has one of its own, which an evaluation has not."""
    return _BY_KIND[run["kind"]](run)
