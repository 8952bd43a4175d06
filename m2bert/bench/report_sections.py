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

from m2bert.bench import plots
from m2bert.bench.tasks import LOCO_TASKS
from m2bert.errors import M2BertError

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A caption, the names of the columns, and rows of as many cells; the first column is text, others are numbers."""

    caption: str
    header: list[str]
    rows: list[list[str]]


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
    names = list(run["means"])
    section = Section(f"Retrieval: {len(run['tasks'])} tasks, {run['tasks'][0]['split']} split")
    section.text += _verdicts(run, names, metrics[0])
    header = ["task", "queries", "documents", "mean tokens", *names]
    rows = [
        [task["task"], str(task["num_queries"]), str(task["num_documents"]), f"{plots.mean_tokens(task) or 0:,.0f}"]
        + [f"{system['metrics'][metrics[0]]:.3f}" for system in task["systems"]]
        for task in run["tasks"]
    ]
    rows.append(["mean", "", "", "", *(f"{run['means'][name][metrics[0]]:.3f}" for name in names)])
    section.tables.append(Table(f"{metrics[0]} by task", header, rows))
    section.tables.append(_summary(run, names, metrics))
    if run["buckets"]:
        header = ["system", *(f"{each['name']} ({each['num_queries']} queries)" for each in run["buckets"])]
        rows = [[name, *(f"{each['means'][name][metrics[0]]:.3f}" for each in run["buckets"])] for name in names]
        section.tables.append(Table(f"{metrics[0]} by tokens of the longest relevant document", header, rows))
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
    return Table(caption, ["system", *paper["names"]], rows)


def _verdicts(run: Run, names: Sequence[str], metric: str) -> list[str]:
    """Where each system stands against the baseline, and what it did not read, in words."""
    baseline, found = run["comparison"]["baseline"], []
    for place, name in enumerate(names):
        systems = [task["systems"][place] for task in run["tasks"]]
        if baseline is not None and name != baseline:
            other = names.index(baseline)
            pairs = [
                (task["task"], each["metrics"][metric], task["systems"][other]["metrics"][metric])
                for task, each in zip(run["tasks"], systems, strict=True)
            ]
            behind = [task for task, ours, theirs in pairs if ours < theirs]
            where = f": {', '.join(behind)}" if behind else ""
            found.append(f"{name} is behind {baseline} in {metric} on {len(behind)} of {len(pairs)} tasks{where}.")
        lengths = [each["lengths"] for each in systems if each["lengths"]]
        lost = sum(each["num_truncated"] for each in lengths)
        if lost:
            documents = sum(task["num_documents"] for task in run["tasks"])
            found.append(f"{name} read {lost:,} of {documents:,} documents in part.")
    return found


def _summary(run: Run, names: Sequence[str], metrics: Sequence[str]) -> Table:
    baseline = run["comparison"]["baseline"]
    header = ["system", metrics[0], "95 % interval", *([f"minus {baseline}", "p"] if baseline else []), *metrics[1:]]
    rows = []
    for name in names:
        overall = run["comparison"]["overall"][name]
        main = overall[metrics[0]]
        row = [name, f"{main['mean']:.3f}", f"{main['low']:.3f} to {main['high']:.3f}"]
        if baseline:
            row += [f"{main['difference']:+.3f}", f"{main['p']:.4f}"] if main["p"] is not None else ["", ""]
        rows.append(row + [f"{overall[metric]['mean']:.3f}" for metric in metrics[1:]])
    return Table(f"mean over tasks; {run['comparison']['method']}", header, rows)


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
        header = ["task", *names, *(f"paper: {name}" for name in paper["systems"])]
        rows = []
        for task in same:
            column = paper["tasks"].index(task["task"])
            cells = [f"{100 * system['metrics'][metric]:.1f}" for system in task["systems"]]
            cells += [f"{system['values'][column]:.1f}" for system in paper["systems"].values()]
            rows.append([task["task"], *cells])
        section.tables.append(
            Table(f"{metric} × 100 beside the paper's {paper['table']}, pools of equal size", header, rows)
        )
    said = f"Tasks of the paper's name and size: {len(same)} of {len(run['tasks'])}."
    said += f" Of its name but with another pool, so not comparable: {'; '.join(other)}." if other else ""
    return f"{said} {paper['note']}"


def needle(run: Run, paper: Mapping[str, Any]) -> Section:
    """Means over places, and the curve; figure 2."""
    settings = run["settings"]
    metric, lengths = settings["metrics"][0], settings["passages"]
    section = Section(f"Needle in a haystack: {lengths[-1]} passages")
    section.text.append(
        f"{settings['num_queries']} queries; corpus: {settings['corpus']}; distractors: {settings['distractors']} "
        f"(seed {settings['seed']}, {settings['num_distractors']:,} to draw from); separator {settings['separator']!r}."
    )
    rows = []
    for system in run["systems"]:
        for length in lengths:
            average = system["averages"][str(length)]
            cells = [cell for cell in system["cells"] if cell["passages"] == length]
            tokens = f"{cells[0]['tokens']:,.0f}" if cells[0]["tokens"] is not None else "-"
            ends = [f"{cells[place]['metrics'][metric]:.3f}" for place in (0, len(cells) // 2, -1)]
            interval = f"{average['low']:.3f} to {average['high']:.3f}"
            row = [str(length), tokens, str(cells[0]["truncated"]), f"{average['mean']:.3f}", interval, *ends]
            rows.append([system["name"], *row])
    header = [
        "system",
        "passages",
        "tokens",
        "read in part",
        "mean over places",
        "95 % interval",
        "first",
        "middle",
        "last",
    ]
    section.tables.append(Table(f"{metric} by place of the needle", header, rows))
    means = ", ".join(f"{name} {value}" for name, value in paper["needle"]["means"].items())
    section.text.append(f"The paper's means ({paper['needle']['table']}): {means}. {paper['needle']['note']}")
    caption = "Figure 2 of the paper, redrawn."
    if lengths[-1] == paper["needle"]["passages"]:
        caption += " Its own curves, in grey, are of other data and are here for their shape."
    section.figures.append(Figure("curve", plots.needle(run, paper["needle"]), caption))
    return section


def encode_time(run: Run, paper: Mapping[str, Any]) -> Section:
    """Seconds per document by length, and the paper's table 5."""
    systems, settings = run["systems"], run["settings"]
    section = Section("Time to encode one document")
    padding = "; ".join(f"{each['name']} on {each['device']}, padded {each['padding']}" for each in systems)
    section.text.append(f"{settings['time']}; {settings['repeats']} rounds, {settings['threads']} threads. {padding}.")
    for system in systems[1:]:
        pairs = zip(systems[0]["rows"], system["rows"], strict=True)
        slower = [f"{ours['tokens']:,}" for ours, theirs in pairs if ours["median"] > theirs["median"]]
        if slower:
            section.text.append(f"{systems[0]['name']} is slower than {system['name']} at {', '.join(slower)} tokens.")
    header = ["tokens", *(f"{each['name']} (reads {each['max_tokens']:,})" for each in systems)]
    table = []
    for place, length in enumerate(settings["lengths"]):
        times = [each["rows"][place] for each in systems]
        table.append([f"{length:,}", *(f"{row['median']:.4f} ({row['pieces']} pieces)" for row in times)])
    section.tables.append(Table("seconds, median", header, table))
    theirs = paper["encode_time"]
    rows = [
        [name, f"{each['max_tokens']:,}", *(f"{x:.4g}" for x in each["seconds"])]
        for name, each in theirs["systems"].items()
    ]
    header = ["system", "reads", *(f"{length:,} tokens" for length in theirs["lengths"])]
    section.tables.append(
        Table(f"the paper's {theirs['table']}, seconds; not comparable: {theirs['note']}", header, rows)
    )
    section.figures.append(Figure("curve", plots.encode_time(run), "Seconds for one document by its length."))
    return section


