"""Exports in child processes: once for each model and runtime, found again, and ended with the server."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from central_server import exporting
from central_server.exporting import Exporter, Wanted, export_command
from models.registry import ModelSpec
from tests.central_server.export_parts import WANTED, Child, child, made, not_yet
from trellis.artefacts import store
from trellis.artefacts.offer import Offer
from trellis.descriptor import parse_mapping
from trellis.processes import PidFile

__all__ = ["child"]  # a fixture


async def test_an_export_is_made_once_however_many_ask(tmp_path: Path, child: Child) -> None:
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        offers = await asyncio.gather(*(made(exporter) for _ in range(5)))
        await made(exporter, later := replace(WANTED, model="mlp"))  # behind whatever waits for its turn
    assert set(offers) == {offers[0]}
    path = exporter.store.find(offers[0].sha256)
    assert path is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == offers[0].sha256
    assert {one.name for one in (tmp_path / "artefacts").iterdir() if one.suffix != ".json"} == {"files"}
    assert child.runs == [str(WANTED), str(later)]


async def test_every_model_shape_and_runtime_has_its_own(tmp_path: Path, child: Child) -> None:
    others = [
        WANTED,
        replace(WANTED, model="mlp"),
        replace(WANTED, shape=(64,)),
        replace(WANTED, classes=2),
        replace(WANTED, runtime="tflite"),
        replace(WANTED, batch=16),
    ]
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        offers = [await made(exporter, one) for one in others]
    assert len({offer.sha256 for offer in offers}) == 5  # the stand-in writes no batch
    assert sorted(child.runs) == sorted(map(str, others))


def _other_trellis(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(exporting, "__version__", "another")


def _other_torch(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(exporting, "version", lambda tool: "9" if tool == "torch" else version(tool))


def _other_model(_: pytest.MonkeyPatch, source: Path) -> None:
    source.write_text("layers = 2")


EXPORTERS = [
    "export/graph.py",
    "export/decompositions/pooling.py",
    "exported/onnx_file.py",
    "manifest.py",
    "backends/torch.py",
]


@pytest.mark.parametrize("changed", EXPORTERS)
def test_an_export_follows_from_all_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(exporting.models, "__file__", str(tmp_path / "__init__.py"))
    for name in (*EXPORTERS, "backends/graph.py"):
        assert (Path(__file__).parents[2] / "models" / name).is_file(), "it is there in earnest"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("operators = 1")
    digest = exporting._source_digest("softmax")
    (tmp_path / "backends" / "graph.py").write_text("what a device has")
    assert exporting._source_digest("softmax") == digest
    (tmp_path / changed).write_text("operators = 2")
    assert exporting._source_digest("softmax") != digest


@pytest.mark.parametrize("change", [_other_trellis, _other_torch, _other_model])
async def test_a_later_server_finds_it_again_until_what_it_follows_from_changes(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    source = tmp_path / "zoo" / "softmax.py"
    source.parent.mkdir()
    source.write_text("layers = 1")
    monkeypatch.setattr(exporting, "_source_folder", lambda _: source.parent)
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        first = await made(exporter)
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        assert await exporter.offer(WANTED) == first
        assert len(child.runs) == 1
        monkeypatch.setattr(exporting, "SOURCE_HELD_S", 0.0)
        change(monkeypatch, source)
        await made(exporter)
    assert len(child.runs) == 2


async def test_a_fleet_that_asks_costs_no_reading_of_sources_and_files(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[str] = []
    files: list[Path] = []
    digest_of_source, digest_of = exporting._source_digest, store.digest_of
    monkeypatch.setattr(
        exporting, "_source_digest", lambda model: sources.append(model) or digest_of_source(model)
    )
    monkeypatch.setattr(store, "digest_of", lambda path: files.append(path) or digest_of(path))
    monkeypatch.setattr(exporting, "SOURCE_HELD_S", 600.0)
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        await asyncio.gather(*(made(exporter) for _ in range(50)))
        await asyncio.gather(*(made(exporter) for _ in range(50)))
        assert sources == ["softmax"]
        assert len(files) == 2, "what was made, to name it, and what is kept under that name"
        await exporter.begin(WANTED)
        assert len(sources) == 2, "a task that begins may come because it was mended"
        monkeypatch.setattr(exporting, "SOURCE_HELD_S", 0.0)
        await exporter.offer(WANTED)
        assert (len(sources), len(files)) == (3, 2)


async def test_a_note_that_cannot_be_read_is_made_anew(tmp_path: Path, child: Child) -> None:
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        first = await made(exporter)
    (note,) = (tmp_path / "artefacts").glob("*.json")
    note.write_bytes(b"{")
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        assert await made(exporter) == first
        assert Offer.parse(note.read_bytes(), where="") == first
    assert len(child.runs) == 2


async def test_what_a_crash_left_half_made_is_no_export(tmp_path: Path, child: Child) -> None:
    making = tmp_path / "artefacts" / "making"
    making.mkdir(parents=True)
    (making / "made.onnx").write_text("half")
    child.how = "nothing"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        await not_yet(exporter, "wrote no file")


async def test_exports_run_one_after_the_other(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "with open(sys.argv[1], 'a') as log: log.write('begins ')\n"
        "time.sleep(0.1)\n"
        "pathlib.Path(sys.argv[2]).write_text('made')\n"
        "with open(sys.argv[1], 'a') as log: log.write('ends ')\n"
    )

    def command(_: Wanted, path: Path) -> Sequence[str]:
        return [sys.executable, "-c", program, str(tmp_path / "log"), str(path)]

    async with Exporter(tmp_path / "artefacts", command) as exporter:
        await asyncio.gather(made(exporter), made(exporter, replace(WANTED, model="mlp")))
    assert (tmp_path / "log").read_text() == "begins ends " * 2


async def test_a_file_that_the_disk_has_spoilt_is_made_anew(tmp_path: Path, child: Child) -> None:
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        first = await made(exporter)
        (exporter.store.folder / first.sha256).write_bytes(b"spoilt")
        assert await made(exporter) == first
        path = exporter.store.find_intact(first.sha256)
    assert path is not None
    assert len(child.runs) == 2


class Built:
    """A model that an object builds."""

    def __call__(self, shape: tuple[int, ...], classes: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("build", [Built(), partial(Built().__call__), partial(partial(print), 1)])
async def test_a_model_may_be_built_by_anything_that_can_be_called(
    tmp_path: Path, child: Child, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_model", lambda name: ModelSpec(name, "odd", build))
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        await exporter.begin(WANTED)
        await made(exporter)


async def test_the_child_is_ended_with_the_server(tmp_path: Path, child: Child) -> None:
    child.how = "slow"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        await exporter.begin(WANTED)
        noted = tmp_path / "artefacts" / "export.pid"
        async with asyncio.timeout(60):
            while not (child.works and noted.exists()):  # noqa: ASYNC110 - another process says it, in a file
                await asyncio.sleep(0.02)
        (running,) = child.processes
        assert str(running.pid) in noted.read_text()
        began = time.monotonic()
    assert time.monotonic() - began < 20, "it sleeps for 60 s"
    assert not child.processes
    assert not (tmp_path / "artefacts" / "export.pid").exists()


async def test_what_a_killed_server_left_is_ended_at_the_next_start(tmp_path: Path, child: Child) -> None:
    (tmp_path / "artefacts").mkdir()
    left = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    PidFile(tmp_path / "artefacts" / "export.pid").write(left.pid)
    async with Exporter(tmp_path / "artefacts", child):
        assert await asyncio.wait_for(left.wait(), 40) != 0


def test_a_tflite_graph_has_the_tasks_batch_and_an_onnx_graph_any() -> None:
    value = {
        "task": "digits",
        "regions": ["eu-1"],
        "server": {"address": "127.0.0.1:8000", "tls": False},
        "model": {"name": "softmax"},
        "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
        "train": {"rounds": 1, "batch_size": 16, "learning_rate": 0.1},
    }
    task = parse_mapping(value)
    assert Wanted.of(task, "onnx") == WANTED
    assert Wanted.of(task, "tflite") == replace(WANTED, runtime="tflite", batch=16)
    value["train"] = {"rounds": 1, "batch_size": 60_000, "learning_rate": 0.1}
    assert Wanted.of(parse_mapping(value), "tflite").batch == exporting.MOST_BATCH


def test_our_own_exporter_is_asked_by_its_command_line(tmp_path: Path) -> None:
    command = export_command(WANTED, tmp_path / "made")
    assert command[1:] == [
        *("-m", "trellis", "export", "softmax", "--shape", "1,8,8", "--classes", "10"),
        *("--format", "onnx", "--for", "training", "-o", str(tmp_path / "made")),
    ]
    sized = export_command(replace(WANTED, batch=16), tmp_path / "made")
    assert sized[sized.index("--batch") + 1] == "16"
