"""What training reads: text, labelled pairs and tasks, their tokens, and the examples made of them.

Tests: tests/train/test_data.py, tests/train/test_hub.py, tests/train/test_leaks.py, tests/train/test_probes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "find_leaks": "m2bert.data.leaks",
    "read_documents": "m2bert.data.text",
    "load_pairs": "m2bert.data.pairs",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.data.leaks import find_leaks as find_leaks
    from m2bert.data.pairs import load_pairs as load_pairs
    from m2bert.data.text import read_documents as read_documents
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
