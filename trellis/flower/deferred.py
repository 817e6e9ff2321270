"""Flower's packages, for a process that needs few of their modules.

Whatever is imported from Flower, Python first runs `flwr/__init__.py`, and that imports Flower's server, its
strategies and gRPC: 11 MB that a device never uses. Four packages do it, only to hand on names that stand
elsewhere. Here they are packages that have not been run: their modules are imported as ever, a name is taken
from where it stands, and for a name that is not found so, the package is run after all.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

# The packages, the outer one first, and where what Flower's own modules ask them for stands.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "flwr": (),
    "flwr.common": ("flwr.compat.common.typing", "flwr.compat.common.parameter"),
    "flwr.client": ("flwr.compat.client.typing",),
    "flwr.client.mod": (),
}


def defer_unused() -> None:
    """Let imports from Flower load what they name and not all of it; where it is loaded, change nothing."""
    if "flwr" in sys.modules:
        return
    # httpx does without its own command where that cannot be imported. It brings pygments and more of rich:
    # 2 MB; for Python a module that is None is one that is not there.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return  # the first import says what is missing
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Deferred
        sys.modules[name] = package
        outer, _, own = name.rpartition(".")
        if outer:
            setattr(sys.modules[outer], own, package)


class _Deferred(ModuleType):
    """A package whose names are found elsewhere, and which never runs itself.

    Where it must run after all, its file runs as the module `__init__` in it. So whichever thread asks,
    Python's own import locks make it wait until that is complete, and they know of each other: a lock of
    ours, taken by one who imports and by one who is imported, could hold both for ever.
    """

    def __getattr__(self, name: str) -> Any:
        # First, as in Flower: its packages import each other in a circle, which opens only from here.
        importlib.import_module("flwr.app")
        if importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        for place in _PACKAGES[self.__name__]:
            if hasattr(found := importlib.import_module(place), name):
                return getattr(found, name)
        return getattr(importlib.import_module(f"{self.__name__}.__init__"), name)
