"""Which samples measure the ranges of a model, and in which pieces they go through it."""

from __future__ import annotations

import graph_files
import numpy as np
import pytest

from models.datasets import Dataset
from models.manifest import Manifest, Program, Scaling
from models.quantization.calibration import batches, calibration_samples
from trellis.errors import DataError


def trained(batch: int | None = None) -> Manifest:
    return graph_files.manifest(
        "onnx",
        purpose="inference",
        programs={"predict": Program(inputs={"x": "x"}, outputs={"logits": "z"})},
        normalize=Scaling(mean=0.5, std=0.25),
        batch=batch,
    )


def data(samples: int) -> Dataset:
    x = np.linspace(0, 1, samples * 3, dtype=np.float32).reshape(samples, 3)
    return Dataset("line", x, np.zeros(samples, np.int64), 2)


@pytest.mark.parametrize(("there", "taken"), [(1, 1), (511, 511), (512, 512), (2000, 512)])
def test_up_to_512_samples_are_drawn_each_once_and_always_alike(there: int, taken: int) -> None:
    drawn = calibration_samples(data(there), trained())
    assert drawn.shape == (taken, 3)
    assert len(np.unique(drawn[:, 0])) == taken
    np.testing.assert_array_equal(drawn, calibration_samples(data(there), trained()))


def test_they_come_of_all_the_data_and_are_scaled_as_the_model_says() -> None:
    drawn = calibration_samples(data(2000), trained())
    # From 0 to 1, by mean 0.5 and deviation 0.25: from -2 to 2.
    assert (drawn.min() < -1.9, drawn.max() > 1.9) == (True, True)
    assert (drawn.min() >= -2, drawn.max() <= 2) == (True, True)


def test_no_samples_measure_nothing() -> None:
    with pytest.raises(DataError, match="holds no samples"):
        calibration_samples(data(2).take(np.array([], np.intp)), trained())


def test_a_model_of_any_batch_has_32_at_once_and_the_rest() -> None:
    x = data(70).x
    pieces = list(batches(x, trained()))
    assert [len(piece) for piece in pieces] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate(pieces), x)


def test_a_model_of_a_fixed_batch_has_it_full() -> None:
    x = data(7).x
    first, last = batches(x, trained(batch=5))
    np.testing.assert_array_equal(first, x[:5])
    np.testing.assert_array_equal(last, x[[5, 6, 5, 6, 5]])
