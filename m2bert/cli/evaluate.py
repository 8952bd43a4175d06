"""The command `m2bert evaluate loco`: retrieval scores of models, BM25 and fusions of them side by side.

Test: tests/cli/test_cli_evaluate.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli import mixture, studies
from m2bert.cli.models import Running, open_systems
from m2bert.cli.options import (
    BatchTokens,
    Bm25,
    Cache,
    Chunks,
    Data,
    Device,
    Metrics,
    Models,
    NoCache,
    Overflow,
    Quiet,
    Ranks,
    RunJson,
    RunJsonCommand,
    Split,
    Tasks,
    Threads,
    split_list,
)
from m2bert.cli.output import check_files, deliver_run
from m2bert.cli.progress import staged
from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.bench.systems import Fusion, System


def register(app: typer.Typer) -> None:
    """Add the command group `evaluate`, with those of m2bert/cli/studies.py and mixture.py."""
    group = typer.Typer(no_args_is_help=True, help="Score retrieval on benchmark tasks.")
    group.callback()(_group)
    group.command("loco", cls=RunJsonCommand)(loco)
    studies.register(group)
    mixture.register(group)
    app.add_typer(group, name="evaluate")


def _group() -> None:
    """Score retrieval on benchmark tasks."""


def loco(
    data: Data,
    tasks: Tasks = "all",
    model: Models = None,
    split: Split = "test",
    overflow: Overflow = "window",
    metrics: Metrics = "nDCG@10,R@10",
    bm25: Bm25 = True,
    rank: Ranks = "all",
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Score what ranks by vectors alone also fused with BM25.")
    ] = False,
    fusion: Annotated[
        str, typer.Option(help="How --hybrid fuses: by scores, ranks (reciprocal rank fusion), or both, with a comma.")
    ] = "scores",
    baseline: Annotated[
        str | None, typer.Option(help="The system that the others are tested against. Default: BM25.")
    ] = None,
    chunks: Chunks = "none",
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json_to: RunJson = None,
    quiet: Quiet = False,
) -> None:
    """Score models and BM25 on LoCoV1 tasks, or on your own in the same columns."""
    from m2bert.bench.evaluate import check_names, evaluate_tasks, load_tasks
    from m2bert.bench.systems import BM25System
    from m2bert.bench.tasks import choose_tasks
    from m2bert.files import cache_folder
    from m2bert.ranking.metrics import largest_cutoff, load_trec_eval

    names, measures, ways = split_list(tasks), split_list(metrics), split_list(fusion)
    # What can be wrong is checked before a model is loaded; the work may take an hour.
    choose_tasks(names, data, split)
    largest_cutoff(measures)
    load_trec_eval()
    check_files(json_to, None, "evaluate")
    if hybrid and not bm25:
        raise M2BertError("evaluate: --hybrid fuses with BM25; leave out --no-bm25")
    _check_ways(ways)
    lexical: list[System] = [BM25System()] if bm25 else []
    folder = None if no_cache else cache or cache_folder("embeddings")
    running = Running(device, batch_tokens, threads)
    encoders = open_systems(model, overflow, split_list(chunks), folder, running, split_list(rank))
    systems: list[System] = [*encoders, *lexical]
    fusions = [_with_bm25(system, by) for system in encoders if not _has_words(system) for by in ways if hybrid]
    known = [system.name for system in systems] + [fusion.name for fusion in fusions]
    baseline = _baseline(baseline, known)
    check_names([system.name for system in systems], fusions, baseline)
    with staged() as on_progress:
        loaded = load_tasks(data, names, split, on_progress)
        report = evaluate_tasks(
            loaded, systems, fusions=fusions, metrics=measures, baseline=baseline, on_progress=on_progress
        )
    deliver_run(report.to_dict(), json_to, who="evaluate")


def _check_ways(ways: list[str]) -> None:
    from m2bert.bench.systems import FUSIONS

    unknown = [way for way in ways if way not in FUSIONS]
    if unknown or not ways:
        raise M2BertError(f"evaluate: --fusion must be of {', '.join(FUSIONS)}, got {', '.join(unknown) or 'none'}")


def _has_words(system: System) -> bool:
    from m2bert.bench.mixtures import MixedSystem

    return isinstance(system, MixedSystem) and system.mixture.words > 0


def _with_bm25(system: System, by: str) -> Fusion:
    from m2bert.bench.systems import FUSIONS, BM25System, Fusion

    return Fusion(f"{system.name} + {BM25System.name}{FUSIONS[by]}", (system.name, BM25System.name), by=by)


def _baseline(wanted: str | None, known: list[str]) -> str | None:
    """The system's name as it is written in the tables, whatever the case it was given in; BM25 if it is there."""
    if wanted is None:
        return "BM25" if "BM25" in known and len(known) > 1 else None
    return next((name for name in known if name.lower() == wanted.lower()), wanted)
