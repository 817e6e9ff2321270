"""Model files: safetensors with what is needed to build the model again in the file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.arrays import Arrays
from models.datasets import Normalize
from trellis.errors import DataError, Fault
from trellis.files import write_atomically


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself.

    Attributes:
        model: The name in the registry.
        shape: The shape of one sample.
        classes: How many classes it tells apart.
        task: The task that trained it.
        round: The round after which it was saved.
        normalize: How its samples are scaled beyond [0, 1], if they are.
    """

    model: str
    shape: tuple[int, ...]
    classes: int
    task: str
    round: int
    normalize: Normalize | None = None

    def metadata(self) -> dict[str, str]:
        """Return the card as the metadata of a model file; `from_metadata` is the inverse."""
        scaling = {"mean": self.normalize.mean, "std": self.normalize.std} if self.normalize else None
        return {
            "model": self.model,
            "shape": json.dumps(list(self.shape)),
            "classes": str(self.classes),
            "task": self.task,
            "round": str(self.round),
            "normalize": json.dumps(scaling),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, where: str) -> ModelCard:
        """Return the card that `metadata()` wrote.

        Raises:
            DataError: A field is missing or malformed; `where` names the file.
        """
        due = ("model", "shape", "classes", "task", "round", "normalize")
        missing = [
            Fault(field, "is missing from the file's metadata") for field in due if field not in metadata
        ]
        if missing:
            raise DataError(f"model file {where!r}", missing)
        try:
            scaling = json.loads(metadata["normalize"])
            return cls(
                model=metadata["model"],
                shape=tuple(int(size) for size in json.loads(metadata["shape"])),
                classes=int(metadata["classes"]),
                task=metadata["task"],
                round=int(metadata["round"]),
                normalize=Normalize(float(scaling["mean"]), float(scaling["std"])) if scaling else None,
            )
        except (ValueError, TypeError, KeyError) as error:
            problem = f"its metadata are malformed: {type(error).__name__}: {error}"
            raise DataError(f"model file {where!r}", problem) from error


def save_model(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]) -> None:
    """Make `path` a safetensors file of the arrays and metadata; never is half a file under that name.

    `ModelCard.metadata` gives the metadata that `trellis model evaluate` needs.
    """
    from safetensors.numpy import save  # noqa: PLC0415  # devices that save nothing need not load it

    # safetensors writes an array's memory as it lies.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # A model is to be read by whoever uses it.
    write_atomically(path, save(ordered, metadata=dict(metadata)), mode=0o644)


def load_model(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays and metadata of a model file.

    Raises:
        DataError: No such file, or it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # as in save_model

    if not path.is_file():
        raise DataError(f"model file {str(path)!r}", "no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no mapping
            return arrays, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"model file {str(path)!r}", f"is no safetensors file: {error}") from error
