"""One table of a run: the same cells on the screen, in Markdown and in HTML, against values counted by hand."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from m2bert.bench.report import _html_table, _markdown_table
from m2bert.bench.tables import SOFT_HYPHEN, Column, Table, columns, sources, tables_of
from m2bert.cli.output import print_tables

TABLE = Table(
    "title [bold] & more",
    [Column("system", numeric=False), Column(f"docu{SOFT_HYPHEN}\nments"), Column("mean\ntokens")],
    [["[red]one", "1,234", "0.500"], ["a | b", "5", "-"]],
    ["mean", "619.5", ""],
    ["a <note>"],
)
CELLS = [list(row) for row in TABLE.all_rows]


def on_screen(table: Table, width: int) -> str:
    file = io.StringIO()
    print_tables([table], ["last line"], Console(file=file, width=width))
    return file.getvalue()


class Cells(HTMLParser):
    """(tag, class, text) of every cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[Any]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("th", "td"):
            self.found.append([tag, dict(attrs).get("class"), ""])

    def handle_data(self, data: str) -> None:
        if self.found and self.lasttag in ("th", "td"):
            self.found[-1][2] += data.strip("\n")


def test_the_three_forms_have_the_same_cells() -> None:
    screen = on_screen(TABLE, 100)
    assert [line.split() for line in screen.splitlines() if "1,234" in line] == [["[red]one", "1,234", "0.500"]]
    assert screen.index("title [bold] & more") < screen.index("docu-") < screen.index("ments") < screen.index("619.5")
    assert screen.endswith("a <note>\nlast line\n")

    markdown = _markdown_table(TABLE)
    assert markdown == [
        "**title [bold] & more**", "", "| system | documents | mean tokens |", "|---|---:|---:|",
        "| [red]one | 1,234 | 0.500 |", "| a \\| b | 5 | - |", "| mean | 619.5 |  |", "", "a <note>",
    ]  # fmt: skip

    cells = Cells(_html_table(TABLE)).found
    assert [text for tag, _, text in cells if tag == "th"] == ["system", "documents", "mean tokens"]
    assert [text for tag, _, text in cells if tag == "td"] == [cell for row in CELLS for cell in row]
    assert {kind for _, kind, _ in cells[::3]} == {"text"} and {kind for _, kind, _ in cells[1::3]} == {None}
    assert "a &lt;note&gt;" in _html_table(TABLE)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_screen_folds_names_and_no_number(width: int) -> None:
    names = [f"a system of a long name {number}" for number in range(4)]
    table = Table("t", columns("task", *names), [["a task of a long name", "0.123", "1,234,567", "2.5", "0.001"]])
    text = on_screen(table, width)
    for number in table.rows[0][1:]:
        assert number in text, "a number was cut or folded"
    assert "…" not in text


def evaluation_run(systems: int, metrics: list[str]) -> dict[str, Any]:
    """Two tasks of known scores: 0.1, 0.2, ... by system for the first task, twice that for the second."""
    names = [f"s{number}" for number in range(systems)]

    def scores(factor: int, number: int) -> dict[str, float]:
        return {metric: factor * (number + 1) / 10 for metric in metrics}

    tasks = [
        {
            "task": f"t{factor}", "split": "test", "data_fingerprint": f"d{factor}", "num_queries": 3,
            "num_documents": 2000, "num_dropped_queries": 0, "num_dropped_documents": factor - 1,
            "systems": [
                {
                    "name": name, "fingerprint": f"f{number}", "metrics": scores(factor, number),
                    "lengths": None if number else {
                        "mean_tokens": 1234.5, "max_tokens": 9999, "num_windowed": 4, "num_truncated": 1,
                        "tokens_lost": 77,
                    },
                }
                for number, name in enumerate(names)
            ],
        }
        for factor in (1, 2)
    ]  # fmt: skip
    means = {name: {metric: 1.5 * (number + 1) / 10 for metric in metrics} for number, name in enumerate(names)}
    estimate = {"mean": 0.25, "low": 0.125, "high": 0.375, "difference": None, "p": None}
    overall = {name: {metric: dict(estimate) for metric in metrics} for name in names}
    overall["s1"][metrics[0]] |= {"difference": -0.05, "p": 0.0312}
    return {
        "kind": "evaluation", "tasks": tasks, "means": means, "buckets": [],
        "comparison": {"baseline": "s0", "overall": overall, "method": "how"},
        "settings": {"metrics": metrics, "tie_rule": "by id"},
    }  # fmt: skip


