"""Where what is fetched is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from trellis.artefacts.store import ArtefactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "cache")
