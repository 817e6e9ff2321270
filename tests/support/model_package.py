"""Makes a module with a model look as if it was installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

from models.registry import GROUP


def installed(module: ModuleType, folder: Path) -> Path:
    """Return `folder`, which offers the module's `MODEL` as an installed package does."""
    shutil.copy(str(module.__file__), folder)
    metadata = folder / f"{module.__name__}-1.dist-info"
    metadata.mkdir()
    name = module.__name__.replace("_", "-")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{module.MODEL.name} = {module.__name__}:MODEL\n")
    return folder
