"""What is told of an export that failed, and what its process sees of the server's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from central_server.export_child import _environment, _error_of, run_export
from trellis.errors import Refused, TrellisError
from trellis.processes import PidFile


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ("error: no operator\n", "no operator"),
        ("noise\nerror: first\nmore noise\nerror: no\n  operator\n\n", "no operator"),
        ("error: " + "x" * 2000, "x" * 1000),
    ],
)
def test_what_the_exporter_says_itself_is_the_models_fault(said: str, due: str) -> None:
    error = _error_of(said, 2)
    assert isinstance(error, Refused)
    assert (error.code, str(error)) == ("export", due)


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ("", "it said nothing"),
        (" \n", "it said nothing"),
        ("Traceback\nMemoryError: of\t9 GB\n", "MemoryError: of 9 GB"),
        ("an error: in the middle", "an error: in the middle"),
    ],
)
def test_any_other_end_may_pass(said: str, due: str) -> None:
    error = _error_of(said, -9)
    assert type(error) is TrellisError
    assert str(error) == f"its process ended with status -9: {due}"


def test_the_child_has_our_modules_and_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS_STATE_DIR", "/nowhere")
    monkeypatch.setenv("OURS", "kept")
    monkeypatch.setattr(sys, "path", ["", "/a", "/b"])
    found = _environment()
    assert (found["OURS"], found["PYTHONPATH"]) == ("kept", os.pathsep.join(["/a", "/b"]))
    assert "TRELLIS_STATE_DIR" not in found


async def test_only_the_end_of_all_that_is_said_is_kept(tmp_path: Path) -> None:
    program = "import sys; sys.stderr.write('error: old\\n' + 'x' * 100_000 + '\\nlast words'); sys.exit(3)"
    with pytest.raises(TrellisError, match=r"^its process ended with status 3: last words$"):
        await run_export(
            [sys.executable, "-c", program], tmp_path, PidFile(tmp_path / "export.pid"), limit_s=30
        )
    assert list(tmp_path.iterdir()) == []


async def test_its_folder_is_where_it_works_and_keeps_what_is_temporary(tmp_path: Path) -> None:
    program = (
        "import os, tempfile; open(os.path.join(tempfile.gettempdir(), 'there'), 'x'); open('here', 'x')"
    )
    pid_file = PidFile(tmp_path.parent / "export.pid")
    await run_export([sys.executable, "-c", program], tmp_path, pid_file, limit_s=30)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "here"}
