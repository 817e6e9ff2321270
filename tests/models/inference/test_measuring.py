"""What is measured of a model's answers, and which answers are none."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from models.backends.loop import Batch
from models.datasets import Dataset, Normalize
from models.inference import Predictor, measuring, predict
from trellis.errors import DataError, TrainingFailed

DATA = Dataset(
    "three",
    np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.25]], np.float32),
    np.array([1, 1, 0], np.int64),
    2,
)


class Echo:
    """A model that answers with its input, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[Batch] = []

    def __call__(self, x: Batch) -> Batch:
        self.calls.append(x.copy())
        return x


def predictor(
    answer: object = None, *, batch: int | None = None, normalize: Normalize | None = None
) -> Predictor:
    return Predictor(
        format="onnx",
        model="echo",
        shape=(2,),
        classes=2,
        normalize=normalize,
        quantization=None,
        batch=batch,
        logits=answer or Echo(),  # type: ignore[arg-type]
    )


def test_accuracy_loss_and_probabilities_follow_from_the_logits() -> None:
    said = predict(predictor(), DATA)
    # The second is told as 0, and is 1.
    assert said.predicted.tolist() == [1, 0, 0]
    assert said.accuracy == pytest.approx(2 / 3)
    # log(1 + e^-d) for a right answer by d, log(1 + e^d) for a wrong one.
    due = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1)) + math.log1p(math.exp(-0.25))) / 3
    assert said.loss == pytest.approx(due)
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1)
    assert said.probabilities[0, 1] == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_loss_of_great_logits_is_finite() -> None:
    said = predict(predictor(lambda x: x * np.float32(1e30)), DATA)
    assert math.isfinite(said.loss)


def test_samples_are_scaled_as_the_model_says() -> None:
    echo = Echo()
    predict(predictor(echo, normalize=Normalize(0.5, 0.25)), DATA)
    np.testing.assert_allclose(echo.calls[1], [[-2, 2]])


def test_a_fixed_batch_is_always_full_and_its_padding_is_no_answer() -> None:
    echo = Echo()
    said = predict(predictor(echo, batch=2), DATA, batch=3)
    assert said.batch == 2
    assert [call.shape for call in echo.calls[1:]] == [(2, 2), (2, 2)]
    np.testing.assert_array_equal(echo.calls[2], DATA.x[[2, 2]])
    np.testing.assert_array_equal(said.logits, DATA.x)


def test_the_time_is_milliseconds_a_sample_in_the_middle_of_the_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    takes_s = [5.0, 0.002, 0.004, 0.9]  # the first call is not counted
    now_s = 0.0

    def slow(x: Batch) -> Batch:
        nonlocal now_s
        now_s += takes_s.pop(0)
        return x

    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now_s))
    assert predict(predictor(slow), DATA).sample_ms == pytest.approx(4)
    takes_s = [5.0, 0.002, 0.004]
    # 3 ms a call of two.
    assert predict(predictor(slow, batch=2), DATA).sample_ms == pytest.approx(1.5)


def test_no_more_samples_go_in_at_once_than_there_are() -> None:
    echo = Echo()
    assert predict(predictor(echo), DATA, batch=100).batch == 3
    assert [call.shape for call in echo.calls] == [(3, 2), (3, 2)]


def test_an_answer_that_is_not_finite_is_named() -> None:
    def broken(x: Batch) -> Batch:
        return np.where(x == 0.25, np.float32(np.nan), x)

    with pytest.raises(TrainingFailed) as caught:
        predict(predictor(broken), DATA)
    assert str(caught.value) == (
        "model 'echo': its answers to 1 of 3 samples of 'three' are not finite, the first is to number 2"
    )


def test_an_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(TrainingFailed, match=r"gives logits of shape \(1, 1\), \(1, 2\) is due"):
        predict(predictor(lambda x: x[:, :1]), DATA)


def test_data_with_nothing_in_it_are_refused() -> None:
    with pytest.raises(DataError, match="holds no samples"):
        predict(predictor(), DATA.take(np.array([], np.intp)))
