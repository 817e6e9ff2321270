"""The central server's fixtures; what they are made of stands in `parts.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.central_server.parts import Launcher


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path / "runs")
