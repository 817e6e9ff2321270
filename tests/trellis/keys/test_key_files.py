"""Whether a file of keys is there: yes, no, or nobody can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from trellis.errors import ConfigError
from trellis.keys.files import present


def test_what_is_not_there_or_lies_below_a_file_is_absent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert present(tmp_path / "file")
    assert not present(tmp_path / "none")
    assert not present(tmp_path / "file" / "below")
    assert not present(tmp_path / "dangling")


def test_what_cannot_be_looked_for_is_not_taken_for_absent(tmp_path: Path) -> None:
    # Root may look into every folder: a circle of links is refused to everybody.
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ConfigError, match=r"circle/tls\.key: Too many levels of symbolic links"):
        present(tmp_path / "circle" / "tls.key")
