"""The commands `m2bert stats` and `m2bert optimize`: what a store holds and takes, and tidying it up.

Test: tests/cli/test_cli_stores.py.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2bert.cli.options import Json, JsonCommand, Quiet
from m2bert.cli.output import check_files, deliver
from m2bert.cli.progress import announced, warnings_noticed

if TYPE_CHECKING:
    from m2bert.search.index import SearchIndex

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]


def register(app: typer.Typer) -> None:
    """Add the commands `stats` and `optimize`."""
    app.command("stats", cls=JsonCommand)(stats)
    app.command("optimize", cls=JsonCommand)(optimize)


def stats(store: StoreFolder, json_to: Json = None, quiet: Quiet = False) -> None:
    """Say what a store holds, which indexes it has, and how many bytes it takes."""
    check_files(json_to, None, "stats")
    _tell(_opened(store), json_to, "stats")


def optimize(store: StoreFolder, json_to: Json = None, quiet: Quiet = False) -> None:
    """Put a store's files together, make its indexes anew, and delete versions that nobody reads any more.

    Searches go on meanwhile; other writers wait. It takes free space as large as the store.
    """
    check_files(json_to, None, "optimize")
    index = _opened(store)
    with announced(f"optimizing {store}"), warnings_noticed():
        index.optimize()
    _tell(index, json_to, "optimize")


def _opened(store: Path) -> SearchIndex:
    with announced(f"opening {store}"):
        from m2bert.search.index import SearchIndex

        return SearchIndex.open(store)


def _tell(index: SearchIndex, json_to: Path | None, who: str) -> None:
    with announced(f"measuring {index.path}"):
        known, sizes = index.stats(), index.sizes()
    found = {"store": str(index.path), **asdict(known.info), "documents": known.num_documents, **asdict(sizes)}
    deliver(found, lambda: print(_as_text(found)), json_to, who=who)


def _as_text(found: dict[str, Any]) -> str:
    count, size = found["documents"], found["bytes"]
    each = f", {size // count:,} a document" if count else ""
    lines = [
        f"documents  {count:,}",
        f"bytes      {size:,}{each}",
        f"model      {found['model']}, vectors of {found['dim']} numbers, fingerprint {found['fingerprint']}",
        f"metadata   {', '.join(found['names']) or 'none'}",
    ]
    for index in found["indexes"]:
        behind = f", {index['behind']:,} more rows are not in it" if index["behind"] else ""
        recall = f", finds {index['recall']:.1%} of the first ten" if index["recall"] is not None else ""
        unused = "" if index["used"] else "; not made by m2bert and not used: `m2bert optimize` replaces it"
        lines.append(f"index      {index['column']}: {index['kind']} of {index['rows']:,} rows{behind}{recall}{unused}")
    return "\n".join(lines)