def test_scores_by_task_with_their_means_and_what_was_not_read() -> None:
    by_task, summary = tables_of(evaluation_run(2, ["nDCG@10", "R@10"]))
    assert [column.heading for column in by_task.columns] == [
        "task", "queries", "documents", "mean tokens", "max tokens", "windowed", "truncated",
        "nDCG@10 s0", "nDCG@10 s1", "R@10 s0", "R@10 s1",
    ]  # fmt: skip
    assert by_task.rows[1] == [
        "t2", "3", "2000", "1,234", "9,999", "4", "1", "0.200", "0.400", "0.200", "0.400",
    ]  # fmt: skip
    assert by_task.foot == ["mean", *[""] * 6, "0.150", "0.300", "0.150", "0.300"]
    assert by_task.notes == [
        "t2: left out 1 documents without text and 0 queries that only they answer",
        "s0: read 2 of 4,000 documents in part, lost 154 tokens", "ties: by id",
    ]  # fmt: skip
    assert [column.heading for column in summary.columns][3:] == ["minus s0", "p", "R@10"]
    assert summary.rows[1] == ["s1", "0.250", "0.125 to 0.375", "-0.050", "0.0312", "0.250"]
    assert summary.rows[0][3:5] == ["", ""] and summary.notes == ["how"]


def test_many_systems_are_shown_by_the_first_metric_alone() -> None:
    by_task = tables_of(evaluation_run(3, ["nDCG@10", "R@10"]))[0]
    assert by_task.title == "nDCG@10 by task, test split"
    assert [column.name for column in by_task.columns][7:] == ["s0", "s1", "s2"]


def test_sources_name_systems_and_data() -> None:
    assert sources(evaluation_run(2, ["R@1"])) == ["s0: f0", "s1: f1", "data: t1 d1, t2 d2"]
    assert sources({"model": "m", "fingerprint": "f", "kind": "explanation"}) == ["m: f"]
    assert tables_of({"kind": "explanation"}) == []


def test_times_have_their_ratio_to_the_first_system() -> None:
    system = {"max_tokens": 2048, "device": "cpu", "padding": "to a multiple of 8", "fingerprint": "f"}
    rows = [[{"median": 0.5, "pieces": 1}, {"median": 2.0, "pieces": 3}], [{"median": 1.25, "pieces": 1}] * 2]
    systems = [{"name": name, "rows": row, **system} for name, row in zip(("a", "b"), rows, strict=True)]
    settings = {"lengths": [128, 4096], "repeats": 5, "threads": 2, "time": "wall clock"}
    (table,) = tables_of({"kind": "encode_time", "systems": systems, "settings": settings})
    assert table.rows == [
        ["128", "0.5000", "1", "1.2500 (2.50×)", "1"],
        ["4,096", "2.0000", "3", "1.2500 (0.62×)", "1"],
    ]
    assert table.columns[1].heading == "a (reads 2,048)"
    assert (
        table.notes[0] == "wall clock; 5 rounds, 2 threads" and table.notes[2] == "b on cpu, padded to a multiple of 8"
    )


def test_needles_have_a_row_per_length_with_five_places() -> None:
    cells = [
        {"passages": 5, "position": place, "metrics": {"RR@1": place / 10}, "tokens": 100.0 + place, "truncated": 2}
        for place in range(5)
    ]
    average = {"5": {"mean": 0.2, "low": 0.1, "high": 0.3}}
    systems = [{"name": "s", "cells": cells, "averages": average}]
    settings = {"metrics": ["RR@1"], "passages": [5], "num_queries": 7}
    (table,) = tables_of({"kind": "needle", "systems": systems, "settings": settings})
    assert table.rows == [
        ["s", "5", "102", "2", "0.200", "0.100 to 0.300", "0.000", "0.100", "0.200", "0.300", "0.400"]
    ]
    assert table.title == "RR@1 by place of the needle, 7 queries"


def test_lengths_stand_beside_the_paper_s_for_its_tasks_alone() -> None:
    each = {"count": 1200, "mean": 10.4, "percentiles": [1, 2, 3, 4, 5], "largest": 99}
    units = {"characters": each, "tokens": each}

    def run(name: str) -> Any:
        task = {"task": name, "documents": units, "queries": units, "data_fingerprint": "d"}
        return {"kind": "lengths", "tasks": [task], "settings": {"tokenizer": "words"}}

    (ours,), (theirs,) = tables_of(run("mine")), tables_of(run("qmsum"))
    assert ours.rows[1] == ["mine", "documents", "tokens", "1,200", "10", "3", "99"] and len(ours.rows) == 4
    assert [row[-1] for row in theirs.rows] == ["58,129", "", "430", ""]
    assert theirs.columns[-1].heading == "paper's table 10 (mean)"
