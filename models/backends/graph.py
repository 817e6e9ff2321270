"""Training on a graph that was exported: what the runtimes without PyTorch share.

The graph gives loss, gradients and new buffers for parameters and samples that are put in; batches, steps and
metrics are those of every backend. Arrays keep torch's names and layouts throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from models.arrays import Arrays, copied, require_like, require_same
from models.backends.loop import (
    Batch,
    GradientOutcome,
    Outcome,
    evaluate_loop,
    require_feedable,
    require_finite,
    train_loop,
)
from models.backends.plan import EvalResult, StepReport, TrainPlan, TrainResult
from models.datasets import Dataset
from models.exported import LABEL_DTYPES
from models.manifest import Manifest, Program, buffer_role, gradient_role, mask_role, tensor_role
from trellis.errors import TrainingFailed

AT_ONCE_BYTES = 128 * 1024
"""Of samples that go through a graph of any batch at once. What a model makes of them is ten times as large
and more: of so many a processor's cache holds it, and an operator finds there what the last one wrote. Of
32 by 32 pixels in three colours 8 go at once out of 32, in a tenth less time; of 28 by 28 grey ones all."""

MOST_PIECES = 8
"""Of a mini-batch that no cache holds: more would be passes of a sample or two."""

PIECES_BYTES = 4 * 1024 * 1024
"""Of parameters and gradients that all pieces together read and add up anew: larger models go whole."""

EVALUATION_BATCH = 32
"""Larger ones are no faster on one thread, and take memory: LeNet's activations 0.1 MB a sample."""

Array = np.ndarray[Any, np.dtype[Any]]


