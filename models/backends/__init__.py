"""Training backends: one Protocol, one module each, imported only when it is opened.

A backend keeps nothing between calls: arrays go in, arrays come out; the same arguments give the same result.
`torch` builds the model from its definition. `onnx` and `tflite` train what was exported from that, an
artefact (`models.exported`), so that a device needs neither PyTorch nor the definition.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, cast, overload

import numpy as np

from models.arrays import Arrays
from models.backends.graph import GraphBackend, Runtime
from models.backends.loop import Batch
from models.backends.plan import EvalResult, StepReport, TrainPlan, TrainResult
from models.datasets import Dataset
from models.exported import MAX_ARTEFACT_BYTES, Artefact, read_artefact, require_model
from models.manifest import Runtime as RuntimeName
from models.registry import ModelSpec, find_model
from trellis.errors import ConfigError, Fault, MissingExtra

__all__ = [
    "AUTO",
    "Backend",
    "DefiningBackend",
    "EvalResult",
    "StepReport",
    "TrainPlan",
    "TrainResult",
    "artefact_runtime",
    "available_backends",
    "open_backend",
    "open_runtime",
    "resolve_backend",
]

AUTO = "auto"


class Backend(Protocol):
    """A model that one runtime trains and evaluates.

    `should_stop` is asked before every batch. Data are float32 as `models.datasets.scale` gives them.
    """

    name: str

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
        """Return what `plan` makes of `arrays`, which stay as they are.

        Raises:
            TensorError: `arrays` are not the model's.
            DataError: `data` cannot be fed to the model.
            TrainingFailed: The loss or a parameter is no longer finite, or the runtime failed.
            Canceled: `should_stop` said so.
        """

    def evaluate(
        self,
        arrays: Arrays,
        data: Dataset,
        *,
        batch_size: int = 256,
        should_stop: Callable[[], bool] | None = None,
    ) -> EvalResult:
        """Return the mean loss and the accuracy of `arrays` on `data`; raises as `train` does."""


class DefiningBackend(Backend, Protocol):
    """A backend that holds the model's definition: it knows what training starts from, and can predict."""

    def initial(self) -> Arrays:
        """Return the parameters and buffers that training starts from: a function of model and seed only."""

    def predictor(self, arrays: Arrays) -> Callable[[Batch], Batch]:
        """Return what makes (batch, classes) logits of (batch, *shape) samples with these arrays.

        Raises:
            TensorError: `arrays` are not the model's.
        """


class _DefiningModule(Protocol):
    def open_model(
        self, spec: ModelSpec, *, shape: tuple[int, ...], classes: int, seed: int, threads: int | None
    ) -> DefiningBackend: ...


class _GraphModule(Protocol):
    def open_runtime(self, artefact: Artefact, *, threads: int) -> Runtime: ...


@dataclass(frozen=True)
class _Entry:
    """A backend.

    Attributes:
        module: Where it stands; a `_GraphModule` if it has a runtime, else a `_DefiningModule`.
        package: What must be importable.
        extra: Of trellis-fl, which brings the package.
        runtime: Of the artefacts that it trains.
    """

    module: str
    package: str
    extra: str
    runtime: RuntimeName | None = None


# In the order in which `auto` prefers them.
_BACKENDS: Mapping[str, _Entry] = {
    "torch": _Entry("models.backends.torch", package="torch", extra="torch"),
    "onnx": _Entry("models.backends.onnx", package="onnxruntime", extra="onnx", runtime="onnx"),
    "tflite": _Entry("models.backends.tflite", package="ai_edge_litert", extra="tflite", runtime="tflite"),
}


def available_backends() -> list[str]:
    """Return the backends whose runtime is installed, the preferred one first; none is imported."""
    return [name for name, entry in _BACKENDS.items() if importlib.util.find_spec(entry.package) is not None]


def resolve_backend(wanted: str, available: Sequence[str] | None = None) -> str:
    """Return the backend that `wanted` means: itself, or with `auto` the preferred one of those available.

    Raises:
        ConfigError: No such backend, or none is installed.
        MissingExtra: Its runtime is not installed.
    """
    found = available_backends() if available is None else available
    if wanted == AUTO:
        for name in _BACKENDS:
            if name in found:
                return name
        extras = " or ".join(f"'trellis-fl[{entry.extra}]'" for entry in _BACKENDS.values())
        raise ConfigError("backend 'auto'", f"no training runtime is installed: pip install {extras}")
    entry = _entry(wanted)
    if wanted not in found:
        raise MissingExtra(entry.package, entry.extra)
    return wanted


def artefact_runtime(name: str) -> RuntimeName | None:
    """Return the runtime whose artefacts the backend of that name trains, None if it needs none.

    Raises:
        ConfigError: No such backend.
    """
    return _entry(name).runtime


@overload
def open_backend(
    name: Literal["torch"],
    model: str,
    *,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    artefact: None = None,
    artefact_bytes: int = MAX_ARTEFACT_BYTES,
    threads: int | None = None,
) -> DefiningBackend: ...


@overload
def open_backend(
    name: str,
    model: str,
    *,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    artefact: Path | None = None,
    artefact_bytes: int = MAX_ARTEFACT_BYTES,
    threads: int | None = None,
) -> Backend: ...


def open_backend(
    name: str,
    model: str,
    *,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    artefact: Path | None = None,
    artefact_bytes: int = MAX_ARTEFACT_BYTES,
    threads: int | None = None,
) -> Backend:
    """Return the backend of that name with the model in it.

    Args:
        name: `torch`, `onnx` or `tflite`.
        model: For `torch` a name that `models.registry.find_model` knows, else the artefact's model.
        shape: The shape of one sample.
        classes: How many classes the model tells apart.
        seed: The task's; `initial` follows from it.
        artefact: The exported model's file, which `onnx` and `tflite` need and `torch` does not take.
        artefact_bytes: How large that may be.
        threads: Processor threads to work with. None leaves torch, which has one number a process, as it
            is, and gives the others one.

    Raises:
        ConfigError: No such backend, an artefact too few or too many, or a runtime that cannot be imported.
        MissingExtra: Its runtime is not installed.
        Refused: No such model.
        ArtefactError: The artefact is broken, hostile, or not of that model.
        InvalidInput: The model does not take such samples.
    """
    entry = _entry(name)
    if threads is not None and threads < 1:
        raise ConfigError(f"backend {name!r}", f"{threads} threads came, at least 1 is due")
    _require_installed(entry)
    if entry.runtime is None:
        if artefact is not None:
            raise ConfigError(f"backend {name!r}", "trains from the model's definition and takes no artefact")
        spec = find_model(model)
        defining = cast(_DefiningModule, _imported(name, entry))
        return defining.open_model(spec, shape=shape, classes=classes, seed=seed, threads=threads)
    if artefact is None:
        problem = f"needs an artefact: 'trellis export {model} --format {entry.runtime} --for training'"
        raise ConfigError(f"backend {name!r}", problem)
    checked = read_artefact(artefact, runtime=entry.runtime, purpose="training", max_bytes=artefact_bytes)
    require_model(checked, model, shape=shape, classes=classes)
    return GraphBackend(checked.manifest, open_runtime(checked, threads=threads or 1))


def open_runtime(artefact: Artefact, *, threads: int = 1) -> Runtime:
    """Return what runs the programs of an artefact, of either purpose.

    Raises:
        ConfigError: The runtime cannot be imported.
        MissingExtra: It is not installed.
        ArtefactError: It does not take the file.
    """
    wanted = artefact.manifest.runtime
    name, entry = next((name, entry) for name, entry in _BACKENDS.items() if entry.runtime == wanted)
    _require_installed(entry)
    return cast(_GraphModule, _imported(name, entry)).open_runtime(artefact, threads=threads)


def _require_installed(entry: _Entry) -> None:
    if importlib.util.find_spec(entry.package) is None:
        raise MissingExtra(entry.package, entry.extra)


def _entry(name: str) -> _Entry:
    entry = _BACKENDS.get(name)
    if entry is None:
        raise ConfigError(f"backend {name[:80]!r}", f"is not known; known are {', '.join(_BACKENDS)}")
    return entry


def _imported(name: str, entry: _Entry) -> ModuleType:
    try:
        return importlib.import_module(entry.module)
    except ImportError as error:
        # A wheel of another processor or libc is installed, but does not load.
        remedy = f"reinstall it: pip install --force-reinstall 'trellis-fl[{entry.extra}]'"
        problem = f"{entry.package} is installed, but cannot be imported: {error}"
        raise ConfigError(f"backend {name!r}", [Fault("", problem, remedy)]) from error
