"""Figures of runs: legible in print, in grey, and to readers who do not tell colours apart.

Every series has a colour of the Okabe-Ito palette, a marker and a line style of its own. Functions take runs as plain
data (m2bert.runs) and return matplotlib figures; nothing is shown on a screen and no global state is touched.
Needs matplotlib (the extra `plots`) when a figure is made. Imports m2bert.errors. Test: tests/test_plots.py.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2bert.errors import M2BertError

Run = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
GREY = "#767676"
WIDTH = 7.0
"""Inches: the text width of an A4 or letter page."""
DPI = 160
FONT_SIZE = 9.0
# Positions shown by name under the curve of an explanation.
NAMED_PASSAGES = 3


def load_matplotlib() -> Any:
    """The matplotlib module; M2BertError if it is missing. A long run asks before it begins."""
    try:
        import matplotlib
    except ImportError as error:
        raise M2BertError("plots: needs matplotlib; run pip install '.[plots]' in the project's folder") from error
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


def new_figure(height: float, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure `height` inches high and its axes (an array of them for several columns)."""
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, columns, **options)
    for each in [axes] if columns == 1 else axes:
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
    """The contribution of every passage along the document; the largest are numbered and quoted underneath."""
    parts: Sequence[Mapping[str, Any]] = run["contributions"]
    named = sorted(range(len(parts)), key=lambda number: -parts[number]["value"])[:NAMED_PASSAGES]
    quotes = [f"{place}  {_excerpt(parts[number]['text'])}" for place, number in enumerate(named, 1)]
    figure, axes = new_figure(2.9 + 0.18 * len(quotes))
    percent = [100 * part["start"] / run["length"] for part in parts]
    widths = [100 * (part["end"] - part["start"]) / run["length"] for part in parts]
    values = [part["value"] for part in parts]
    colours = [COLOURS[1] if number in named else COLOURS[0] for number in range(len(parts))]
    axes.bar(percent, values, widths, align="edge", color=colours, edgecolor="white", linewidth=0.3)
    axes.axhline(run["score"] / len(parts), color=GREY, linestyle="--", linewidth=1)
    axes.axhline(0.0, color="black", linewidth=0.8)
    for place, number in enumerate(named, 1):
        middle = (percent[number] + widths[number] / 2, max(values[number], 0.0))
        axes.annotate(str(place), middle, (0, 2), textcoords="offset points", ha="center", fontsize=FONT_SIZE)
    axes.set_xlim(0, 100)
    axes.margins(y=0.12)
    axes.grid(visible=False, axis="x")
    score = f"score {run['score']:.3f} = sum of {len(parts)} passages (dashed: their mean)"
    title = f"{_excerpt(run['query'], 70)}\n{_excerpt(run['document'], 40)}, {run['num_tokens']:,} tokens; {score}"
    label(axes, "place in the document, % of its characters", "contribution to the score", title)
    figure.supxlabel("\n".join(quotes), x=0.02, ha="left", fontsize=FONT_SIZE - 1)
    return figure


def needle(run: Run) -> Any:
    """The first metric by the place of the needle and, where documents of several lengths were made, by length."""
    metric, lengths = run["settings"]["metrics"][0], run["settings"]["passages"]
    figure, axes = new_figure(3.4, 2 if len(lengths) > 1 else 1)
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
            spread = [
                [each["mean"] - each["low"] for each in averages],
                [each["high"] - each["mean"] for each in averages],
            ]
            by_length.errorbar(lengths, means, spread, capsize=2, label=system["name"], **style(number))
    label(places, f"place of the needle among {lengths[-1]} passages", metric)
    for each in (places, by_length):
        if each is not None:
            each.set_ylim(0, 1.03)
    if by_length is not None:
        by_length.set_xscale("log", base=2)
        by_length.set_xticks(lengths, [str(length) for length in lengths])
        label(by_length, "passages in a document", f"{metric}, mean over places")
    figure.legend(*places.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=FONT_SIZE - 1)
    return figure


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
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    label(axes, "tokens in the document; longer than the model: in pieces", "seconds, median of rounds")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=FONT_SIZE - 1)
    return figure


def _excerpt(text: str, length: int = 105) -> str:
    """The beginning of a text on one line; dollar signs do not begin formulas."""
    return textwrap.shorten(" ".join(text.split()), length, placeholder=" …").replace("$", r"\$")
