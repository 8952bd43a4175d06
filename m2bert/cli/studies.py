"""The commands beside `m2bert evaluate loco`: needle in a haystack, encode times, clusters.

Test: tests/cli/test_cli_studies.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from m2bert.cli.options import Cache, Chunks, JsonFile, Models, NoCache, Overflow, Plot, _numbers, check_files
from m2bert.cli.progress import announced, staged
from m2bert.cli.tables import stdout_console

if TYPE_CHECKING:
    from m2bert.bench.encode_time import TimeReport
    from m2bert.bench.needle import NeedleReport
    from m2bert.bench.systems import System


def register(group: typer.Typer) -> None:
    """Add the studies to the command group `evaluate`."""
    group.command("needle")(needle)
    group.command("encode-time")(encode_time)
    group.command("clusters")(clusters)


def needle(
    needles: Annotated[
        Path,
        typer.Option(help="Queries with their passages: pairs in JSON lines, or a split's folder in LoCoV1's columns."),
    ],
    distractors: Annotated[
        list[Path] | None, typer.Option(help="JSON lines of more passages to hide them among; may be repeated.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Take only needles with this in their column `dataset`.")] = None,
    model: Models = None,
    queries: Annotated[int, typer.Option(help="How many queries to draw.")] = 100,
    passages: Annotated[str, typer.Option(help="Passages in a document; several lengths joined by commas.")] = "40",
    positions: Annotated[int, typer.Option(help="Most places of the needle, spread over the document.")] = 40,
    metrics: Annotated[str, typer.Option(help="Any of nDCG@k, R@k, RR@k; the first is drawn.")] = "nDCG@10,RR@10",
    seed: Annotated[int, typer.Option(help="Draws the queries and the distractors.")] = 0,
    bm25: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Score BM25 beside the models.")] = True,
    overflow: Overflow = "window",
    chunks: Chunks = "none",
    cache: Cache = None,
    no_cache: NoCache = False,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Hide a passage at every place of a long document, and see whether its query still finds the document."""
    from m2bert.bench.needle import haystack, read_needles, run_needle
    from m2bert.cli.options import split_list
    from m2bert.ranking.metrics import largest_cutoff, load_trec_eval

    check_files(json_file, plot, "needle")
    lengths, measures = _numbers(passages, "--passages"), split_list(metrics)
    largest_cutoff(measures)
    load_trec_eval()
    found = read_needles(needles, distractors or (), dataset=dataset, num_queries=queries, seed=seed)
    haystack(found, max(lengths), 0)
    systems = _open(model, overflow, chunks, cache, no_cache, bm25)
    with staged() as on_progress:
        report = run_needle(
            found, systems, passages=lengths, positions=positions, metrics=measures, seed=seed, on_progress=on_progress
        )
    stdout_console().print(_needle_table(report))
    _save(report.to_dict(), json_file, plot, "needle")


def _needle_table(report: NeedleReport) -> Table:
    """One row per system and length: the mean over places with its interval, and the first metric along them."""
    metric = report.settings["metrics"][0]
    title = f"{metric}, {report.settings['num_queries']} queries; a place is a quarter of the document"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=title)
    table.add_column("system", overflow="fold", min_width=6)
    columns = ("passages", "tokens", "read in part", "mean", "95 % interval", "first", "1/4", "1/2", "3/4", "last")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for system in report.systems:
        for count, average in system.averages.items():
            cells = [cell for cell in system.cells if cell.passages == count]
            tokens = [cell.tokens for cell in cells if cell.tokens is not None]
            quarters = [cells[round(part * (len(cells) - 1))].metrics[metric] for part in (0, 0.25, 0.5, 0.75, 1)]
            row = [str(count), f"{sum(tokens) / len(tokens):,.0f}" if tokens else "-", str(cells[0].truncated)]
            row += [f"{average.mean:.3f}", f"{average.low:.3f} to {average.high:.3f}"]
            table.add_row(system.name, *row, *(f"{value:.3f}" for value in quarters))
    return table


