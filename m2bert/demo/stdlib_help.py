"""The help text of every module of Python's standard library: real long documents on any machine, offline.

Importing some modules acts (opens a browser, changes the terminal), so all of it happens in a process of its own,
which is killed and restarted behind a module that hangs or crashes it.
Test: tests/cli/test_stdlib_help.py.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from m2bert.errors import M2BertError
from m2bert.search.documents import Document, Skipped

WORKER = Path(__file__).with_name("stdlib_help_worker.py")
LAUNCH = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='stdlib_help_worker')"
KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

Progress = Callable[[int, int], None]


def stdlib_source() -> str:
    """Name of this Python's standard library as the source of documents: `python-3.11.7`."""
    return "python-" + ".".join(str(part) for part in sys.version_info[:3])


def read_stdlib_help(
    *, timeout: float = 20.0, progress: Progress | None = None, after: str | None = None, limit: int | None = None
) -> tuple[list[Document], list[Skipped]]:
    """Help text as `help(module)` prints it: a document per importable public module, submodules too.

    Left out: private modules, test packages, `__main__` modules, and antigravity, this, idlelib and
    turtledemo, whose import or purpose is to act. Modules that fail to import, or take longer than `timeout`
    seconds, are returned as skipped with the reason. `progress(done, total)` counts modules. `after` starts
    behind that module; `limit` keeps to the first modules, by name.

    Raises M2BertError when no module at all can be read, and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise M2BertError(f"read_stdlib_help: limit must be at least 1, got {limit}; leave it out to read all modules")
    documents: list[Document] = []
    skipped: list[Skipped] = []
    source = stdlib_source()
    unfinished = True
    while unfinished:
        failed = _read_until_failure(after, limit, timeout, documents, skipped, source, progress)
        unfinished = failed is not None
        if failed is not None:
            name, reason = failed
            skipped.append(Skipped(name, reason))
            after = name
    if not documents:
        raise M2BertError(
            f"read_stdlib_help: no module of {sys.executable} could be read; check that this Python starts"
        )
    return documents, skipped


def _read_until_failure(
    after: str | None,
    limit: int | None,
    timeout: float,
    documents: list[Document],
    skipped: list[Skipped],
    source: str,
    progress: Progress | None,
) -> tuple[str, str] | None:
    """Run one worker; the module that stopped it and why, or None when it came to its end."""
    current = ""
    with tempfile.TemporaryDirectory() as folder, _start_worker(after, limit, folder) as worker:
        lines = _lines_of(worker)
        try:
            while True:
                try:
                    line = lines.get(timeout=timeout)
                except queue.Empty:
                    return (current, f"took longer than {timeout:g} s") if current else None
                if line is None:
                    return (current, "its import ended the process") if current else None
                message = json.loads(line)
                if "begin" in message:
                    current = message["begin"]
                    if progress is not None:
                        progress(message["done"], message["total"])
                    continue
                current = ""
                if "text" in message:
                    documents.append(Document(message["name"], message["text"], source))
                elif "reason" in message:
                    skipped.append(Skipped(message["name"], message["reason"]))
        finally:
            worker.kill()


def _start_worker(after: str | None, limit: int | None, folder: str) -> subprocess.Popen[bytes]:
    # A fixed hash seed and almost no environment: the same text on every run, and no secrets in `os.environ`.
    environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8", "HOME": "/nonexistent"}
    command = [sys.executable, "-s", "-c", LAUNCH, str(WORKER), after or "", str(limit or "")]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _lines_of(worker: subprocess.Popen[bytes]) -> queue.Queue[bytes | None]:
    """Lines the worker writes, then None at its end; read by a thread so that a silence can be timed."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                lines.put(line)
        except ValueError:
            pass  # closed under us after a kill
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines
