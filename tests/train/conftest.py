"""One small world for all tests of training; runs go to folders of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_data import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that training_data.write_world fills; `cache` in it keeps tokens. For reading alone."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder
