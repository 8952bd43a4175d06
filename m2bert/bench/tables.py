"""The tables of a run, made once for the screen, for Markdown and for HTML.

    run (plain data, m2bert.bench.runs) -> Table -> screen (m2bert.cli.output) | Markdown, HTML (m2bert.bench.report)

Test: tests/bench/test_tables.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2bert.bench.tasks import LOCO_TASKS

Run = Mapping[str, Any]
SOFT_HYPHEN = "\u00ad"
# With more columns of values than these the table of tasks shows the first metric only; the summary has them all.
MOST_VALUE_COLUMNS = 4


@dataclass(frozen=True)
class Column:
    """A column's name; numbers stand to the right, text to the left.

    name: a line end is where a narrow screen breaks it, a soft hyphen before one stands within a word.
    """

    name: str
    numeric: bool = True

    @property
    def heading(self) -> str:
        """The name on one line."""
        return self.name.replace(f"{SOFT_HYPHEN}\n", "").replace("\n", " ")

    @property
    def on_screen(self) -> str:
        """The name on its lines."""
        return self.name.replace(SOFT_HYPHEN, "-")


@dataclass(frozen=True)
class Table:
    """A title, columns, rows of as many cells, a row of means under them (or none), and notes for beneath."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def all_rows(self) -> list[Sequence[str]]:
        """The rows with the foot, if there is one."""
        return [*self.rows, self.foot] if self.foot else [*self.rows]


def columns(*names: str, text: int = 1) -> list[Column]:
    """Columns of these names; the first `text` of them hold text."""
    return [Column(name, numeric=place >= text) for place, name in enumerate(names)]


def tables_of(run: Run) -> list[Table]:
    """The tables of a run, by its kind; none for an explanation, which is a curve."""
    build = _BUILDERS.get(run["kind"])
    return [] if build is None else build(run)


def sources(run: Run) -> list[str]:
    """What the numbers come from: every system's name and fingerprint, and the data's."""
    systems = run.get("systems") or (run["tasks"][0].get("systems", []) if run.get("tasks") else [run])
    lines = [
        f"{each.get('name', each.get('model'))}: {each['fingerprint']}" for each in systems if "fingerprint" in each
    ]
    data = [f"{task['task']} {task['data_fingerprint']}" for task in run.get("tasks", [])]
    data += [run["data_fingerprint"]] if "data_fingerprint" in run else []
    return [*lines, f"data: {', '.join(data)}"] if data else lines


def evaluation(run: Run) -> list[Table]:
    """Scores by task, means over tasks with what is sure of them, and scores by the length of the answer."""
    found = [_by_task(run), _summary(run)]
    return [*found, _by_length(run)] if run["buckets"] else found


def _by_task(run: Run) -> Table:
    """One row per task: its size, the lengths of its documents, and the scores of every system."""
    names, measures = list(run["means"]), run["settings"]["metrics"]
    if len(measures) * len(names) > MOST_VALUE_COLUMNS:
        measures = measures[:1]
    heads = [f"{measure}\n{name}" if len(measures) > 1 else name for measure in measures for name in names]
    rows = []
    for task in run["tasks"]:
        values = [f"{system['metrics'][measure]:.3f}" for measure in measures for system in task["systems"]]
        rows.append([task["task"], str(task["num_queries"]), str(task["num_documents"]), *_lengths(task), *values])
    means = [f"{run['means'][name][measure]:.3f}" for measure in measures for name in names]
    return Table(
        f"{' and '.join(measures)} by task, {run['tasks'][0]['split']} split",
        columns(
            "task", "queries", f"docu{SOFT_HYPHEN}\nments", "mean\ntokens", "max\ntokens", f"win{SOFT_HYPHEN}\ndowed",
            f"trun{SOFT_HYPHEN}\ncated", *heads,
        ),
        rows,
        ["mean", *[""] * 6, *means] if len(rows) > 1 else (),
        [*_left_out(run), *_read_in_part(run), f"ties: {run['settings']['tie_rule']}"],
    )  # fmt: skip


def _lengths(task: Mapping[str, Any]) -> list[str]:
    """Mean and largest tokens, documents in windows and cut ones, as the first system says that counts tokens."""
    found = next((system["lengths"] for system in task["systems"] if system["lengths"]), None)
    if found is None:
        return ["-"] * 4
    return [f"{found[name]:,.0f}" for name in ("mean_tokens", "max_tokens", "num_windowed", "num_truncated")]


def _left_out(run: Run) -> Iterator[str]:
    for task in run["tasks"]:
        documents, queries = task["num_dropped_documents"], task["num_dropped_queries"]
        if documents or queries:
            yield (
                f"{task['task']}: left out {documents} documents without text and {queries} queries that only "
                "they answer"
            )


def _read_in_part(run: Run) -> Iterator[str]:
    documents = sum(task["num_documents"] for task in run["tasks"])
    for place, name in enumerate(run["means"]):
        lengths = [each for task in run["tasks"] if (each := task["systems"][place]["lengths"])]
        truncated, lost = (sum(each[key] for each in lengths) for key in ("num_truncated", "tokens_lost"))
        if truncated:
            yield f"{name}: read {truncated:,} of {documents:,} documents in part, lost {lost:,} tokens"


