"""A data set in memory: its scaling, and its check against what a task demands."""

from __future__ import annotations

import numpy as np
import pytest

from models.datasets import Dataset, Normalize, check, check_for_model, scale
from trellis.errors import DataError


def _pictures(x: object, y: list[int], name: str = "mnist", dtype: type = np.uint8) -> Dataset:
    return Dataset(name, np.array(x, dtype=dtype).reshape(len(y), 1, 1, -1), np.array(y, dtype=np.int64), 10)


def test_a_data_set_knows_its_length_and_shape_and_takes_samples_in_order() -> None:
    whole = _pictures([1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert (len(whole), whole.shape) == (3, (1, 1, 2))
    part = whole.take(np.array([2, 0]))
    assert (part.x.tolist(), part.y.tolist()) == ([[[[5, 6]]], [[[1, 2]]]], [9, 7])
    part.x[:] = 0
    assert whole.x.max() == 6


def test_bytes_are_scaled_to_one_and_then_normalised() -> None:
    # 51 / 255 = 0.2; (0.2 - 0.1) / 0.5 = 0.2
    assert scale(_pictures([0, 51, 255], [0, 1, 2]), None).x.ravel() == pytest.approx([0, 0.2, 1])
    scaled = scale(_pictures([51], [0]), Normalize(mean=0.1, std=0.5))
    assert scaled.x.dtype == np.float32
    assert scaled.x.item() == pytest.approx(0.2, abs=1e-6)


def test_scaling_leaves_floats_and_what_came_alone() -> None:
    came = _pictures([0.25, 3.0], [0, 1], dtype=np.float32)
    scaled = scale(came, Normalize(mean=1.0, std=2.0))
    assert scaled.x.ravel().tolist() == [-0.375, 1.0]
    assert came.x.ravel().tolist() == [0.25, 3.0]
    assert scale(came, None).x.ravel().tolist() == [0.25, 3.0]


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deviation_that_cannot_be_divided_by_is_refused(std: float) -> None:
    with pytest.raises(DataError, match=r"data.normalize: mean 0.0 and std .* came, both must be finite"):
        scale(_pictures([1], [0]), Normalize(0.0, std))


def test_data_that_meet_the_demands_pass() -> None:
    check(_pictures([1, 2], [0, 9]), name="mnist", shape=(1, 1, 1), classes=10, min_samples=2)


def test_every_demand_that_is_missed_is_named() -> None:
    x = [[0.0, float("nan")], [1.0, 1.0], [float("inf"), 0.0]]
    held = _pictures(x, [-1, 3, 10], name="images", dtype=np.float32)
    with pytest.raises(DataError) as caught:
        check(held, name="mnist", shape=(1, 28, 28), classes=10, min_samples=100)
    assert str(caught.value) == (
        "data set 'images': 5 faults\n"
        "  - data.name: holds 'images', the task wants 'mnist' "
        "(if it is the right data, name it: --data mnist=PATH)\n"
        "  - data.shape: samples have shape (1, 1, 2), the task wants (1, 28, 28)\n"
        "  - data.classes: labels run from -1 to 10, the task wants 0 to 9\n"
        "  - data: 2 samples hold NaN or infinity, the first is number 0\n"
        "  - data.min_samples: holds 3 samples, the task wants at least 100"
    )


def test_no_samples_at_all_are_too_few() -> None:
    empty = Dataset("mnist", np.zeros((0, 1, 2), np.float32), np.zeros(0, np.int64), 10)
    with pytest.raises(DataError, match=r"data\.min_samples: holds 0 samples, the task wants at least 1"):
        check(empty, name="mnist", shape=(1, 2), classes=10, min_samples=1)


def test_what_a_model_cannot_answer_to_is_said_of_the_model_and_not_of_a_task() -> None:
    with pytest.raises(DataError) as caught:
        check_for_model(_pictures([1, 2], [0, 10]), shape=(1, 2, 2), classes=10)
    assert str(caught.value) == (
        "data set 'mnist': 2 faults\n"
        "  - data.shape: samples have shape (1, 1, 1), the model wants (1, 2, 2)\n"
        "  - data.classes: labels run from 0 to 10, the model wants 0 to 9"
    )
    nothing = _pictures([1], [1]).take(np.array([], np.intp))
    with pytest.raises(DataError, match=r"data set 'mnist': holds no samples \(give data that hold some\)"):
        check_for_model(nothing, shape=(1, 1, 1), classes=10)
