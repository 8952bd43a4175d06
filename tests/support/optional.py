"""Packages of which some tests need one, and which not everybody installs."""

from __future__ import annotations

import importlib.util

import pytest


def needs(extra: str, *packages: str) -> pytest.MarkDecorator:
    """Skips where one is missing. As pytest.importorskip, but nothing is loaded before a test runs that needs it."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra `{extra}` ({', '.join(missing)})")
