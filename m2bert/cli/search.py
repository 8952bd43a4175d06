"""The commands `m2bert index` and `m2bert search`.

Test: tests/cli/test_cli_search.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.progress import announced, counted
from m2bert.cli.results import (
    format_report,
    format_results,
    format_skipped,
    print_json,
    report_as_json,
    results_as_json,
)
from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.encoders.embedder import Embedder
    from m2bert.search.index import SearchIndex

Store = Annotated[Path, typer.Option("--store", help="Folder of the store; made if it is not there.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="A model's name or folder; by default the store's, else m2-bert-mini."),
]
Overflow = Annotated[
    str, typer.Option("--overflow", help="Documents longer than the model: window, truncate or error.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Hybrid = Annotated[
    bool, typer.Option("--hybrid", help="Rank by the model and by BM25 together (fusion of their scores).")
]


def register(app: typer.Typer) -> None:
    """Add the commands `index` and `search`."""
    app.command("index")(index)
    app.command("search")(search)


def index(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE.jsonl", help="The documents.")],
    store: Store,
    model: Model = None,
    overflow: Overflow = "window",
    as_json: AsJson = False,
) -> None:
    """Index a folder of text files, or a JSON-lines file; only what changed is embedded again."""
    from m2bert.search.documents import read_corpus

    with announced(f"reading {source}"):
        corpus = read_corpus(source, exclude=[store])
    search_index = open_index(store, model, overflow)
    with logged_to_stderr(), counted("embedding", "tokens") as progress:
        report = search_index.update(corpus, progress=progress)
    if report.skipped and not as_json:
        print(format_skipped(report), file=sys.stderr)
    if as_json:
        print_json({"store": str(store), "source": corpus.source, **report_as_json(report)})
    else:
        print(format_report(report))


def search(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    query: Annotated[str, typer.Argument(help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("-k", help="How many documents to show.")] = 10,
    hybrid: Hybrid = False,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Rank the documents of a store by a query, and show where in each the match lies."""
    with announced(f"searching {store}"):
        from m2bert.search.index import SearchIndex

        # Without --model the store says which one, and is looked into before the model is loaded.
        search_index = SearchIndex(store, None if model is None else load_embedder(model, "window"))
        results = search_index.search(query, k, hybrid=hybrid)
    if as_json:
        print_json(results_as_json(query, results))
    else:
        print(format_results(results, passages=2))


def open_index(store: Path, model: str | None, overflow: str) -> SearchIndex:
    """The index at `store` with its embedder loaded. The store is looked at first: that fails faster."""
    with announced("opening the store"):
        from m2bert.search.index import SearchIndex

        known = SearchIndex(store).model
    embedder = load_embedder(model or known, overflow)
    with announced("checking the model"):
        return SearchIndex(store, embedder)


def load_embedder(model: str | None, overflow: str) -> Embedder:
    """The embedder of a model's name or folder, with a word about the wait."""
    with announced(f"loading {model or 'the model'}"):
        import m2ops
        from m2bert.encoders.embedder import DEFAULT_MODEL, OVERFLOWS, Embedder

        m2ops.keep_freed_memory()  # the process is ours
        if overflow not in OVERFLOWS:
            raise M2BertError(f"index: --overflow must be one of {', '.join(OVERFLOWS)}, got {overflow!r}")
        return Embedder(model or DEFAULT_MODEL, overflow=overflow)


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Warnings of the library, such as waiting for another writer, as lines on stderr."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("m2bert: %(message)s"))
    logger = logging.getLogger("m2bert")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