def clusters(run: Run, paper: Mapping[str, Any]) -> Section:
    """Silhouette and V-measure, and the t-SNE map; figure 3."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in run["settings"]["kinds"].items())
    section = Section("Clusters", [f"Texts: {kinds}. Both measures are of the embeddings, not of the map."])
    rows = [[each["name"], f"{each['silhouette']:.3f}", f"{each['v_measure']:.3f}"] for each in run["systems"]]
    section.tables.append(Table("kinds of text", ["system", "silhouette (cosine)", "V-measure of k-means"], rows))
    caption = "Figure 3 of the paper, redrawn with texts of our own: t-SNE of the embeddings."
    section.figures.append(Figure("map", plots.clusters(run), caption))
    return section


def lengths(run: Run, paper: Mapping[str, Any]) -> Section:
    """Lengths of documents and queries in characters and tokens; figure 5."""
    section = Section("Lengths of the texts")
    rows = []
    for task in run["tasks"]:
        for kind in ("documents", "queries"):
            for unit, each in task[kind].items():
                middle = f"{each['percentiles'][2]:,.0f}"
                row = [kind, unit, f"{each['count']:,}", f"{each['mean']:,.0f}", middle, f"{each['largest']:,}"]
                info = LOCO_TASKS.get(task["task"])
                theirs = (info.mean_document_chars if kind == "documents" else info.mean_query_chars) if info else 0
                row.append(f"{theirs:,}" if theirs and unit == "characters" else "")
                rows.append([task["task"], *row])
    header = ["task", "text", "unit", "count", "mean", "median", "largest", "paper's table 10 (mean)"]
    section.tables.append(Table(f"tokenizer: {run['settings']['tokenizer'] or 'none'}", header, rows))
    section.text.append("The paper's table 10 calls its lengths tokens; its code counts characters.")
    caption = "Figure 5 of the paper, redrawn: lengths of the documents of every task."
    section.figures.append(Figure("distribution", plots.lengths(run), caption))
    return section


def explanation(run: Run, paper: Mapping[str, Any]) -> Section:
    """The curve of contributions along one document."""
    section = Section(f"Where {run['document']} answers")
    caption = f"What each passage of {run['document']} contributes to its score of {run['score']:.3f}."
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
        rows.append([name, run["created"], f"{machine['system']}; {processor}", _fingerprints(run), versions, settings])
    header = ["run", "created", "machine", "models and data", "versions", "settings"]
    return Section("Where the numbers come from", tables=[Table("provenance", header, rows)], foot=True)


def _fingerprints(run: Run) -> str:
    systems = run.get("systems") or (run["tasks"][0].get("systems", []) if run.get("tasks") else [run])
    models = [
        f"{each.get('name', each.get('model'))}: {each['fingerprint']}" for each in systems if "fingerprint" in each
    ]
    data = [f"{task['task']} {task['data_fingerprint']}" for task in run.get("tasks", [])]
    data += [run["data_fingerprint"]] if "data_fingerprint" in run else []
    return "; ".join(models) + (f"; data: {', '.join(data)}" if data else "")
