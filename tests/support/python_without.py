"""Another Python on this machine, which lacks some of what ours has installed."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def python_without(folder: Path, *packages: str) -> str:
    """Return the interpreter of a new virtual environment with all that ours has installed but `packages`.

    What it has are links to ours: nothing is fetched.
    """
    venv.create(folder, symlinks=True)
    theirs = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    for ours in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for installed in Path(ours).iterdir():
            # A package, or what tells of it, such as torch-2.13.0.dist-info.
            if installed.name.partition("-")[0] not in {*packages, "__pycache__"}:
                (theirs / installed.name).symlink_to(installed)
    return str(folder / "bin" / "python")
