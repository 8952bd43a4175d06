"""The commands `m2bert index`, `m2bert search` and `m2bert check`.

Test: tests/cli/test_cli_search.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert._lazy import hidden
from m2bert.cli.models import Running
from m2bert.cli.options import (
    STORE,
    BatchTokens,
    Device,
    Json,
    JsonCommand,
    MegabytesPerFile,
    Overflow,
    Quiet,
    Rank,
    SecondsPerFile,
    Store,
    StoreModel,
    Threads,
    TruncateDim,
    Where,
)
from m2bert.cli.output import check_files, deliver
from m2bert.cli.progress import announced, counted, notice, warnings_noticed
from m2bert.cli.results import format_check, format_guessed, format_report, format_results, format_skipped
from m2bert.search.places import place_of, shown

if TYPE_CHECKING:
    from m2bert.search.index import SearchIndex


def register(app: typer.Typer) -> None:
    """Add the commands `index`, `search` and `check`."""
    app.command("index", cls=JsonCommand)(index)
    app.command("search", cls=JsonCommand)(search)
    app.command("check", cls=JsonCommand)(check)


def index(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE.jsonl", help="The documents.")],
    store: Store,
    model: StoreModel = None,
    overflow: Overflow = "window",
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    truncate_dim: TruncateDim = None,
    seconds_per_file: SecondsPerFile = 60.0,
    megabytes_per_file: MegabytesPerFile = 1024,
    json_to: Json = None,
    quiet: Quiet = False,
) -> None:
    """Index a folder of documents, or a JSON-lines file; only what changed is read and embedded again."""
    from m2bert.search.reading import Limits
    from m2bert.search.streams import stream_corpus

    check_files(json_to, None, "index")
    corpus = stream_corpus(
        source, exclude=[place_of(store).folder], limits=Limits(seconds_per_file, megabytes_per_file)
    )
    search_index = open_index(store, model, overflow, Running(device, batch_tokens, threads, truncate_dim))
    with warnings_noticed(), counted(f"indexing {source}", "tokens") as progress:
        report = search_index.update(corpus, progress=progress)

    def tell() -> None:
        if report.skipped:
            notice(format_skipped(report))
        if report.guessed:
            notice(format_guessed(report))
        print(format_report(report))

    found = {"store": shown(store), "source": corpus.source, **report.to_dict()}
    deliver(found, tell, json_to, who="index")


def search(
    store: Annotated[str, typer.Argument(help=f"{STORE}.")],
    query: Annotated[str, typer.Argument(help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("-k", help="How many documents to show.")] = 10,
    rank: Rank = "all",
    where: Where = None,
    model: StoreModel = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    json_to: Json = None,
    quiet: Quiet = False,
) -> None:
    """Rank the documents of a store by a query, and show where in each the match lies."""
    check_files(json_to, None, "search")
    search_index = open_to_read(store, model, Running(device, batch_tokens, threads))
    with announced(f"searching {shown(store)}"):
        results = search_index.search(query, k, rank=rank, where=where)
    deliver(results.to_dict(), lambda: print(format_results(results, passages=2)), json_to, who="search")


def check(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    mend: Annotated[
        bool, typer.Option("--mend", help="Take damaged documents out; the next `m2bert index` makes them again.")
    ] = False,
    json_to: Json = None,
    quiet: Quiet = False,
) -> None:
    """Read all of a store, and say whether it is what was written and what to do; ends with 1 where it is not."""
    check_files(json_to, None, "check")
    with announced(f"opening {store}"):
        from m2bert.search.check import check_store
    with counted("checking", "documents") as progress:
        result = check_store(store, mend=mend, progress=progress)
    deliver({"store": str(store), **result.to_dict()}, lambda: print(format_check(result, store)), json_to, who="check")
    if not result.is_sound and not mend:
        raise typer.Exit(1)


def open_index(store: str | Path, model: str | None, overflow: str, running: Running) -> SearchIndex:
    """The index at `store`, there or to be made, with the embedder of `model`, or of the model that the store says.

    The store is looked at before a model is loaded: that fails faster. Its vectors say how long new ones are.
    """
    with announced(f"opening {shown(store)}"):
        from m2bert.search.index import SearchIndex

        known = SearchIndex(store)
    if known.dim is not None and running.truncate_dim is None:
        running = replace(running, truncate_dim=known.dim)
    embedder = running.embedder(model or known.model, overflow)
    with announced("checking the model"):
        return SearchIndex(store, embedder)


def open_to_read(store: str | Path, model: str | None, running: Running) -> SearchIndex:
    """The index of a store that must be there. Raises M2BertError where it is not."""
    # PyArrow loads pandas where it is there, for tables that no command makes: a tenth of the time of a search.
    with announced(f"opening {shown(store)}"), hidden("pandas"):
        from m2bert.search.index import SearchIndex

        found = SearchIndex(store)
        found.stats()
    # By itself an index loads its model after it has looked at the query.
    return found if model is None and running == Running() else open_index(store, model, "window", running)
