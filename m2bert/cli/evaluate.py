"""The command `m2bert evaluate loco`: retrieval scores of models, BM25 and mixtures side by side.

Test: tests/cli/test_cli_evaluate.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.options import open_systems, split_list
from m2bert.cli.progress import staged
from m2bert.cli.tables import print_report
from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.bench.systems import Fusion, System


def register(app: typer.Typer) -> None:
    """Add the command group `evaluate`, with the studies of m2bert/cli/studies.py."""
    from m2bert.cli import studies

    group = typer.Typer(no_args_is_help=True, help="Score retrieval on benchmark tasks.")
    group.callback()(_group)
    group.command("loco")(loco)
    studies.register(group)
    app.add_typer(group, name="evaluate")


def _group() -> None:
    """Score retrieval on benchmark tasks."""


def loco(
    data: Annotated[Path, typer.Option(help="Folder of tasks in LoCoV1's columns.")],
    tasks: Annotated[str, typer.Option(help="Task names joined by commas, or all.")] = "all",
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model's name or folder, or NAME=FOLDER; may be repeated. [default: m2-bert-mini]"),
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    overflow: Annotated[
        str, typer.Option(help="Documents longer than the model: window, truncate or error.")
    ] = "window",
    metrics: Annotated[str, typer.Option(help="Any of nDCG@k, R@k, RR@k, joined by commas.")] = "nDCG@10,R@10",
    bm25: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Score BM25 beside the models.")] = True,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Score each model fused with BM25.")] = False,
    fusion: Annotated[
        str, typer.Option(help="How --hybrid fuses: by scores, ranks (reciprocal rank fusion), or both, with a comma.")
    ] = "scores",
    baseline: Annotated[
        str | None, typer.Option(help="The system that the others are tested against. [default: BM25]")
    ] = None,
    chunks: Annotated[
        str, typer.Option(help="SentenceTransformers on long documents: none (cut), mean, max; joined by commas.")
    ] = "none",
    cache: Annotated[
        Path | None, typer.Option(help="Folder of cached embeddings. [default: in the user's cache folder]")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep embeddings.")] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the report, with the values per query, to this file."),
    ] = None,
) -> None:
    """Score models and BM25 on LoCoV1 tasks, or on your own in the same columns."""
    from m2bert.bench.evaluate import check_names, evaluate_tasks, load_tasks
    from m2bert.bench.systems import BM25System
    from m2bert.bench.tasks import choose_tasks
    from m2bert.files import cache_folder, check_output
    from m2bert.ranking.metrics import largest_cutoff, load_trec_eval

    names, measures, ways = split_list(tasks), split_list(metrics), split_list(fusion)
    # What can be wrong is checked before a model is loaded; the work may take an hour.
    choose_tasks(names, data, split)
    largest_cutoff(measures)
    load_trec_eval()
    check_output(json_file, who="evaluate")
    if hybrid and not bm25:
        raise M2BertError("evaluate: --hybrid fuses with BM25; leave out --no-bm25")
    check_ways(ways)
    lexical: list[System] = [BM25System()] if bm25 else []
    folder = None if no_cache else cache or cache_folder("embeddings")
    encoders = open_systems(model or ["m2-bert-mini"], overflow, split_list(chunks), folder)
    systems: list[System] = [*encoders, *lexical]
    fusions = [_with_bm25(system, by) for system in encoders for by in ways] if hybrid else []
    known = [system.name for system in systems] + [fusion.name for fusion in fusions]
    baseline = _baseline(baseline, known)
    check_names([system.name for system in systems], fusions, baseline)
    with staged() as on_progress:
        loaded = load_tasks(data, names, split, on_progress)
        report = evaluate_tasks(
            loaded, systems, fusions=fusions, metrics=measures, baseline=baseline, on_progress=on_progress
        )
    print_report(report)
    if json_file is not None:
        report.save(json_file)


def check_ways(ways: list[str]) -> None:
    """Raise M2BertError unless all are ways to fuse rankings."""
    from m2bert.bench.systems import FUSIONS

    unknown = [way for way in ways if way not in FUSIONS]
    if unknown or not ways:
        raise M2BertError(f"evaluate: --fusion must be of {', '.join(FUSIONS)}, got {', '.join(unknown) or 'none'}")


def _with_bm25(system: System, by: str) -> Fusion:
    from m2bert.bench.systems import FUSIONS, BM25System, Fusion

    return Fusion(f"{system.name} + {BM25System.name}{FUSIONS[by]}", (system.name, BM25System.name), by=by)


def _baseline(wanted: str | None, known: list[str]) -> str | None:
    """The system's name as it is written in the tables, whatever the case it was given in; BM25 if it is there."""
    if wanted is None:
        return "BM25" if "BM25" in known and len(known) > 1 else None
    return next((name for name in known if name.lower() == wanted.lower()), wanted)
