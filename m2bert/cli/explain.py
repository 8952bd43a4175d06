"""The command `m2bert explain`: where in a document the match with a query lies.

Test: tests/search/test_explain.py.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.models import Running
from m2bert.cli.options import STORE, BatchTokens, Device, Png, Quiet, RunJson, RunJsonCommand, StoreModel, Threads
from m2bert.cli.output import check_files, deliver
from m2bert.cli.progress import announced
from m2bert.cli.results import MAX_WIDTH, can_show, encodable, placed_snippet
from m2bert.cli.search import open_to_read
from m2bert.errors import M2BertError
from m2bert.search.places import shown

if TYPE_CHECKING:
    from m2bert.search.explain import Contribution, Explanation

BAR_WIDTH = 24
BARS, ASCII_BARS = ("█", "░"), ("#", "-")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain", cls=RunJsonCommand)(explain)


def explain(
    query: Annotated[str, typer.Argument(help="What was looked for.")],
    document: Annotated[str, typer.Argument(help="A file; with --store, the id of a document there.")],
    store: Annotated[str | None, typer.Option(help=f"{STORE}, made by `m2bert index`.")] = None,
    source: Annotated[str | None, typer.Option(help="The document's source, if several of a store have it.")] = None,
    model: StoreModel = None,
    rows: Annotated[int, typer.Option(help="Most rows to print; neighbouring passages are joined.")] = 40,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    png: Png = None,
    json_to: RunJson = None,
    quiet: Quiet = False,
) -> None:
    """Show what whole, passages and words of a document add to its score, and where in it they lie."""
    from m2bert.bench import plots

    if rows < 1:
        raise M2BertError(f"explain: --rows must be at least 1, got {rows}")
    check_files(json_to, png, "explain", "--png")
    found = _explain(query, document, store, source, model, Running(device, batch_tokens, threads))
    run = found.to_dict()
    deliver(run, lambda: print(format_explanation(found, rows)), json_to, who="explain")
    if png is not None:
        plots.save(plots.draw(run), png)


def _explain(
    query: str, document: str, store: str | None, source: str | None, model: str | None, running: Running
) -> Explanation:
    from m2bert.search.documents import read_document
    from m2bert.search.explain import explain_stored, explain_text

    if store is None:
        if source is not None:
            raise M2BertError("explain: --source is for documents of a store; give --store too")
        read = read_document(document, who="explain")
        embedder = running.embedder(model)
        with announced(f"reading {document}"):
            return explain_text(embedder, query, read.text, document, read.sections)
    if model is not None:
        raise M2BertError("explain: a store is read with the model that made it; leave out --model")
    index = open_to_read(store, None, running)
    with announced(f"reading {shown(store)}"):
        return explain_stored(index, query, document, source)


def format_explanation(found: Explanation, rows: int = 40) -> str:
    """What each part adds, the words that did it, and a bar per stretch of the document, from its beginning to its end.

    The bars are shares of the cosine of the whole, negative ones light; the number behind them is the highest cosine of
    two neighbouring passages that begin there.
    """
    stretches = found.merged(rows)
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    read = f"{found.num_tokens:,} tokens in {len(found.contributions):,} passages"
    if found.num_windows > 1:
        read += f", {found.num_windows} windows"
    if found.num_truncated:
        read += f", {found.num_truncated:,} tokens not read"
    parts = " + ".join(f"{part} {value:.4f}" for part, value in found.parts.items())
    lines = [
        f"query     {found.query}",
        f"document  {found.document}: {read}",
        f"score     {found.score:.4f} = {parts}",
    ]
    if found.words:
        words = sorted(found.words.items(), key=lambda item: -item[1])
        lines.append("words     " + ", ".join(f"{word} {value:.4f}" for word, value in words))
    largest = max(abs(stretch.value) for stretch in stretches) or 1.0
    lines += ["", f"          {'share of the whole'.ljust(BAR_WIDTH + 7)}  passages"]
    for stretch in stretches:
        place = f"{stretch.start / found.length:4.0%}"
        quote = placed_snippet(stretch.place, stretch.text, width - BAR_WIDTH - 26)
        best = max((pair.value for pair in found.pairs if stretch.start <= pair.start < stretch.end), default=None)
        shown = "      " if best is None else f"{best:6.3f}"
        lines.append(f"{place}  {_bar(stretch, largest)}  {stretch.value:+.4f}  {shown}  {quote}")
    total = sum(stretch.value for stretch in stretches)
    lines += ["", f"sum       {total:.4f} of {len(stretches)} rows, the cosine of the whole"]
    return "\n".join(encodable(line) for line in lines)


def _bar(part: Contribution, largest: float) -> str:
    positive, negative = BARS if can_show("".join(BARS)) else ASCII_BARS
    cells = round(abs(part.value) / largest * BAR_WIDTH)
    return ((positive if part.value > 0 else negative) * cells).ljust(BAR_WIDTH)
