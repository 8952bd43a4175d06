"""What a report says of each kind of run: sections of text, tables and figures, before they become HTML or Markdown.

The paper's numbers come from paper.json, typed in with the number of their table. They stand beside ours only where
the data are the same; elsewhere the report says what differs.
Test: tests/bench/test_report.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from m2bert.bench import plots, tables
from m2bert.bench.tables import Table, columns
from m2bert.bench.tasks import LOCO_TASKS
from m2bert.errors import M2BertError

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A matplotlib figure, the name of its file, and what it shows."""

    name: str
    drawing: Any
    caption: str


@dataclass
class Section:
    """One run, or the provenance of all (foot)."""

    heading: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    foot: bool = False


def load_paper() -> dict[str, Any]:
    """The paper's numbers: {"loco", "buckets", "needle", "encode_time"}, each with the number of its table."""
    text = resources.files("m2bert.bench").joinpath("paper.json").read_text(encoding="utf-8")
    paper: dict[str, Any] = json.loads(text)
    return paper


def build_sections(runs: Mapping[str, Run]) -> list[Section]:
    """A section per run, by kind, and the provenance of all at the end. Raises M2BertError without any run."""
    if not runs:
        raise M2BertError("report: needs at least one run, got none; give files that --json wrote")
    plots.load_matplotlib()
    paper = load_paper()
    sections = []
    for kind, build in _BUILDERS.items():
        for number, (name, run) in enumerate((name, run) for name, run in runs.items() if run["kind"] == kind):
            section = build(run, paper)
            for place, figure in enumerate(section.figures):
                section.figures[place] = Figure(f"{kind}_{number + 1}_{figure.name}", figure.drawing, figure.caption)
            section.text.append(f"Run: {name}")
            sections.append(section)
    return [*sections, _provenance(runs)]


def evaluation(run: Run, paper: Mapping[str, Any]) -> Section:
    """Scores per task and over tasks, by length, against the paper where the pool is its own; figure 1."""
    metrics = run["settings"]["metrics"]
    section = Section(f"Retrieval: {len(run['tasks'])} tasks, {run['tasks'][0]['split']} split")
    section.text += _verdicts(run, list(run["means"]), metrics[0])
    section.tables += tables.evaluation(run)
    if run["buckets"]:
        section.tables.append(_paper_buckets(paper["buckets"]))
    section.text.append(_against_paper(run, section, paper["loco"], metrics))
    caption = (
        "Figure 1 of the paper, redrawn: mean score against the longest text read at once. The panels have other tasks."
    )
    if metrics[0] == paper["loco"]["metric"]:
        section.figures.append(Figure("context", plots.score_by_context(run, paper["loco"]), caption))
    if any(plots.mean_tokens(task) for task in run["tasks"]):
        caption = f"{metrics[0]} of every task against the mean length of its documents."
        section.figures.append(Figure("length", plots.score_by_length(run), caption))
    return section


def _paper_buckets(paper: Mapping[str, Any]) -> Table:
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in paper["systems"].items()]
    caption = f"the paper's {paper['table']}: {paper['metric']} × 100 over the twelve tasks of its own, not comparable"
    return Table(caption, columns("system", *paper["names"]), rows)


def _verdicts(run: Run, names: Sequence[str], metric: str) -> list[str]:
    """Where each system stands against the baseline, in words."""
    baseline, found = run["comparison"]["baseline"], []
    for place, name in enumerate(names):
        if baseline is None or name == baseline:
            continue
        other = names.index(baseline)
        pairs = [
            (task["task"], task["systems"][place]["metrics"][metric], task["systems"][other]["metrics"][metric])
            for task in run["tasks"]
        ]
        behind = [task for task, ours, theirs in pairs if ours < theirs]
        where = f": {', '.join(behind)}" if behind else ""
        found.append(f"{name} is behind {baseline} in {metric} on {len(behind)} of {len(pairs)} tasks{where}.")
    return found


