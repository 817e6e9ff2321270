"""What LiteRT notes at its first run is kept off the terminal, and costs no file for ever."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graph_files import write_tflite

from models.backends import tflite
from models.exported import read_artefact


@pytest.fixture
def first_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tflite.TfliteRuntime:
    """Return a runtime whose next run is the process's first; its program, only to be read, merely talks."""
    monkeypatch.setattr(tflite, "_quiet_from_now", threading.Event())
    path = write_tflite(tmp_path / "tiny.tflite")
    runtime = tflite.open_runtime(read_artefact(path, runtime="tflite", purpose="training"), threads=1)

    def talk(**_: Any) -> dict[str, Any]:
        os.write(2, b"INFO: Created a delegate.\nERROR: something\n")
        return {"loss": 0.0, "correct": 0.0}

    monkeypatch.setitem(runtime._programs, "eval", talk)
    return runtime


def open_files() -> set[tuple[str, str]]:
    """Return what stands behind each descriptor."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((name, str(Path("/proc/self/fd", name).readlink())))
    return found


@contextlib.contextmanager
def no_file_opened_or_closed() -> Iterator[None]:
    """Assert that the same files are open afterwards; no collection closes others' meanwhile."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        before = open_files()
        yield
        assert open_files() == before
    finally:
        if collects:
            gc.enable()


def test_without_a_place_for_temporary_files_no_run_leaves_a_file_open_and_one_tries(
    first_run: tflite.TfliteRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[int] = []
    temporary_file = tempfile.TemporaryFile

    def tried() -> Any:
        tries.append(1)
        return temporary_file()

    monkeypatch.setattr(tempfile, "TemporaryFile", tried)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with no_file_opened_or_closed():
        for _ in range(5):
            first_run.run("eval", {})
    assert len(tries) == 1


def test_after_the_first_run_stderr_is_what_it_was_and_has_what_is_no_note(
    first_run: tflite.TfliteRuntime, capfd: pytest.CaptureFixture[str]
) -> None:
    with no_file_opened_or_closed():
        first_run.run("eval", {})
        assert capfd.readouterr().err == "ERROR: something\n"
        first_run.run("eval", {})
        assert capfd.readouterr().err.startswith("INFO: ")  # nobody holds it up any more
