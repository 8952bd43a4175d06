"""Figures show the numbers that they were given, in series that can be told apart without colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from m2bert.bench import plots
from m2bert.errors import M2BertError

pytest.importorskip("matplotlib", reason="needs matplotlib to draw")


def explanation_run() -> dict[str, Any]:
    values = [0.01, 0.2, -0.03, 0.1, 0.02]
    parts = [{"start": 10 * i, "end": 10 * i + 10, "value": x, "text": f"part {i} $5"} for i, x in enumerate(values)]
    cosines = [0.25, 0.375, -0.125, 0.0]
    pairs = [{"start": 10 * i, "end": 10 * i + 20, "value": x, "text": "pair"} for i, x in enumerate(cosines)]
    added = {"whole": 0.21, "passages": 0.125, "words": 0.25}
    return {"query": "q $1", "document": "d", "score": 0.585, "parts": added, "cosine": 0.3, "length": 50,
            "num_tokens": 9, "contributions": parts, "pairs": pairs}  # fmt: skip


def test_explanation_has_a_bar_per_passage_and_names_the_largest() -> None:
    figure = plots.explanation(explanation_run())
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.01, 0.2, -0.03, 0.1, 0.02]
    assert [bar.get_x() for bar in bars] == [0, 20, 40, 60, 80]
    marked = [number for number, bar in enumerate(bars) if bar.get_facecolor() != bars[0].get_facecolor()]
    assert marked == [1, 3, 4]
    assert r"1  part 1 \$5" in figure._supxlabel.get_text()
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(0.3 / 5), "the mean of the passages"
    title = figure.axes[0].get_title(loc="left") or figure.axes[0].get_title()
    assert "score 0.585 = whole 0.210 + passages 0.125 + words 0.250" in title
    assert "0.300" in figure.axes[0].get_ylabel()


def test_a_second_curve_has_the_cosines_of_neighbours_and_marks_the_best() -> None:
    run = explanation_run()
    curve, best = plots.explanation(run).axes[1].lines[:2]
    assert list(curve.get_xdata()) == [20, 40, 60, 80], "the middles of 20 of 50 characters each, in percent"
    assert list(curve.get_ydata()) == [0.25, 0.375, -0.125, 0.0]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (40, 0.375) and best.get_color() != curve.get_color()
    single = run | {"contributions": run["contributions"][:1], "pairs": [{"start": 0, "end": 50, "value": 0.3}]}
    curve = plots.explanation(single).axes[1].lines[0]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([50], [0.3])


def test_series_differ_in_colour_marker_and_line() -> None:
    styles = [plots.style(place) for place in range(7)]
    for name in ("color", "marker", "linestyle"):
        assert len({str(each[name]) for each in styles}) == 7


def test_equal_figures_give_equal_svg_and_files_are_written(tmp_path: Path) -> None:
    first, second = (plots.svg(plots.explanation(explanation_run())) for _ in range(2))
    assert first == second and first.startswith("<svg") and first.rstrip().endswith("</svg>")
    plots.save(plots.explanation(explanation_run()), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    for name in ("x.doc", "no/x.png"):
        with pytest.raises(M2BertError, match="plots: cannot write"):
            plots.save(plots.explanation(explanation_run()), tmp_path / name)