def _against_paper(run: Run, section: Section, paper: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Add the paper's numbers for tasks of its name and size; say which tasks of its names are others."""
    metric = paper["metric"]
    named = [task for task in run["tasks"] if task["task"] in LOCO_TASKS]
    same = [
        task for task in named if (task["num_queries"], task["num_documents"]) == LOCO_TASKS[task["task"]].test_size
    ]
    other = [
        f"{task['task']} ({task['num_queries']} queries, {task['num_documents']} documents; the paper has "
        f"{LOCO_TASKS[task['task']].test_size[0]} and {LOCO_TASKS[task['task']].test_size[1]})"
        for task in named if task not in same
    ]  # fmt: skip
    if same and metric in metrics:
        names = list(run["means"])
        heads = columns("task", *names, *(f"paper: {name}" for name in paper["systems"]))
        rows = []
        for task in same:
            column = paper["tasks"].index(task["task"])
            cells = [f"{100 * system['metrics'][metric]:.1f}" for system in task["systems"]]
            cells += [f"{system['values'][column]:.1f}" for system in paper["systems"].values()]
            rows.append([task["task"], *cells])
        section.tables.append(
            Table(f"{metric} × 100 beside the paper's {paper['table']}, pools of equal size", heads, rows)
        )
    said = f"Tasks of the paper's name and size: {len(same)} of {len(run['tasks'])}."
    said += f" Of its name but with another pool, so not comparable: {'; '.join(other)}." if other else ""
    return f"{said} {paper['note']}"


def needle(run: Run, paper: Mapping[str, Any]) -> Section:
    """Means over places, and the curve; figure 2."""
    settings = run["settings"]
    lengths = settings["passages"]
    section = Section(f"Needle in a haystack: {lengths[-1]} passages")
    section.text.append(
        f"{settings['num_queries']} queries; corpus: {settings['corpus']}; distractors: {settings['distractors']} "
        f"(seed {settings['seed']}, {settings['num_distractors']:,} to draw from); separator {settings['separator']!r}."
    )
    section.tables += tables.needle(run)
    means = ", ".join(f"{name} {value}" for name, value in paper["needle"]["means"].items())
    section.text.append(f"The paper's means ({paper['needle']['table']}): {means}. {paper['needle']['note']}")
    caption = "Figure 2 of the paper, redrawn."
    if lengths[-1] == paper["needle"]["passages"]:
        caption += " Its own curves, in grey, are of other data and are here for their shape."
    section.figures.append(Figure("curve", plots.needle(run, paper["needle"]), caption))
    return section


def encode_time(run: Run, paper: Mapping[str, Any]) -> Section:
    """Seconds per document by length, and the paper's table 5."""
    systems = run["systems"]
    section = Section("Time to encode one document")
    for system in systems[1:]:
        pairs = zip(systems[0]["rows"], system["rows"], strict=True)
        slower = [f"{ours['tokens']:,}" for ours, theirs in pairs if ours["median"] > theirs["median"]]
        if slower:
            section.text.append(f"{systems[0]['name']} is slower than {system['name']} at {', '.join(slower)} tokens.")
    section.tables += tables.encode_time(run)
    theirs = paper["encode_time"]
    rows = [
        [name, f"{each['max_tokens']:,}", *(f"{x:.4g}" for x in each["seconds"])]
        for name, each in theirs["systems"].items()
    ]
    heads = columns("system", "reads", *(f"{length:,} tokens" for length in theirs["lengths"]))
    section.tables.append(
        Table(f"the paper's {theirs['table']}, seconds; not comparable: {theirs['note']}", heads, rows)
    )
    section.figures.append(Figure("curve", plots.encode_time(run), "Seconds for one document by its length."))
    return section


def clusters(run: Run, paper: Mapping[str, Any]) -> Section:
    """Silhouette and V-measure, and the t-SNE map; figure 3."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in run["settings"]["kinds"].items())
    section = Section("Clusters", [f"Texts: {kinds}."], tables.clusters(run))
    caption = "Figure 3 of the paper, redrawn with texts of our own: t-SNE of the embeddings."
    section.figures.append(Figure("map", plots.clusters(run), caption))
    return section


def lengths(run: Run, paper: Mapping[str, Any]) -> Section:
    """Lengths of documents and queries in characters and tokens; figure 5."""
    section = Section("Lengths of the texts", tables=tables.lengths(run))
    section.text.append("The paper's table 10 calls its lengths tokens; its code counts characters.")
    caption = "Figure 5 of the paper, redrawn: lengths of the documents of every task."
    section.figures.append(Figure("distribution", plots.lengths(run), caption))
    return section


def explanation(run: Run, paper: Mapping[str, Any]) -> Section:
    """The curves along one document: what its passages add to the whole, and how well neighbours match."""
    section = Section(f"Where {run['document']} answers")
    caption = (
        f"What each passage of {run['document']} adds to the cosine of its whole, {run['cosine']:.3f}; below, the "
        f"cosines of two neighbouring passages. Its score is {run['score']:.3f}."
    )
    section.figures.append(Figure("curve", plots.explanation(run), caption))
    return section


_BUILDERS: dict[str, Callable[[Run, Mapping[str, Any]], Section]] = {
    "evaluation": evaluation,
    "needle": needle,
    "encode_time": encode_time,
    "clusters": clusters,
    "lengths": lengths,
    "explanation": explanation,
}


def _provenance(runs: Mapping[str, Run]) -> Section:
    """Per run: when, where, with which versions, on which models and data."""
    rows = []
    for name, run in runs.items():
        machine = run["machine"]
        processor = f"{machine.get('model', machine['processor'])}, {machine['cpu_count']} processors"
        versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
        settings = json.dumps(run.get("settings", {}), ensure_ascii=False)
        made_of = "; ".join(tables.sources(run))
        rows.append([name, run["created"], f"{machine['system']}; {processor}", made_of, versions, settings])
    heads = columns("run", "created", "machine", "models and data", "versions", "settings", text=6)
    return Section("Where the numbers come from", tables=[Table("provenance", heads, rows)], foot=True)
