"""Names that are imported when they are first used, so that importing a package stays quick: our faces, and others'.

Tests: tests/test_layout.py, tests/test_lazy.py.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
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


@contextmanager
def postponed(package: str) -> Iterator[None]:
    """Inside, importing `package`, or a module in it, does not run its `__init__`: that waits for a name of its own.

    For packages of others that load far more at once than is needed. What is imported so stays a whole package: the
    first name that is asked of it and is not one of its modules runs the rest.
    """
    finder = _Postponing(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Inside, `package` is found and not loaded, an ImportError, unless it was before.

    For packages that others load where they are there, needed or not.
    """
    finder = _Hiding(package)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Hiding(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one package, which then cannot be loaded."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self.package else None

    def exec_module(self, module: ModuleType) -> None:
        """See importlib."""
        raise ImportError(f"{self.package} is not needed here", name=self.package)


class _Postponing(importlib.abc.MetaPathFinder):
    """Finds one package where it is, and has its `__init__` wait."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib."""
        if fullname != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute, lock, begun = spec.loader.exec_module, threading.RLock(), threading.Event()

            def postpone(module: ModuleType) -> None:
                def get(name: str) -> Any:
                    with lock:  # of other threads, all wait until the first has run it
                        if not begun.is_set():
                            begun.set()
                            execute(module)
                            del vars(module)["__getattr__"]
                    try:
                        return vars(module)[name]
                    except KeyError:
                        raise AttributeError(f"module {fullname!r} has no attribute {name!r}") from None

                vars(module)["__getattr__"] = get

            spec.loader.exec_module = postpone  # type: ignore[method-assign]
        return spec