def _summary(run: Run) -> Table:
    """One row per system: the first metric with its interval and the test against the baseline, then the others."""
    first, *others = run["settings"]["metrics"]
    comparison, baseline = run["comparison"], run["comparison"]["baseline"]
    against = [f"minus\n{baseline}", "p"] if baseline else []
    rows = []
    for name in run["means"]:
        overall = comparison["overall"][name]
        main = overall[first]
        row = [name, f"{main['mean']:.3f}", f"{main['low']:.3f} to {main['high']:.3f}"]
        if baseline:
            row += [f"{main['difference']:+.3f}", f"{main['p']:.4f}"] if main["p"] is not None else ["", ""]
        rows.append(row + [f"{overall[metric]['mean']:.3f}" for metric in others])
    title = "mean over tasks" if len(run["tasks"]) > 1 else run["tasks"][0]["task"]
    return Table(
        title, columns("system", first, "95 % interval", *against, *others), rows, notes=[comparison["method"]]
    )


def _by_length(run: Run) -> Table:
    """The first metric by the length of the answer, over the queries of all tasks together."""
    metric, buckets = run["settings"]["metrics"][0], run["buckets"]
    heads = [f"{each['name']}\n({each['num_queries']} queries)" for each in buckets]
    rows = [[name, *(f"{each['means'][name][metric]:.3f}" for each in buckets)] for name in run["means"]]
    return Table(f"{metric} by tokens of the longest relevant document", columns("system", *heads), rows)


def needle(run: Run) -> list[Table]:
    """One row per system and length: the mean over places with its interval, and the first metric along them."""
    metric = run["settings"]["metrics"][0]
    rows = []
    for system in run["systems"]:
        for count in run["settings"]["passages"]:
            average = system["averages"][str(count)]
            cells = [cell for cell in system["cells"] if cell["passages"] == count]
            tokens = [cell["tokens"] for cell in cells if cell["tokens"] is not None]
            along = [cells[round(part * (len(cells) - 1))]["metrics"][metric] for part in (0, 0.25, 0.5, 0.75, 1)]
            row = [str(count), f"{sum(tokens) / len(tokens):,.0f}" if tokens else "-", str(cells[0]["truncated"])]
            row += [f"{average['mean']:.3f}", f"{average['low']:.3f} to {average['high']:.3f}"]
            rows.append([system["name"], *row, *(f"{value:.3f}" for value in along)])
    heads = ["system", "passages", "tokens", "read\nin part", "mean over\nplaces", "95 % interval"]
    heads += ["first", "1/4", "middle", "3/4", "last"]
    title = f"{metric} by place of the needle, {run['settings']['num_queries']} queries"
    notes = ["1/4, middle, 3/4: how far into the document the needle stands"]
    return [Table(title, columns(*heads), rows, notes=notes)]


def encode_time(run: Run) -> list[Table]:
    """One row per length: the median of every encoder in seconds, and how many times as long as the first it takes."""
    systems, settings = run["systems"], run["settings"]
    heads = [name for each in systems for name in (f"{each['name']}\n(reads {each['max_tokens']:,})", "pieces")]
    rows = []
    for place, tokens in enumerate(settings["lengths"]):
        row = [f"{tokens:,}"]
        for number, system in enumerate(systems):
            here = system["rows"][place]
            ratio = f" ({here['median'] / systems[0]['rows'][place]['median']:.2f}×)" if number else ""
            row += [f"{here['median']:.4f}{ratio}", str(here["pieces"])]
        rows.append(row)
    notes = [f"{settings['time']}; {settings['repeats']} rounds, {settings['threads']} threads"]
    notes += [f"{each['name']} on {each['device']}, padded {each['padding']}" for each in systems]
    return [Table("seconds for one document, median", columns("tokens", *heads, text=0), rows, notes=notes)]


def clusters(run: Run) -> list[Table]:
    """One row per encoder: silhouette and V-measure."""
    rows = [[each["name"], f"{each['silhouette']:.3f}", f"{each['v_measure']:.3f}"] for each in run["systems"]]
    kinds = run["settings"]["kinds"]
    heads = columns("system", "silhouette\n(cosine)", "V-measure\nof k-means")
    note = "both measures are of the embeddings, not of the map"
    return [Table(f"{sum(kinds.values())} texts of {len(kinds)} kinds", heads, rows, notes=[note])]


def lengths(run: Run) -> list[Table]:
    """One row per task, kind of text and unit: number, mean, median and largest, beside the paper's mean."""
    known = any(task["task"] in LOCO_TASKS for task in run["tasks"])
    rows = []
    for task in run["tasks"]:
        info = LOCO_TASKS.get(task["task"])
        for kind in ("documents", "queries"):
            for unit, each in task[kind].items():
                row = [task["task"], kind, unit, f"{each['count']:,}", f"{each['mean']:,.0f}"]
                row += [f"{each['percentiles'][2]:,.0f}", f"{each['largest']:,}"]
                theirs = (info.mean_document_chars if kind == "documents" else info.mean_query_chars) if info else 0
                row += [f"{theirs:,}" if theirs and unit == "characters" else ""] if known else []
                rows.append(row)
    heads = ["task", "text", "unit", "count", "mean", "median", "largest"]
    heads += ["paper's table 10\n(mean)"] if known else []
    return [Table(f"lengths; tokenizer: {run['settings']['tokenizer'] or 'none'}", columns(*heads, text=3), rows)]


_BUILDERS: dict[str, Callable[[Run], list[Table]]] = {
    "evaluation": evaluation,
    "needle": needle,
    "encode_time": encode_time,
    "clusters": clusters,
    "lengths": lengths,
}
