"""A trained model's file, opened with the runtime that it is for, whatever that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.artefacts import ModelCard, load_model
from models.backends import open_backend, open_runtime
from models.backends.loop import Batch
from models.datasets import Normalization
from models.exported import Artefact, read_artefact
from models.manifest import QuantizationMethod, Runtime
from trellis.errors import ConfigError, Fault

MAX_MODEL_BYTES = 1024**3
"""Of an exported file, which is read into memory whole."""

Format = Literal["onnx", "tflite", "safetensors"]
_EXPORTED: dict[str, Runtime] = {".onnx": "onnx", ".tflite": "tflite"}
_TRAINED = ".safetensors"


@dataclass(frozen=True)
class Predictor:
    """A trained model that answers.

    Attributes:
        format: Of its file.
        model: Its name in the registry.
        shape: The shape of one sample.
        classes: How many classes it tells apart.
        normalize: How samples in [0, 1] are scaled before they go in, if they are.
        quantization: What was done to its numbers, if anything was.
        batch: How many samples it takes at once, None for any number.
        logits: Makes (batch, classes) logits of (batch, *shape) float32 samples. Raises `TrainingFailed`
            where the runtime fails.
    """

    format: Format
    model: str
    shape: tuple[int, ...]
    classes: int
    normalize: Normalization | None
    quantization: QuantizationMethod | None
    batch: int | None
    logits: Callable[[Batch], Batch]


def open_predictor(path: Path, *, threads: int = 1) -> Predictor:
    """Return the model in a file: `.onnx`, `.tflite`, or `.safetensors` as training writes it.

    Raises:
        ConfigError: The file's name ends in none of these, or in another than its content's.
        ArtefactError: An exported file that is broken, hostile, or for training.
        DataError: A file of safetensors that is broken, or does not say what it is.
        TensorError: Its arrays are not its model's.
        Refused: Its model is not known here.
        MissingExtra: Its runtime is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in {*_EXPORTED, _TRAINED}:
        _require_named_as_it_is(path, suffix)
    if suffix == _TRAINED:
        return _trained(path, threads)
    if suffix in _EXPORTED:
        artefact = read_artefact(
            path, runtime=_EXPORTED[suffix], purpose="inference", max_bytes=MAX_MODEL_BYTES
        )
        return exported_predictor(artefact, threads=threads)
    due = ", ".join([*_EXPORTED, _TRAINED])
    raise ConfigError(f"model file {str(path)!r}", f"its name ends in none of {due}: what it is is not known")


def _require_named_as_it_is(path: Path, suffix: str) -> None:
    """Return unless the file's first bytes are plainly of another kind than its name."""
    if not path.is_file():
        return  # a pipe would be waited for; whoever reads it says what it is
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return  # whoever reads it says why it cannot be
    if start[4:8] == b"TFL3":
        found = ".tflite"
    elif start[8:] == b"{":  # the header's length in eight bytes, then JSON
        found = _TRAINED
    elif start[:1] == b"\x08":  # the first field of an ONNX model, its version
        found = ".onnx"
    else:
        return
    if found != suffix:
        problem = f"its name ends in {suffix}, its content is of a {found} file"
        remedy = f"rename it to {path.with_suffix(found).name}"
        raise ConfigError(f"model file {str(path)!r}", [Fault("", problem, remedy)])


def exported_predictor(artefact: Artefact, *, threads: int = 1) -> Predictor:
    """Return the model of an inference artefact.

    Raises:
        ArtefactError: Its runtime does not take it.
        MissingExtra: Its runtime is not installed.
    """
    manifest = artefact.manifest
    running = open_runtime(artefact, threads=threads)

    def logits(x: Batch) -> Batch:
        return running.run("predict", {"x": x})["logits"]

    done = manifest.quantization.method if manifest.quantization is not None else None
    return Predictor(
        format=manifest.runtime,
        model=manifest.model,
        shape=manifest.shape,
        classes=manifest.classes,
        normalize=manifest.normalize,
        quantization=done,
        batch=manifest.batch,
        logits=logits,
    )


def _trained(path: Path, threads: int) -> Predictor:
    arrays, metadata = load_model(path)
    card = ModelCard.from_metadata(metadata, where=str(path))
    backend = open_backend(
        "torch", card.model, shape=card.shape, classes=card.classes, seed=card.seed, threads=threads
    )
    return Predictor(
        format="safetensors",
        model=card.model,
        shape=card.shape,
        classes=card.classes,
        normalize=card.normalize,
        quantization=None,
        batch=None,
        logits=backend.predictor(arrays),
    )
