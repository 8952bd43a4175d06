"""Old addresses of modules that documents of version 0.1 showed: they still import, with a DeprecationWarning.

To be deleted with version 0.3. Test: tests/test_layout.py.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Old module -> where its names are now, the first place that has one counts.
MOVED = {
    "m2bert.checkpoints": ("m2bert.model.checkpoints", "m2bert.model.reference"),
    "m2bert.configuration": ("m2bert.model.configuration", "m2bert.model.architecture"),
    "m2bert.documents": ("m2bert.search.documents",),
    "m2bert.evaluate": ("m2bert.bench.evaluate",),
    "m2bert.layers": ("m2bert.model.layers", "m2bert.model.pooling"),
    "m2bert.modeling": ("m2bert.model.modeling",),
    "m2bert.mteb_adapter": ("m2bert.bench.mteb_adapter",),
    "m2bert.pretrain": ("m2bert.train.pretrain",),
    "m2bert.systems": ("m2bert.bench.systems", "m2bert.encoders.protocol"),
    "m2bert.tasks": ("m2bert.bench.tasks",),
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of MOVED; each hands out the very objects of the new ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """See importlib."""
        places = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {' and '.join(places)}", DeprecationWarning, stacklevel=2)

        def get(name: str) -> Any:
            for place in places:
                found = importlib.import_module(place)
                if hasattr(found, name):
                    return getattr(found, name)
            raise AttributeError(f"neither {' nor '.join(places)} has {name!r}")

        vars(module)["__getattr__"] = get
