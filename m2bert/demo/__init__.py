"""The demo: search in the help of the standard library of the Python that runs it."""

from __future__ import annotations

from m2bert._lazy import lazy_names

_PUBLIC = {
    "read_stdlib_help": "m2bert.demo.stdlib_help",
    "stdlib_source": "m2bert.demo.stdlib_help",
}
__all__ = list(_PUBLIC)
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
