"""The command `m2bert serve`: stores and models over HTTP, and a page to search in.

Test: tests/serve/test_running.py.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from m2bert.cli.models import Running
from m2bert.cli.options import STORE, BatchTokens, Device, Models, Quiet, Threads
from m2bert.cli.progress import announced, notice
from m2bert.errors import M2BertError
from m2bert.search.places import shown

if TYPE_CHECKING:
    from fastapi import FastAPI

    from m2bert.serve.scheduled import ScheduledEncoder
    from m2bert.serve.service import Service


@dataclass(frozen=True)
class Served:
    """What every worker process opens."""

    stores: tuple[str, ...]
    models: tuple[str, ...]
    running: Running
    writable: bool
    token: str | None
    hosts: tuple[str, ...] | None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    stores: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STORE]...", help=f"Stores to search in. {STORE}."),
    ] = None,
    models: Models = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all there are.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    writable: Annotated[bool, typer.Option("--writable", help="Let clients add and delete documents.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="M2BERT_TOKEN", help="What clients must send; better in the variable, as others see options."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the models.")] = 1,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Serve stores and models over HTTP: OpenAI's embeddings, reranking, search, and a page in the browser."""
    if not stores and not models:
        raise M2BertError("serve: there must be something to serve, got nothing; name a STORE, or --model NAME")
    if token is not None and not token.strip():
        raise M2BertError("serve: the token must not be empty; make one with `openssl rand -hex 32`, or leave it out")
    _check_installed()
    from m2bert.serve.running import address_of, allowed_hosts, listen, run_server

    if threads is None and workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
    running = Running(device, batch_tokens, threads)
    served = Served(tuple(stores or ()), tuple(models or ()), running, writable, token, allowed_hosts(host))
    with listen(host, port) as listening:
        service = open_service(served)
        if workers > 1:  # opened to see that it can be; each process opens its own
            service.close()
        make_app = partial(build_app, served, service if workers == 1 else None)
        if served.hosts is None and token is None:
            notice("m2bert: whoever reaches this port may ask; set M2BERT_TOKEN to ask for a token")
        what = ", ".join([*service.stores] or [*service.models])
        notice(f"m2bert: serving {what} at {address_of(listening)} (API: {address_of(listening)}docs); Ctrl-C stops")
        run_server(make_app, listening, workers=workers)


def build_app(served: Served, service: Service | None = None) -> FastAPI:
    """The application of one process; `service`: what it opened already."""
    from m2bert.serve.app import create_app

    service = service or open_service(served)
    return create_app(service, writable=served.writable, token=served.token, hosts=served.hosts)


def open_service(served: Served) -> Service:
    """The models and stores, open. A store brings the model that made it; stores of the same model share it."""
    from m2bert.search.index import SearchIndex
    from m2bert.serve.scheduler import BATCH_TOKENS
    from m2bert.serve.service import Service

    service = Service(batch_tokens=served.running.batch_tokens or BATCH_TOKENS)
    opened: dict[tuple[str | None, int | None], ScheduledEncoder] = {}
    for path in served.stores:
        with announced(f"opening {shown(path)}"):
            known = SearchIndex(path)
            known.stats()
        key = known.model, known.dim
        if key not in opened:
            embedder = replace(served.running, truncate_dim=known.dim).embedder(known.model)
            with announced("checking the model"):
                opened[key] = service.add_model(embedder)
        service.add_store(path, opened[key])
    for name in served.models:
        encoder = served.running.encoder(name)
        if (encoder.location, encoder.dim) not in opened:
            service.add_model(encoder)
    return service


def _check_installed() -> None:
    try:
        importlib.import_module("m2bert.serve.app")
    except ImportError as error:
        raise M2BertError(
            f"serve: needs {error.name}, which is not installed; run pip install '.[serve]' in the project's folder"
        ) from error
