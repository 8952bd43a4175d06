"""Fixtures shared by all tests: seeds, the command line, pairs and a model, the shared data folder."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# Programs that tests start import the installed package, as pytest does, not the sources in the working folder.
os.environ["PYTHONSAFEPATH"] = "1"
gc.set_threshold(50_000, *gc.get_threshold()[1:])  # as the command line does; imports make many objects that stay


def pytest_collection_finish() -> None:
    """What the imports have made stays. With it, each gc.collect, as at the end of a training run, took 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Same random numbers in every test, whatever ran before it; one thread, since the tensors are tiny."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections to other machines are refused by name: a test that needs one is not a test of this project."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not is_here(str(address[0])):
            raise OSError(f"a test must not connect to {address[0]}: only this machine may be talked to")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def is_here(host: str) -> bool:
    """Whether a host is this machine by its loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture
def run(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line in this process, 200 columns wide: (exit code, stdout, stderr)."""
    import m2bert.cli

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m2bert", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            m2bert.cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl.gz and a tiny model that pools by the mean in `model`; for reading alone."""
    from tiny import tiny_model_folder
    from training_data import write_pairs

    folder = tmp_path_factory.mktemp("world")
    write_pairs(folder)
    tiny_model_folder(folder / "model", max_tokens=128)
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of shared parity fixtures and data beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared data folder beside the checkout (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def postgres_url() -> Any:
    """The address of an empty database of a PostgreSQL with pgvector, started once; skips where it cannot be."""
    from postgres_server import CannotStart, postgres_server

    try:
        with postgres_server() as address:
            yield address + "postgres"
    except CannotStart as reason:
        pytest.skip(str(reason))
