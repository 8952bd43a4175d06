"""The report: the numbers of the runs in HTML that stands alone and in Markdown, the paper's beside them."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bag_of_words import BagOfWords

import m2bert.cli
from m2bert.bench import plots
from m2bert.bench.clusters import run_clusters
from m2bert.bench.encode_time import run_encode_time
from m2bert.bench.evaluate import evaluate_tasks
from m2bert.bench.lengths import measure_lengths
from m2bert.bench.needle import Needles, run_needle
from m2bert.bench.report import write_report
from m2bert.bench.report_sections import build_sections, evaluation, load_paper
from m2bert.bench.systems import BM25System, EncoderSystem, Fusion
from m2bert.bench.tasks import LOCO_TASKS, RetrievalTask
from m2bert.errors import M2BertError

pytest.importorskip("matplotlib", reason="needs matplotlib to draw")


def task(name: str, count: int) -> RetrievalTask:
    corpus = {f"d{n}": "filler " * (5 + n % 40) + f"<b>topic{n}</b>" for n in range(count)}
    queries = {f"q{n}": f"<b>topic{n}</b>" for n in range(count)}
    return RetrievalTask(name, "test", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(count)})


def encoder(name: str, limit: int | None = None) -> Any:
    made = BagOfWords(limit=limit)
    made.name = name
    return made


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    """A small run of every kind, as read from its file."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    tasks = [task("multifieldqa", 30), task("qmsum", 12)]
    systems = [EncoderSystem(encoder("A & B")), EncoderSystem(encoder("cut", 3)), BM25System()]
    fusions = [Fusion("both", ("A & B", "BM25"))]
    needles = Needles(
        {f"q{n}": f"topic{n}" for n in range(6)},
        {f"q{n}": f"topic{n} " + "filler " * 5 for n in range(6)},
        [f"other{n} filler" for n in range(50)],
    )
    parts = [
        {"start": 0, "end": 5, "value": 0.25, "text": "<i>one"},
        {"start": 5, "end": 9, "value": 0.5, "text": "two"},
    ]
    found = {
        "evaluation.json": evaluate_tasks(
            tasks, systems, fusions=fusions, metrics=["nDCG@10", "R@10"], baseline="BM25"
        ).to_dict(),
        "needle.json": run_needle(needles, systems[1:], passages=[4, 40], positions=5).to_dict(),
        "time.json": run_encode_time([encoder("slow"), encoder("quick")], lengths=[20, 40], repeats=2).to_dict(),
        "lengths.json": measure_lengths(tasks, lambda texts: [len(text.split()) for text in texts], "words"),
        "clusters.json": run_clusters(
            {"cats": [f"cat {n}" for n in range(6)], "dogs": [f"dog {n}" for n in range(6)]}, [encoder("A & B")]
        ),
        "explain.json": {
            "kind": "explanation", "query": "what?", "document": "d.txt", "model": "m", "fingerprint": "f",
            "score": 0.725, "parts": {"whole": 0.525, "passages": 0.2}, "cosine": 0.75, "length": 9, "num_tokens": 4,
            "contributions": parts, "pairs": [{"start": 0, "end": 9, "value": 0.66, "text": "<i>onetwo"}], "words": {},
            "version": 2,
            "versions": {"m2bert": "1"}, "created": "now",
            "machine": {"system": "s", "processor": "p", "cpu_count": 2},
        },
    }  # fmt: skip
    return json.loads(json.dumps(found))


class Tables(HTMLParser):
    """The cells of every table, the texts between, and whatever would load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[:1] != "#"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


def test_the_page_stands_alone_and_shows_the_numbers_of_the_runs(runs: Any, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "r.html", tmp_path / "r.md", "All & more")
    page = (tmp_path / "r.html").read_text()
    found = Tables(page)
    assert found.loads == [] and "<title>All &amp; more</title>" in page
    first = runs["evaluation.json"]
    by_task = found.tables[0]
    assert by_task[0][3:] == [
        "mean tokens", "max tokens", "windowed", "truncated", "A & B", "cut", "BM25", "both"
    ]  # fmt: skip
    for row, each in zip(by_task[1:], first["tasks"], strict=False):
        assert row == [each["task"], str(each["num_queries"]), str(each["num_documents"]), *row[3:7]] + [
            f"{system['metrics']['nDCG@10']:.3f}" for system in each["systems"]
        ]
    lengths = first["tasks"][0]["systems"][0]["lengths"]
    counts = [str(lengths[name]) for name in ("max_tokens", "num_windowed", "num_truncated")]
    assert by_task[1][3:7] == [f"{lengths['mean_tokens']:.0f}", *counts] and lengths["num_windowed"] > 0
    assert by_task[-1] == ["mean", *[""] * 6, *(f"{first['means'][name]['nDCG@10']:.3f}" for name in by_task[0][7:])]
    assert page.count("<figure><svg") == page.count("</svg><figcaption>".replace("</svg>", "</svg>\n")) == 7
    for name, run in runs.items():
        assert f"Run: {name}" in page and run["created"] in page
    assert "adds to the cosine of its whole, 0.750" in page and "Its score is 0.725." in page
    markdown = (tmp_path / "r.md").read_text()
    pictures = re.findall(r"\]\((r_figures/[\w.]+\.png)\)", markdown)
    assert len(pictures) == len(set(pictures)) == 7
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "| mean |" in markdown and "**nDCG@10 by task, test split**" in markdown


def test_the_report_says_where_a_system_loses(runs: Any) -> None:
    section = evaluation(runs["evaluation.json"], load_paper())
    text = " ".join(section.text)
    assert "cut is behind BM25 in nDCG@10 on 2 of 2 tasks: multifieldqa, qmsum." in text
    assert "both is behind BM25 in nDCG@10 on 0 of 2 tasks." in text
    lost = sum(each["systems"][1]["lengths"]["tokens_lost"] for each in runs["evaluation.json"]["tasks"])
    assert f"cut: read 42 of 42 documents in part, lost {lost} tokens" in section.tables[0].notes and lost > 42
    slow = json.loads(json.dumps(runs["time.json"]))
    for place, row in enumerate(slow["systems"][0]["rows"]):
        median = slow["systems"][1]["rows"][place]["median"] * (2 if place else 0.5)
        row |= {"median": median, "fastest": median, "slowest": median}
    (section, _) = build_sections({"time.json": slow})
    assert "slow is slower than quick at 40 tokens." in section.text


def test_the_paper_stands_beside_pools_of_its_size_only(runs: Any) -> None:
    section = evaluation(runs["evaluation.json"], load_paper())
    (beside,) = (table for table in section.tables if "table 13" in table.title)
    assert [row[0] for row in beside.rows] == ["multifieldqa"]
    assert (
        dict(zip([column.name for column in beside.columns], beside.rows[0], strict=True))["paper: M2-BERT-32k"]
        == "98.5"
    )
    assert "qmsum (12 queries, 12 documents; the paper has 272 and 272)" in section.text[-1]
    (lengths,) = (table for table in section.tables if "table 22" in table.title)
    assert "not comparable" in lengths.title and lengths.rows[-1] == ["M2-BERT-32k", "90.4", "93.1", "94.4", "86.1"]


def test_the_paper_s_numbers_are_those_of_its_tables() -> None:
    """Printed means of table 13 within rounding, except where the paper itself does not add up."""
    paper = load_paper()["loco"]
    assert set(paper["tasks"]) == set(LOCO_TASKS) and len(paper["tasks"]) == 12
    for name, system in paper["systems"].items():
        assert len(system["values"]) == 12
        off = abs(sum(system["values"]) / 12 - system["mean"])
        assert off < (1.05 if name == "BGE-Large fine-tuned" else 0.25), name
    needle, times = load_paper()["needle"], load_paper()["encode_time"]
    assert {len(values) for values in needle["systems"].values()} == {len(needle["positions"])}
    assert {len(each["seconds"]) for each in times["systems"].values()} == {len(times["lengths"])}


def test_figures_show_the_runs(runs: Any) -> None:
    paper = load_paper()
    figure = plots.needle(runs["needle.json"], paper["needle"])
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    cells = [cell for cell in runs["needle.json"]["systems"][0]["cells"] if cell["passages"] == 40]
    assert lines["cut"] == [cell["metrics"]["nDCG@10"] for cell in cells]
    assert lines["paper: M2-BERT-32k"][0] == pytest.approx(0.82)
    figure = plots.score_by_context(runs["evaluation.json"], paper["loco"])
    left, right = figure.axes
    assert len(left.lines) == len(paper["loco"]["systems"])
    means = runs["evaluation.json"]["means"]
    assert [line.get_ydata()[0] for line in right.lines] == [each["nDCG@10"] for each in means.values()]
    points = plots.clusters(runs["clusters.json"]).axes[0].collections
    assert sum(len(each.get_offsets()) for each in points) == 12
    times = plots.encode_time(runs["time.json"]).axes[0].lines[0]
    assert list(times.get_xdata()) == [20, 40]
    assert [text.get_text() for text in plots.lengths(runs["lengths.json"]).axes[0].get_yticklabels()] != []


def test_the_command_writes_and_refuses(runs: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    (tmp_path / "time.json").write_text(json.dumps(runs["time.json"]))

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m2bert", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            m2bert.cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    assert call(tmp_path / "time.json", "--output", tmp_path / "r.html")[:2] == (0, f"{tmp_path / 'r.html'}\n")
    assert "Time to encode one document" in (tmp_path / "r.html").read_text()
    code, _, err = call(tmp_path / "none.json", "--output", tmp_path / "r.html")
    assert code == 2 and "cannot read" in err
    code, _, err = call(tmp_path / "time.json", "--output", tmp_path / "no" / "r.html")
    assert code == 2 and "no such folder for --output" in err
    with pytest.raises(M2BertError, match="at least one run"):
        build_sections({})