class Runtime(Protocol):
    """What runs the programs of one artefact; a program's inputs and outputs are named by their roles.

    Attributes:
        name: The backend's.
    """

    name: str

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return those outputs of a program that `fetched_roles` names; their memory is the caller's.

        Raises:
            TrainingFailed: The runtime failed.
        """


def fetched_roles(program: Program) -> list[str]:
    """Return the outputs that anybody asks for: logits only where there is nothing that is told of them."""
    told = [role for role in program.outputs if role != "logits"]
    return told or list(program.outputs)


def padded(array: Array, size: int) -> Array:
    """Return the array as long as a graph's fixed batch, its own samples again and again.

    What is added counts nowhere. It is no zeros, because the batch statistics of a model, or the ranges of a
    quantised one, see it: of samples repeated they stay what they are, or nearly.
    """
    return array if len(array) == size else array[np.arange(size) % len(array)]


class GraphBackend:
    """A `models.backends.Backend` on an exported training graph."""

    def __init__(self, manifest: Manifest, runtime: Runtime) -> None:
        self.name = runtime.name
        self._manifest = manifest
        self._runtime = runtime
        self._parameters = [tensor.name for tensor in manifest.tensors if tensor.kind == "parameter"]
        self._buffers = [tensor.name for tensor in manifest.tensors if tensor.kind == "buffer"]
        self._at_once = _at_once(manifest)
        self._most_pieces = _most_pieces(manifest)
        self._labels = np.dtype(LABEL_DTYPES[manifest.runtime])
        # No memory: one zero, seen as an array of every shape.
        self._model = {
            tensor.name: np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)
            for tensor in manifest.tensors
        }

    def train(
        self,
        arrays: Arrays,
        data: Dataset,
        plan: TrainPlan,
        rng: np.random.Generator,
        *,
        on_step: Callable[[StepReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainResult:
        self._require_batch(plan)
        tensors = self._loaded(arrays, data)
        initial_loss = None
        if plan.report_initial_loss:
            initial_loss = self.evaluate(arrays, data, should_stop=should_stop).loss
        # A spawned stream, so that the order of samples is the same as on runtimes that draw otherwise.
        masks = rng.spawn(1)[0]

        def gradient(x: Batch, y: Batch) -> GradientOutcome:
            return self._gradient(tensors, masks, x, y)

        trainable = {name: tensors[name] for name in self._parameters}
        result = train_loop(trainable, data, plan, rng, gradient, on_step=on_step, should_stop=should_stop)
        for tensor in self._manifest.tensors:
            if tensor.kind == "counter":
                tensors[tensor.name] += tensors[tensor.name].dtype.type(result.steps)
        require_finite(tensors, model=self._manifest.model, steps=result.steps, plan=plan)
        return TrainResult(tensors, len(data), result.loss, initial_loss, result.steps, result.accuracy)

    def evaluate(
        self,
        arrays: Arrays,
        data: Dataset,
        *,
        batch_size: int = 256,
        should_stop: Callable[[], bool] | None = None,
    ) -> EvalResult:
        tensors = self._loaded(arrays, data)
        most = self._manifest.batch or self._size(EVALUATION_BATCH)

        def score(x: Batch, y: Batch) -> Outcome:
            return self._score(tensors, x, y)

        return evaluate_loop(data, min(batch_size, most), score, should_stop=should_stop)

    def _loaded(self, arrays: Arrays, data: Dataset) -> Arrays:
        """Return the model's arrays, in its order and of this call alone, once they and the data fit."""
        require_like(arrays, self._model)
        require_same(arrays, self._manifest.inside)
        require_feedable(data, shape=self._manifest.shape, classes=self._manifest.classes)
        return copied({name: arrays[name] for name in self._model})

    def _require_batch(self, plan: TrainPlan) -> None:
        """Pass if the plan's mini-batches go into the graph whole, where that makes a difference."""
        most = self._manifest.batch
        if self._buffers and most is not None and plan.batch_size > most:
            raise TrainingFailed(
                f"model {self._manifest.model!r} has statistics of its batches ({self._buffers[0]!r}), its "
                f"{self._manifest.runtime} artefact takes {most} samples at once, the task has batches of "
                f"{plan.batch_size}: a batch_size of at most {most}, or an artefact of larger batches, is due"
            )

    def _gradient(self, tensors: Arrays, masks: np.random.Generator, x: Batch, y: Batch) -> GradientOutcome:
        """Return the outcome of a mini-batch, in pieces where fewer samples go into the graph at once."""
        if self._at_once_of(y) >= len(y):
            return self._step(tensors, masks, x, y)
        loss, correct, gradients = 0.0, 0, dict[str, Array]()
        for piece in self._pieces(x, y):
            share = len(piece[1]) / len(y)
            part = self._step(tensors, masks, *piece)
            loss, correct = loss + part.loss * share, correct + part.correct
            _add(gradients, part.gradients, np.float32(share))
            del part  # or the next piece's gradients would be a third set of them
        return GradientOutcome(loss, correct, gradients)

    def _step(self, tensors: Arrays, masks: np.random.Generator, x: Batch, y: Batch) -> GradientOutcome:
        """Return the outcome of samples that go into the graph at once; the buffers move on."""
        drawn = {
            mask_role(mask.name): self._padded(_mask(masks, (len(y), *mask.shape), mask.keep))
            for mask in self._manifest.masks
        }
        found = self._run("train", tensors, x, y, drawn)
        self._require_statistics(found, len(y))
        for name in self._buffers:
            tensors[name][...] = found[buffer_role(name)].reshape(tensors[name].shape)
        gradients = {
            name: found[gradient_role(name)].reshape(tensors[name].shape) for name in self._parameters
        }
        return GradientOutcome(*_told(found), gradients)

    def _require_statistics(self, found: Mapping[str, Array], samples: int) -> None:
        """Pass unless one sample gives no statistics of a batch: no learning rate helps there."""
        if samples > 1 or all(np.isfinite(found[buffer_role(name)]).all() for name in self._buffers):
            return
        raise TrainingFailed(
            f"model {self._manifest.model!r} has statistics of its batches ({self._buffers[0]!r}), which a "
            "batch of one sample does not give: 2 samples and a batch_size of 3, or more, are due"
        )

    def _score(self, tensors: Arrays, x: Batch, y: Batch) -> Outcome:
        return Outcome(*_told(self._run("eval", tensors, x, y, {})))

    def _run(
        self, program: str, tensors: Arrays, x: Batch, y: Batch, drawn: Mapping[str, Array]
    ) -> dict[str, Array]:
        counts = np.zeros(self._manifest.batch or len(y), np.float32)
        counts[: len(y)] = 1
        labels = self._padded(y).astype(self._labels, copy=False)
        inputs = {"x": self._padded(x), "y": labels, "w": counts, **drawn}
        taken = self._manifest.programs[program].inputs
        inputs |= {role: array for name, array in tensors.items() if (role := tensor_role(name)) in taken}
        return self._runtime.run(program, inputs)

    def _pieces(self, x: Batch, y: Batch) -> Iterator[tuple[Batch, Batch]]:
        size = self._at_once_of(y)
        for start in range(0, len(y), size):
            yield x[start : start + size], y[start : start + size]

    def _at_once_of(self, y: Batch) -> int:
        """Return how many of a mini-batch go into the graph at once: all where they share statistics."""
        return self._manifest.batch or (len(y) if self._buffers else self._size(len(y)))

    def _size(self, samples: int) -> int:
        """Return the size of as few pieces as a cache holds, or as may be, all but the last of them alike."""
        return math.ceil(samples / min(math.ceil(samples / self._at_once), self._most_pieces))

    def _padded(self, array: Batch) -> Batch:
        return padded(array, self._manifest.batch or len(array))


def _at_once(manifest: Manifest) -> int:
    """Return how many samples a graph of any batch is given at once."""
    return max(1, AT_ONCE_BYTES // (4 * max(1, math.prod(manifest.shape))))


def _most_pieces(manifest: Manifest) -> int:
    """Return into how many pieces a mini-batch may fall."""
    parameters = [tensor for tensor in manifest.tensors if tensor.kind == "parameter"]
    size = sum(math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in parameters)
    return max(1, min(MOST_PIECES, PIECES_BYTES // max(1, size)))


def _add(total: dict[str, Array], gradients: Mapping[str, Array], share: np.float32) -> None:
    """Add a piece's share, in the memory that the gradients came in."""
    for name, gradient in gradients.items():
        np.multiply(gradient, share, out=gradient)
        if name in total:
            total[name] += gradient
        else:
            total[name] = gradient


def _mask(rng: np.random.Generator, shape: tuple[int, ...], keep: float) -> Array:
    return (rng.random(shape, np.float32) < keep).astype(np.float32) / np.float32(keep)


def _told(found: Mapping[str, Array]) -> tuple[float, int]:
    """Return the loss, and how many samples are told right."""
    return found["loss"].item(), round(found["correct"].item())
