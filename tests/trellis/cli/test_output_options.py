"""Where a command shall write is looked at before it does anything else, by every option that says so."""

from __future__ import annotations

import os
from pathlib import Path

import click
import numpy as np
import pytest

from models.artefacts import ModelCard, save_model
from trellis.cli import main
from trellis.cli.root import every_command

WRITERS = {
    "task sign --output": ("task", "sign", "none.yaml", "-o"),
    "export --output": (
        *("export", "softmax", "--format", "onnx", "--for", "training", "--shape", "4", "--classes", "2"),
        "-o",
    ),
    "predict --output": ("predict", "--model", "none.onnx", "--data", "digits", "-o"),
    "model get --output": ("model", "get", "digits", "--server", "http://127.0.0.1:1", "-o"),
    "demo --json": ("demo", "--json"),
}
WRONG = {
    "none/out.json": "folder 'none' does not exist: make it, or name another",
    ".": "is a folder: name a file in it",
    "folder": "is a folder: name a file in it",
    "file/out.json": "'file' is no folder: name another",
    "pipe": "is no ordinary file: name another one",
    # A folder that takes nothing of anybody, root included.
    "/proc/out.json": "cannot be written: ",
    "x" * 256: "cannot be written: File name too long: name another file",
    "x" * 250: "cannot be written: File name too long: name another file",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_cannot_be_written_is_told_with_its_option(
    writer: str, wrong: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WRITERS[writer], wrong]) == 2
    told = capsys.readouterr()
    option = writer.rpartition(" ")[2]
    assert told.out == ""
    assert told.err.startswith(f"error: {option} {wrong!r}: {WRONG[wrong]}")
    assert told.err.count("\n") == 1
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "folder", "pipe"]


def test_what_stands_there_is_left_alone_until_there_is_something_to_write(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WRITERS["task sign --output"], "file"]) == 2
    assert "task file 'none.yaml': cannot be read" in capsys.readouterr().err
    assert (folder / "file").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["file", "folder", "pipe"]


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--output", ("task", "sign", "file", "-o", "file")),
        ("--output", ("predict", "--model", "file", "--data", "digits", "-o", "file")),
        ("--output", ("predict", "--model", "none.onnx", "--data", "mine=file", "-o", "file")),
        ("--json", ("demo", "--data", "file", "--json", "file")),
    ],
)
def test_what_a_command_reads_it_does_not_write(
    option: str, arguments: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments]) == 2
    told = capsys.readouterr().err
    assert told == f"error: {option} 'file': is read by the same command: name another one\n"
    assert (folder / "file").read_text() == "mine"


def test_these_are_all_the_options_that_name_a_file_to_write() -> None:
    found = set()
    for name, command in every_command().items():
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        for rest, one in inner.items():
            found |= {
                f"{name} {rest} {option}".replace("  ", " ")
                for parameter in one.params
                if isinstance(parameter, click.Option) and not parameter.is_flag
                for option in parameter.opts
                if option in {"--output", "--json"}
            }
    assert found == set(WRITERS)


@pytest.mark.parametrize("writer", ["task sign --output", "predict --output"])
def test_a_disk_that_is_full_is_told_and_no_fault_of_the_input(
    writer: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init"]) == 0
    arrays = {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    save_model(folder / "m.safetensors", arrays, ModelCard("softmax", (1, 8, 8), 10, "t", 1).metadata())
    arguments = {
        "task sign --output": ("task", "sign", "task.yaml", "-o", "/dev/full"),
        "predict --output": ("predict", "--model", "m.safetensors", "--data", "digits", "-o", "/dev/full"),
    }
    capsys.readouterr()
    assert main([*arguments[writer]]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: /dev/full cannot be written: No space left on device; free space there\n"
