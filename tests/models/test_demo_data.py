"""What data a demo takes, and what its task is for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.demo_command import describe
from trellis.cli.demo.plan import DemoData, DemoPlan, plan_demo
from trellis.errors import DataError

LABELS = np.repeat([0, 2, 1], 5)
"""Of each class a fifth is held out: 12 samples are left to train with."""


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def plan(data: str = "digits", **changed: Any) -> DemoPlan:
    options = {"regions": 1, "devices": 2, "rounds": 10, "model": None, "strategy": "fedavg", "split": "iid"}
    return plan_demo(data=describe(data), **{**options, **changed})


@pytest.mark.parametrize(
    ("x", "shape", "model"),
    [
        (np.zeros((15, 28, 28), np.uint8), (1, 28, 28), "lenet5"),
        (np.zeros((15, 1, 28, 28), np.uint8), (1, 28, 28), "lenet5"),
        (np.zeros((15, 3, 8, 8), np.uint8), (3, 8, 8), "mlp"),
        (np.zeros((15, 6, 128), np.float32), (6, 128), "mlp"),
        (np.zeros((15, 5), np.uint8), (5,), "mlp"),
    ],
)
def test_a_sample_has_the_shape_in_which_devices_read_it(
    tmp_path: Path, x: np.ndarray[Any, Any], shape: tuple[int, ...], model: str
) -> None:
    path = saved(tmp_path, x=x, y=LABELS)
    assert describe(str(path)) == DemoData(f"mine={path}", "mine", shape, 3, 12)
    assert describe(f"other={path}") == DemoData(f"other={path}", "other", shape, 3, 12)
    assert plan(str(path)).model == model


@pytest.mark.parametrize("file", ["My Data.npz", "lr=0.1.npz", "Upper.npz", f"{'n' * 64}.npz"])
def test_data_whose_name_a_task_does_not_take_are_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, x=np.zeros((15, 5), np.float32), y=LABELS).rename(file)
    with pytest.raises(DataError) as caught:
        describe(file)
    assert str(caught.value) == (
        f"data {file!r}: data.name: is called {file[:-4]!r}; up to 63 of a-z, 0-9, '_', '.' and '-' are a "
        "task's name for data (name it: --data NAME=PATH)"
    )
    named = describe(f"mine={file}")
    assert (named.source, named.name) == (f"mine={tmp_path / file}", "mine")


def test_of_two_splits_the_training_one_is_described(tmp_path: Path) -> None:
    x = np.zeros((15, 5), np.float32)
    path = saved(tmp_path, x_train=x, y_train=LABELS, x_test=x[:1], y_test=LABELS[:1])
    assert (describe(str(path)).samples, describe(str(path)).classes) == (15, 3)


def test_a_folder_of_images_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "beans"
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (16, 12), (label, number, 0)).save(folder / str(label) / f"{number}.png")
    assert describe(str(folder)) == DemoData(f"beans={folder}", "beans", (3, 12, 16), 2, 8)
    assert plan(str(folder)).task(8000).data.shape == (3, 12, 16)


def test_a_table_is_looked_at_by_its_column_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"{number},{number % 2},1\n" for number in range(20))
    (tmp_path / "mine.csv").write_text(f"a,income,b\n{rows}")
    monkeypatch.chdir(tmp_path)
    # The processes run in another folder.
    assert describe("mine.csv#income") == DemoData(f"mine={tmp_path}/mine.csv#income", "mine", (2,), 2, 16)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": np.zeros(4), "y": LABELS}, r"x has shape \(4,\), \(samples, \.\.\.\) is due"),
        ({"x": np.zeros((0, 5)), "y": LABELS[:0]}, "holds samples of one class .give data of two"),
        ({"x": np.zeros((15, 5))}, "holds x; x_train, y_train, x_test and y_test, or x and y are due"),
        ({"x": np.zeros((15, 5)), "y": LABELS * 0}, "holds samples of one class .give data of two"),
        ({"x": np.zeros((6, 5)), "y": LABELS[3:9]}, "none of its 6 samples, labels 0 to 2, is left to test"),
        ({"x_train": np.zeros((15, 5)), "y_train": LABELS}, "has no test samples"),
        ({"x": np.full((15, 5), np.nan), "y": LABELS}, "12 samples hold NaN or infinity"),
        (
            {"x_train": np.zeros((15, 5)), "y_train": LABELS, "x_test": np.zeros((15, 4)), "y_test": LABELS},
            r"samples have shape \(4,\), the task wants \(5,\)",
        ),
        (
            {
                "x_train": np.zeros((0, 5)),
                "y_train": LABELS[:0],
                "x_test": np.zeros((15, 5)),
                "y_test": LABELS,
            },
            r"holds no train samples \(give data that have some\)",
        ),
    ],
)
def test_data_that_a_task_could_not_use_are_refused(
    tmp_path: Path, arrays: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        describe(str(saved(tmp_path, **arrays)))


def test_few_samples_are_gone_over_twice_in_small_batches(tmp_path: Path) -> None:
    x, y = np.zeros((10_000, 1), np.uint8), np.arange(10_000) % 2
    path = saved(tmp_path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    few, many = plan().task(8000), plan(str(path)).task(8000)
    assert (few.train.local_epochs, few.train.batch_size) == (2, 16)
    assert (many.train.local_epochs, many.train.batch_size) == (1, 32)
    for task in (few, many):
        assert (task.task, task.train.rounds, task.train.seed) == ("demo", 10, 42)
        assert (task.train.learning_rate, task.train.momentum) == (0.05, 0.9)
        assert (set(task.evaluate.on), task.evaluate.every) == ({"server", "devices"}, 1)


def test_all_devices_may_take_part_and_those_that_wait_for_an_export_have_longer() -> None:
    usual, many = plan().task(8000).participants, plan(devices=101).task(8000).participants_at("eu-1")
    assert (usual.maximum, many.minimum, many.maximum) == (100, 101, 101)
    waits = plan(backends=("torch", "onnx")).task(8000).participants
    assert (waits.deadline_s, usual.deadline_s < 300) == (300.0, True)


def test_regions_beyond_the_sixth_are_numbered() -> None:
    assert plan(regions=8, devices=8).regions[4:] == ("af-1", "oc-1", "region-7", "region-8")


def test_eight_devices_are_a_process_each_and_nine_share_one() -> None:
    assert len(plan(devices=8).processes) == 8
    assert len(plan(devices=9).processes) == 1
    assert len(plan(devices=2, backends=("torch", "onnx")).processes) == 2