def encode_time(
    model: Models = None,
    lengths: Annotated[str, typer.Option(help="Tokens of the document, joined by commas.")] = "128,512,2048,8192,32768",
    repeats: Annotated[int, typer.Option(help="Rounds that are timed, after one that is not.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. [default: as torch chooses]")] = None,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Time the encoding of one document by its length, for several models in turn."""
    from m2bert.bench.encode_time import run_encode_time
    from m2bert.cli.options import load_encoder

    check_files(json_file, plot, "encode-time")
    wanted = _numbers(lengths, "--lengths")
    if threads is not None:
        import torch

        torch.set_num_threads(_numbers(str(threads), "--threads")[0])
    encoders = []
    for each in model or ["m2-bert-mini"]:
        with announced(f"loading the model {each}"):
            encoders.append(load_encoder(each, "window"))
    with staged() as on_progress:
        report = run_encode_time(encoders, lengths=wanted, repeats=repeats, on_progress=on_progress)
    stdout_console().print(_time_table(report))
    for system in report.systems:
        print(f"{system.name}: {system.fingerprint}, {system.device}, padded {system.padding}")
    print(f"{report.settings['time']}; {report.settings['threads']} threads")
    _save(report.to_dict(), json_file, plot, "encode_time")


def _time_table(report: TimeReport) -> Table:
    """One row per length: the median of every encoder in seconds, and how many times as long as the first it takes."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title="seconds for one document, median")
    table.add_column("tokens", justify="right")
    for system in report.systems:
        table.add_column(f"{system.name}\nreads {system.max_tokens:,}", justify="right", overflow="fold")
        table.add_column("pieces", justify="right", no_wrap=True)
    first = report.systems[0]
    for place, tokens in enumerate(report.settings["lengths"]):
        cells = [f"{tokens:,}"]
        for system in report.systems:
            row = system.rows[place]
            ratio = f" ({row.median / first.rows[place].median:.2f}×)" if system is not first else ""
            cells += [f"{row.median:.4f}{ratio}", str(row.pieces)]
        table.add_row(*cells)
    return table


def clusters(
    texts: Annotated[list[Path], typer.Argument(help="JSON lines of texts; the kind is `source` or `dataset`.")],
    model: Models = None,
    per_kind: Annotated[int, typer.Option(help="Most texts to draw of each kind.")] = 100,
    seed: Annotated[int, typer.Option(help="Draws the texts, and begins k-means and t-SNE.")] = 0,
    overflow: Overflow = "window",
    cache: Cache = None,
    no_cache: NoCache = False,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Measure and map whether texts of one kind lie together."""
    from m2bert.bench.clusters import load_sklearn, read_kinds, run_clusters

    check_files(json_file, plot, "clusters")
    load_sklearn()
    kinds = read_kinds(texts, per_kind, seed)
    systems = _open(model, overflow, "none", cache, no_cache, bm25=False)
    with staged() as on_progress:
        encoders = [system.encoder for system in systems if hasattr(system, "encoder")]
        run = run_clusters(kinds, encoders, seed=seed, on_progress=on_progress)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=f"{sum(map(len, kinds.values()))} texts of {len(kinds)} kinds")
    for column in ("system", "silhouette", "V-measure"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for each in run["systems"]:
        table.add_row(each["name"], f"{each['silhouette']:.3f}", f"{each['v_measure']:.3f}")
    stdout_console().print(table)
    _save(run, json_file, plot, "clusters")


def _open(
    model: list[str] | None, overflow: str, chunks: str, cache: Path | None, no_cache: bool, bm25: bool
) -> list[System]:
    """The models' systems, and BM25 behind them."""
    from m2bert.bench.systems import BM25System
    from m2bert.cli.options import open_systems, split_list
    from m2bert.files import cache_folder

    folder = None if no_cache else cache or cache_folder("embeddings")
    lexical: list[System] = [BM25System()] if bm25 else []
    return [*open_systems(model or ["m2-bert-mini"], overflow, split_list(chunks), folder), *lexical]


def _save(run: dict[str, object], json_file: Path | None, plot: Path | None, kind: str) -> None:
    """Write the run, and its figure from what a reader of the file would see."""
    import json

    from m2bert.bench import plots
    from m2bert.bench.runs import save_run

    if json_file is not None:
        save_run(json_file, run, who=kind)
    if plot is not None:
        plots.save(getattr(plots, kind)(json.loads(json.dumps(run))), plot)
