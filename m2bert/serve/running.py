"""Listening, one or several processes, and a stop that finishes what was accepted.

Test: tests/serve/test_running.py.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from m2bert.errors import M2BertError
from m2bert.serve.connections import PatientProtocol
from m2bert.serve.metrics import MULTIPROCESS

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What was accepted is finished in this time; a worker that says nothing for so long is started anew.
SECONDS_TO_FINISH, SECONDS_SILENT = 120, 60
BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. Raises M2BertError where there is none."""
    listening = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise M2BertError(
            f"serve: cannot listen on {host}:{port} ({error.strerror}); choose another address or port"
        ) from None
    return listening


def make_server(make_app: Callable[[], FastAPI], *, workers: int = 1) -> uvicorn.Server:
    """A server that is not running; `make_app` is called when it is."""
    config = uvicorn.Config(
        make_app, factory=True, log_level="warning", access_log=False, proxy_headers=False, server_header=False,
        http=PatientProtocol, ws="none", workers=workers, timeout_graceful_shutdown=SECONDS_TO_FINISH,
        timeout_worker_healthcheck=SECONDS_SILENT,
    )  # fmt: skip
    return uvicorn.Server(config)


def run_server(make_app: Callable[[], FastAPI], listening: socket.socket, *, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted and refuse the rest.

    make_app: called once in every process; for more than one worker it must be picklable.
    """
    server = make_server(make_app, workers=workers)
    if workers == 1:
        server.run(sockets=[listening])
        return
    with tempfile.TemporaryDirectory(prefix="m2bert-metrics-") as folder:
        os.environ[MULTIPROCESS] = folder
        Multiprocess(server.config, [listening]).run()


def address_of(listening: socket.socket) -> str:
    """Where a browser finds what a socket serves."""
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """The names by which a server bound to `host` may be asked: those of this machine, or None, any, elsewhere."""
    return LOOPBACK if host in LOOPBACK else None
