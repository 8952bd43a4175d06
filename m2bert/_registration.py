"""Our models in transformers and sentence-transformers, as soon as both packages are imported, in either order.

They have no entry points: a class has to be registered. `import m2bert` must not load transformers for that, which
takes seconds, so the registration waits until transformers loads the module that keeps the register.
Tests: tests/model/test_auto_classes.py, tests/integrations/test_sentence_transformers.py.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# Module of theirs -> module of ours that enters our classes in its register, or minds what it does to them, when it is
# imported.
REGISTERS = {
    "transformers.models.auto.configuration_auto": "m2bert.model.configuration",
    "transformers.models.auto.modeling_auto": "m2bert.model.modeling",
    "sentence_transformers": "m2bert.integrations.safeguards",
}


class Registration(importlib.abc.MetaPathFinder):
    """Finds the modules of REGISTERS where they are, and has them followed by ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib."""
        if fullname not in REGISTERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_both(module: ModuleType) -> None:
                load(module)
                importlib.import_module(REGISTERS[fullname])

            spec.loader.exec_module = load_both  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Enter our classes in the registers that are loaded, and in the others once they are."""
    sys.meta_path.insert(0, Registration())  # before the finder that finds every module
    for register, ours in REGISTERS.items():
        if register in sys.modules:
            importlib.import_module(ours)
