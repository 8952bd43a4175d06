"""The command `m2bert explain`: where in a document the match with a query lies.

Test: tests/search/test_explain.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.progress import announced
from m2bert.cli.results import MAX_WIDTH, can_show, encodable, snippet
from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.search.explain import Contribution, Explanation

BAR_WIDTH = 24
BARS, ASCII_BARS = ("█", "░"), ("#", "-")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain")(explain)


def explain(
    query: Annotated[str, typer.Argument(help="What was looked for.")],
    document: Annotated[str, typer.Argument(help="A text file; with --store, the id of a document there.")],
    store: Annotated[Path | None, typer.Option(help="Folder of a store made by `m2bert index`.")] = None,
    source: Annotated[str | None, typer.Option(help="The document's source, if several of a store have it.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name or folder. [default: m2-bert-mini]")] = None,
    rows: Annotated[int, typer.Option(help="Most rows to print; neighbouring passages are joined.")] = 40,
    png: Annotated[Path | None, typer.Option(help="Also draw the curve into this file (.png, .svg or .pdf).")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every passage to this file.")] = None,
) -> None:
    """Show what every part of a document contributes to its score; the parts add up to the score."""
    from m2bert.bench import plots
    from m2bert.bench.runs import save_run
    from m2bert.files import check_output

    if rows < 1:
        raise M2BertError(f"explain: --rows must be at least 1, got {rows}")
    check_output(json_file, who="explain")
    check_output(png, who="explain", option="--png")
    if png is not None:
        plots.load_matplotlib()
    found = _explain(query, document, store, source, model)
    if json_file is not None:
        save_run(json_file, found.to_dict(), who="explain")
    if png is not None:
        plots.save(plots.explanation(found.to_dict()), png)
    print(format_explanation(found, rows))


def _explain(query: str, document: str, store: Path | None, source: str | None, model: str | None) -> Explanation:
    from m2bert.search.explain import explain_stored, explain_text

    if store is None:
        if source is not None:
            raise M2BertError("explain: --source is for documents of a store; give --store too")
        text = _read(Path(document))
        with announced("loading the model and reading the document"):
            from m2bert.encoders.embedder import DEFAULT_MODEL, Embedder

            return explain_text(Embedder(model or DEFAULT_MODEL), query, text, document)
    if model is not None:
        raise M2BertError("explain: a store is read with the model that made it; leave out --model")
    with announced(f"reading {store}"):
        from m2bert.search.index import SearchIndex

        return explain_stored(SearchIndex(store), query, document, source)


def _read(path: Path) -> str:
    from m2bert.search.documents import decode

    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise M2BertError(
            f"explain: cannot read {path} ({error.strerror}); give a text file, or --store and an id"
        ) from error
    except ValueError as error:
        raise M2BertError(f"explain: {path} must be UTF-8 text, got {error}; convert the file") from error


def format_explanation(found: Explanation, rows: int = 40) -> str:
    """A bar per stretch of the document, from its beginning to its end; negative contributions in light bars."""
    parts = found.merged(rows)
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    read = f"{found.num_tokens:,} tokens in {len(found.contributions):,} passages"
    if found.num_windows > 1:
        read += f", {found.num_windows} windows"
    if found.num_truncated:
        read += f", {found.num_truncated:,} tokens not read"
    largest = max(abs(part.value) for part in parts) or 1.0
    lines = [f"query     {found.query}", f"document  {found.document}: {read}", f"score     {found.score:.4f}", ""]
    for part in parts:
        place = f"{part.start / found.length:4.0%}"
        quote = snippet(part.text, width - BAR_WIDTH - 18)
        lines.append(f"{place}  {_bar(part, largest)}  {part.value:+.4f}  {quote}")
    total = sum(part.value for part in parts)
    lines += ["", f"sum       {total:.4f} of {len(parts)} rows"]
    return "\n".join(encodable(line) for line in lines)


def _bar(part: Contribution, largest: float) -> str:
    positive, negative = BARS if can_show("".join(BARS)) else ASCII_BARS
    cells = round(abs(part.value) / largest * BAR_WIDTH)
    return ((positive if part.value > 0 else negative) * cells).ljust(BAR_WIDTH)
