"""The demo: search in the help of the standard library of the Python that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "read_stdlib_help": "m2bert.demo.stdlib_help",
    "stdlib_source": "m2bert.demo.stdlib_help",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.demo.stdlib_help import read_stdlib_help as read_stdlib_help, stdlib_source as stdlib_source
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
