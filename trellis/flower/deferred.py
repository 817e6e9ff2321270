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
    """A package that has not been run; see `importlib.util.LazyLoader`, which does so for a whole module."""

    def __getattr__(self, name: str) -> Any:
        if importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        for place in _PACKAGES[self.__name__]:
            if hasattr(found := importlib.import_module(place), name):
                return getattr(found, name)
        # From now on a name that is missing is missing.
        self.__class__ = ModuleType  # type: ignore[assignment]
        if self.__spec__ is not None and self.__spec__.loader is not None:
            self.__spec__.loader.exec_module(self)
        return getattr(self, name)
