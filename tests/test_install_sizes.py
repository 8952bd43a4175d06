"""What an install brings without extras: what searching text needs, and nothing that only an extra uses."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("install_sizes", ROOT / "scripts" / "install_sizes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_install_without_extras_brings_nothing_of_theirs(script: Any) -> None:
    """torch brings numpy's kind of packages by itself; pandas and transformers are what extras would let in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = script.required(project["dependencies"])
    assert {"torch", "sympy", "lancedb", "pyarrow", "tokenizers", "huggingface-hub"} <= set(base)
    assert not {"transformers", "pandas", "scipy", "fastapi", "sentence-transformers", "pypdfium2"} & set(base)
    assert script.size(base["torch"]) > 100 * script.size(base["typer"]) > 0
