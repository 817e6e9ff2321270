"""What data a demo takes, and what its task is for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trellis.cli.demo.plan import DemoData, DemoPlan, describe, plan_demo
from trellis.errors import DataError

LABELS = np.array([0, 2, 1, 0])


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def plan(data: str = "digits", **changed: Any) -> DemoPlan:
    options = {"regions": 1, "devices": 2, "rounds": 10, "model": None, "strategy": "fedavg", "split": "iid"}
    return plan_demo(data=data, **{**options, **changed})


@pytest.mark.parametrize(
    ("x", "shape", "model"),
    [
        (np.zeros((4, 28, 28), np.uint8), (1, 28, 28), "lenet5"),
        (np.zeros((4, 1, 28, 28), np.uint8), (1, 28, 28), "lenet5"),
        (np.zeros((4, 3, 8, 8), np.uint8), (3, 8, 8), "mlp"),
        (np.zeros((4, 6, 128), np.float32), (6, 128), "mlp"),
        (np.zeros((4, 5), np.uint8), (5,), "mlp"),
    ],
)
def test_a_sample_has_the_shape_in_which_devices_read_it(
    tmp_path: Path, x: np.ndarray[Any, Any], shape: tuple[int, ...], model: str
) -> None:
    path = saved(tmp_path, x=x, y=LABELS)
    assert describe(str(path)) == DemoData(f"mine={path}", "mine", shape, 3, 4)
    assert describe(f"other={path}") == DemoData(f"other={path}", "other", shape, 3, 4)
    assert plan(str(path)).model == model


def test_of_two_splits_the_training_one_is_described(tmp_path: Path) -> None:
    x = np.zeros((4, 5), np.float32)
    path = saved(tmp_path, x_train=x, y_train=LABELS, x_test=x[:1], y_test=LABELS[:1])
    assert (describe(str(path)).samples, describe(str(path)).classes) == (4, 3)


def test_a_folder_is_taken_for_mnist(tmp_path: Path) -> None:
    found = describe(f"fashion={tmp_path}")
    assert found == DemoData(f"fashion={tmp_path}", "fashion", (1, 28, 28), 10, 60_000)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": np.zeros(4), "y": LABELS}, r"has x of shape \(4,\), \(samples, …\) is due"),
        ({"x": np.zeros((0, 5)), "y": LABELS[:0]}, r"has x of shape \(0, 5\), \(samples, …\) is due"),
        ({"x": np.zeros((4, 5))}, "is no NPZ file with x_train and y_train, or x and y: "),
        ({"x_train": np.zeros((4, 5)), "y": LABELS}, "is no NPZ file with x_train and y_train, or x and y: "),
    ],
)
def test_data_without_samples_or_labels_are_refused(
    tmp_path: Path, arrays: dict[str, Any], problem: str
) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=rf"^data '{path}': {problem}"):
        describe(str(path))


def test_few_samples_are_gone_over_twice_in_small_batches(tmp_path: Path) -> None:
    few, many = plan().task(8000), plan(str(tmp_path)).task(8000)
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
