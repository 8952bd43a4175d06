"""The face of a package: names that are imported when they are first used, so that importing a package stays quick.

Test: tests/test_layout.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package that hands out the names in `modules`.

    modules: public name -> module that defines it, in full.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(modules))}")
        return getattr(importlib.import_module(modules[name]), name)

    return get, lambda: sorted(modules)
