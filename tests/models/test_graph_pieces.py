"""A mini-batch that no cache holds goes through a graph in pieces, few of them, and none is kept."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_files import manifest, onnx_model, write_onnx

from models.backends import Backend, TrainPlan, graph, open_backend
from models.backends.onnx import OnnxRuntime
from models.datasets import Dataset

SAMPLES = 20
START = {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
STEP = TrainPlan(epochs=None, steps=1, batch_size=SAMPLES, learning_rate=0.1)


def data() -> Dataset:
    x = np.random.default_rng(7).normal(size=(SAMPLES, 3)).astype(np.float32)
    return Dataset("toy", x, np.arange(SAMPLES) % 2, 2)


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def opened(folder: Path) -> Backend:
    path = write_onnx(folder / "tiny.onnx", onnx_model(manifest("onnx")))
    return open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=path)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every run adds how many samples it was given."""
    pieces: list[int] = []
    run = OnnxRuntime.run

    def noted(self: OnnxRuntime, program: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        pieces.append(len(inputs["x"]))
        return run(self, program, inputs)

    monkeypatch.setattr(OnnxRuntime, "run", noted)
    return pieces


def test_pieces_are_few_and_a_large_model_goes_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(graph, "AT_ONCE_BYTES", 1)  # each sample is more
    pieces = counted(monkeypatch)
    opened(tmp_path).train(START, data(), STEP, rng())
    assert pieces == [3] * 6 + [2]  # seven, where eight of 2.5 are due at most
    pieces.clear()
    opened(tmp_path).evaluate(START, data())
    assert pieces == [4] * 5  # eighths of 32
    pieces.clear()
    monkeypatch.setattr(graph, "PIECES_BYTES", 2 * 8 * 4 - 1)  # eight parameters of four bytes, not twice
    opened(tmp_path).train(START, data(), STEP, rng())
    assert pieces == [SAMPLES]


def test_the_gradients_of_pieces_are_added_up_as_they_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    came: list[weakref.ref[Any]] = []
    alive: list[int] = []
    run = OnnxRuntime.run

    def noted(self: OnnxRuntime, program: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        alive.append(sum(one() is not None for one in came))
        found = run(self, program, inputs)
        came.append(weakref.ref(found["gradient:fc.weight"]))
        return found

    monkeypatch.setattr(graph, "AT_ONCE_BYTES", 1)
    monkeypatch.setattr(OnnxRuntime, "run", noted)
    opened(tmp_path).train(START, data(), STEP, rng())
    assert alive == [0] + [1] * 6  # the sum alone, whatever came before
