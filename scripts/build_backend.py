"""Build backend: setuptools, asking for a torch to build against only where the target environment has none.

Under build isolation `sysconfig.get_path("purelib")` still names the target environment, so a torch installed there
is found and used. The LibTorch stable ABI makes one build serve every torch >= 2.10.
Test: tests/test_reproducible_build.py, and `make installs`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

BUILD_TORCH = "torch==2.13.0"
# The first date that a zip file can hold: the dates of its files would make the bytes of two builds differ.
os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")


def _torch_requirement() -> list[str]:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from find_torch import find_torch

    return [] if find_torch() else [BUILD_TORCH]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What pip installs before building a wheel."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """What pip installs before an editable install."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]
