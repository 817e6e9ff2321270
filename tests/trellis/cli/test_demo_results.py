"""Where a demo's result goes: to a folder of its own, which is all that a failed one takes away again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from models.demo_command import describe
from trellis.cli.demo import running
from trellis.cli.demo.plan import plan_demo
from trellis.cli.demo.running import _make_result_folder, _play
from trellis.errors import ConfigError, TrellisError

PLAN = plan_demo(
    regions=1, devices=1, rounds=1, data=describe("digits"), model=None, strategy="fedavg", split="iid"
)


@pytest.fixture(autouse=True)
def one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that happens here happens in one and the same second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    return tmp_path


class FailingStage:
    """Fails after its model was fetched."""

    def __init__(self, _plan: object, _folder: Path, result: Path) -> None:
        self._result = result

    async def play(self, _screen: object) -> dict[str, Any]:
        (self._result / "model.safetensors").write_bytes(b"mine")
        raise TrellisError("the evaluation failed")


def test_two_demos_in_one_second_have_each_a_folder() -> None:
    folders = [_make_result_folder(Path("runs")) for _ in range(3)]
    assert [str(folder) for folder in folders] == [
        "runs/demo-20260102-030405",
        "runs/demo-20260102-030405-2",
        "runs/demo-20260102-030405-3",
    ]
    assert all(folder.is_dir() for folder in folders)


async def test_a_failed_demo_leaves_the_other_ones_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = _make_result_folder(Path("runs"))
    (first / "model.safetensors").write_bytes(b"the first one's")
    monkeypatch.setattr(running, "Stage", FailingStage)
    with pytest.raises(TrellisError, match="the evaluation failed"):
        await _play(PLAN, keep=False)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in left] == [b"the first one's"]


@pytest.mark.parametrize("there", [False, True])
async def test_a_failed_demo_removes_runs_only_if_it_made_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    if there:
        (tmp_path / "runs").mkdir()
    monkeypatch.setattr(running, "Stage", FailingStage)
    with pytest.raises(TrellisError, match="the evaluation failed"):
        await _play(PLAN, keep=False)
    assert [path.name for path in tmp_path.iterdir()] == (["runs"] if there else [])
    assert not there or list((tmp_path / "runs").iterdir()) == []


async def test_a_folder_that_cannot_be_made_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"folder 'runs/demo-.*cannot be made"):
        await _play(PLAN, keep=False)
