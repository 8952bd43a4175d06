"""The commands beside `m2bert evaluate loco`: needle in a haystack, encode times, clusters.

Test: tests/cli/test_cli_studies.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.models import Running, default_models, open_systems
from m2bert.cli.options import (
    BatchTokens,
    Bm25,
    Cache,
    Chunks,
    Device,
    Metrics,
    Models,
    NoCache,
    Overflow,
    Plot,
    Quiet,
    Ranks,
    RunJson,
    RunJsonCommand,
    Threads,
    split_list,
    whole_numbers,
)
from m2bert.cli.output import check_files, deliver_run
from m2bert.cli.progress import staged

if TYPE_CHECKING:
    from m2bert.bench.systems import System


def register(group: typer.Typer) -> None:
    """Add the studies to the command group `evaluate`."""
    group.command("needle", cls=RunJsonCommand)(needle)
    group.command("encode-time", cls=RunJsonCommand)(encode_time)
    group.command("clusters", cls=RunJsonCommand)(clusters)


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
    metrics: Metrics = "nDCG@10,RR@10",
    seed: Annotated[int, typer.Option(help="Draws the queries and the distractors.")] = 0,
    bm25: Bm25 = True,
    overflow: Overflow = "window",
    chunks: Chunks = "none",
    rank: Ranks = "all,whole,passages",
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json_to: RunJson = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Hide a passage at every place of a long document, and see whether its query still finds the document."""
    from m2bert.bench.needle import haystack, read_needles, run_needle
    from m2bert.bench.systems import BM25System
    from m2bert.files import cache_folder
    from m2bert.ranking.metrics import largest_cutoff, load_trec_eval

    check_files(json_to, plot, "needle")
    lengths, measures = whole_numbers(passages, "--passages"), split_list(metrics)
    largest_cutoff(measures)
    load_trec_eval()
    found = read_needles(needles, distractors or (), dataset=dataset, num_queries=queries, seed=seed)
    haystack(found, max(lengths), 0)
    folder = None if no_cache else cache or cache_folder("embeddings")
    lexical: list[System] = [BM25System()] if bm25 else []
    running = Running(device, batch_tokens, threads)
    encoders = open_systems(model, overflow, split_list(chunks), folder, running, split_list(rank))
    with staged() as on_progress:
        report = run_needle(
            found, [*encoders, *lexical], passages=lengths, positions=positions, metrics=measures, seed=seed,
            on_progress=on_progress,
        )  # fmt: skip
    deliver_run(report.to_dict(), json_to, plot, who="needle")


def encode_time(
    model: Models = None,
    lengths: Annotated[str, typer.Option(help="Tokens of the document, joined by commas.")] = "128,512,2048,8192,32768",
    repeats: Annotated[int, typer.Option(help="Rounds that are timed, after one that is not.")] = 5,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    json_to: RunJson = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Time the encoding of one document by its length, for several models in turn."""
    from m2bert.bench.encode_time import run_encode_time

    check_files(json_to, plot, "encode-time")
    wanted = whole_numbers(lengths, "--lengths")
    running = Running(device, batch_tokens, threads)
    encoders = [running.encoder(each) for each in default_models(model)]
    with staged() as on_progress:
        report = run_encode_time(encoders, lengths=wanted, repeats=repeats, on_progress=on_progress)
    deliver_run(report.to_dict(), json_to, plot, who="encode-time")


def clusters(
    texts: Annotated[list[Path], typer.Argument(help="JSON lines of texts; the kind is `source` or `dataset`.")],
    model: Models = None,
    per_kind: Annotated[int, typer.Option(help="Most texts to draw of each kind.")] = 100,
    seed: Annotated[int, typer.Option(help="Draws the texts, and begins k-means and t-SNE.")] = 0,
    overflow: Overflow = "window",
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json_to: RunJson = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Measure and map whether texts of one kind lie together."""
    from m2bert.bench.clusters import load_sklearn, read_kinds, run_clusters
    from m2bert.files import cache_folder

    check_files(json_to, plot, "clusters")
    load_sklearn()
    kinds = read_kinds(texts, per_kind, seed)
    folder = None if no_cache else cache or cache_folder("embeddings")
    systems = open_systems(model, overflow, ["none"], folder, Running(device, batch_tokens, threads))
    with staged() as on_progress:
        run = run_clusters(kinds, [system.encoder for system in systems], seed=seed, on_progress=on_progress)
    deliver_run(run, json_to, plot, who="clusters")
