"""Fixtures shared by all tests: seeds, pairs and a model, the shared data folder, instruction sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# Programs that tests start import the installed package, as pytest does, not the sources in the working folder.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(autouse=True)
def seed() -> None:
    """Same random numbers in every test, whatever ran before it; one thread, since the tensors are tiny."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


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
