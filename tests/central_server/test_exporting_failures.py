"""Exports that fail: what is the model's fault stays so, and what may pass is tried again after a rest."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from held_clock import HeldClock

from central_server import export_child, exporting
from central_server.exporting import Exporter
from models.registry import ModelSpec
from tests.central_server.export_parts import WANTED, Child, child, made, not_yet
from trellis.errors import Refused, Unavailable

__all__ = ["child"]  # a fixture


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    return HeldClock.of(exporting, monkeypatch)


def test_what_failed_rests_twice_as_long_each_time_and_ten_minutes_at_most(clock: HeldClock) -> None:
    rests_s = [exporting._Failure("", "", False, tries, clock.now).rests_s for tries in (1, 2, 3, 5, 6, 5000)]
    assert rests_s == [30, 60, 120, 480, 600, 600]


async def test_a_failure_is_kept_with_its_reason_until_a_task_begins_anew(
    tmp_path: Path, child: Child
) -> None:
    child.how = "bad"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        for _ in range(2):
            with pytest.raises(Refused, match=r"cannot export softmax for onnx.*operator aten::odd") as error:
                await made(exporter)
            assert error.value.code == "export"
        assert "noise" not in str(error.value)
        assert len(child.runs) == 1
        child.how = "good"
        await exporter.begin(WANTED)
        await made(exporter)
    assert sorted(path.suffix for path in (tmp_path / "artefacts").iterdir()) == ["", ".json"]


@pytest.mark.parametrize(
    ("how", "problem"),
    [("kill", "ended with status -9"), ("nothing", "wrote no file"), ("slow", "longer than 1 s")],
)
async def test_what_may_pass_is_tried_again_after_a_while(
    tmp_path: Path, child: Child, clock: HeldClock, monkeypatch: pytest.MonkeyPatch, *, how: str, problem: str
) -> None:
    if how == "slow":
        monkeypatch.setattr(exporting, "EXPORT_S", 1.0)
    child.how = how
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        told = await not_yet(exporter, problem)
        assert told.again_s == 30
        clock.now += 28
        told = await not_yet(exporter, "tries again in 2 s")
        assert told.again_s == 2
        assert len(child.runs) == 1
        assert not child.processes
        clock.now += 2
        monkeypatch.setattr(exporting, "EXPORT_S", 600.0)
        child.how = "good"
        await made(exporter)
    assert len(child.runs) == 2


async def test_what_fails_again_and_again_rests_longer_each_time(
    tmp_path: Path, child: Child, clock: HeldClock
) -> None:
    child.how = "nothing"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        for rests_s in (30, 60, 120):
            told = await not_yet(exporter, "tries again in")
            assert str(told).endswith(f"tries again in {rests_s} s")
            clock.now += rests_s
    assert len(child.runs) == 3


async def test_what_fails_five_times_is_told_as_the_models_fault_and_tried_no_more(
    tmp_path: Path, child: Child, clock: HeldClock
) -> None:
    child.how = "kill"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        for _ in range(4):
            await not_yet(exporter, "tries again in")
            clock.now += 600
        with pytest.raises(Refused, match=r"ended with status -9: .*; it was tried 5 times") as error:
            await made(exporter)
        clock.now += 6000
        with pytest.raises(Refused, match="it was tried 5 times"):
            await exporter.offer(WANTED)
        assert error.value.code == "export"
        assert len(child.runs) == 5
        child.how = "good"
        await exporter.begin(WANTED)
        await made(exporter)


async def test_a_full_disk_is_waited_for_however_long_it_takes(
    tmp_path: Path, child: Child, clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = iter([True] * 6)
    monkeypatch.setattr(export_child, "has_room", lambda _: not next(full, False))
    child.how = "full"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        for _ in range(6):
            await not_yet(exporter, "No space left")
            clock.now += 600
        child.how = "kill"
        await not_yet(exporter, "ended with status -9")  # the first of its kind


async def test_what_could_not_be_exported_is_tried_anew_once_its_source_has_changed(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SOURCE_HELD_S", 0.0)
    child.how = "bad"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        with pytest.raises(Refused, match="cannot export"):
            await made(exporter)
        monkeypatch.setattr(exporting, "__version__", "another")
        child.how = "good"
        await made(exporter)
    assert len(child.runs) == 2


async def test_a_full_disk_is_not_the_models_fault(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_child, "has_room", lambda _: False)
    child.how = "full"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        await not_yet(exporter, "No space left")


async def test_an_empty_export_is_a_failure_that_is_kept(tmp_path: Path, child: Child) -> None:
    child.how = "empty"
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        for _ in range(2):
            with pytest.raises(Refused, match="is empty"):
                await made(exporter)
    assert len(child.runs) == 1


async def test_a_source_that_cannot_be_read_ends_no_server(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "broken.py").mkdir(parents=True)  # reads as no file does
    module = SimpleNamespace(__file__=str(package / "model.py"))
    monkeypatch.setitem(sys.modules, "broken_package", cast(ModuleType, module))
    build = SimpleNamespace(__module__="broken_package")
    monkeypatch.setattr(exporting, "find_model", lambda _: ModelSpec("softmax", "", cast(Any, build)))
    async with Exporter(tmp_path / "artefacts", child) as exporter:
        await exporter.begin(WANTED)
        with pytest.raises(Unavailable, match="source of model 'softmax' cannot be read"):
            await exporter.offer(WANTED)
