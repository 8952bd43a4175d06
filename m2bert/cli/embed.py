"""The command `m2bert embed`: a source embedded on many machines, by Ray, into a store.

Test: tests/search/test_many_machines.py.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2bert.cli.options import BatchTokens, Json, JsonCommand, Overflow, Quiet, StoreModel, TruncateDim
from m2bert.cli.output import check_files, deliver
from m2bert.cli.progress import announced, counted, notice, warnings_noticed
from m2bert.search.places import place_of, shown

if TYPE_CHECKING:
    from m2bert.encoders.protocol import Encoder
    from m2bert.search.many_machines import RayReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("embed", cls=JsonCommand)(embed)


def embed(
    source: Annotated[
        str, typer.Argument(help="Parquet or JSON lines with the columns id and text, or a folder of plain text.")
    ],
    store: Annotated[
        str, typer.Option("--store", help="Folder of the store, or s3://BUCKET/PATH; made if it is not there.")
    ],
    ray: Annotated[str, typer.Option("--ray", help="local, or the address of a cluster of Ray.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes with the model. Default: one fewer than CPUs of the cluster; local: one."),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker.")] = 0.0,
    documents_per_fragment: Annotated[
        int, typer.Option(min=1, help="Documents that are kept at once, and embedded again if a worker dies.")
    ] = 2_000,
    model: StoreModel = None,
    overflow: Overflow = "window",
    batch_tokens: BatchTokens = None,
    truncate_dim: TruncateDim = None,
    json_to: Json = None,
    quiet: Quiet = False,
) -> None:
    """Embed a source on many machines, with Ray, and add it to a store in one step; a killed run goes on."""
    check_files(json_to, None, "embed")
    with announced(f"opening {shown(store)}"):
        from m2bert.search.many_machines import Cluster, embed_with_ray

        made = place_of(store).open_if_made()
    known = None if made is None else made.info
    make_encoder = partial(
        open_worker, model or (known.model if known else None), overflow, "cuda" if gpus else None, batch_tokens,
        truncate_dim or (known.dim if known else None),
    )  # fmt: skip
    with warnings_noticed(), counted(f"embedding {source}", "documents") as progress:
        report = embed_with_ray(
            source, store, make_encoder, Cluster(ray, workers, gpus), documents_a_fragment=documents_per_fragment,
            progress=progress,
        )  # fmt: skip
    found = {"store": shown(store), **asdict(report)}
    deliver(found, lambda: _tell(report), json_to, who="embed")


def open_worker(
    model: str | None, overflow: str, device: str | None, batch_tokens: int | None, truncate_dim: int | None
) -> Encoder:
    """The Embedder of one process."""
    from m2bert.encoders.embedder import DEFAULT_MODEL, Embedder

    options: dict[str, Any] = {"device": device, "batch_tokens": batch_tokens, "truncate_dim": truncate_dim}
    given = {name: value for name, value in options.items() if value is not None}
    return Embedder(model or DEFAULT_MODEL, overflow=overflow, **given)


def _tell(report: RayReport) -> None:
    if report.skipped:
        notice(f"skipped {len(report.skipped):,}, the first: {report.skipped[0].id}: {report.skipped[0].reason}")
    reused = f" ({report.reused:,} of them embedded by an earlier run)" if report.reused else ""
    print(
        f"{report.added:,} added, {report.updated:,} updated{reused}, {report.unchanged:,} unchanged, in "
        f"{report.fragments:,} fragments"
    )
