"""A store and a server of it, shared by the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import DOCUMENTS, served
from tiny import tiny_embedder

from m2bert.search.index import SearchIndex
from m2bert.serve.service import Service


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of DOCUMENTS on the tiny model; for reading alone."""
    folder = tmp_path_factory.mktemp("stores") / "notes"
    SearchIndex(folder, tiny_embedder()).add(DOCUMENTS)
    return folder


@pytest.fixture(scope="session")
def url(store: Path) -> Iterator[str]:
    """A server of that store."""
    service = Service()
    service.add_store(store, service.add_model(tiny_embedder()))
    with served(service) as address:
        yield address
