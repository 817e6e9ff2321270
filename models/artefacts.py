"""Model files: safetensors with what is needed to build the model again in the file's own metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, field_validator

from models.arrays import Arrays
from models.datasets import Normalize
from models.manifest import MAX_AXES, MAX_SIZE, Scaling, Size
from trellis.descriptor_fields import MAX_CLASSES
from trellis.errors import DataError, Fault
from trellis.faults import faults_of
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
        seed: The task's: what a model draws while it is built, beside its arrays, follows from it.
    """

    model: str
    shape: tuple[int, ...]
    classes: int
    task: str
    round: int
    normalize: Normalize | None = None
    seed: int = 0

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
            "seed": str(self.seed),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, where: str) -> ModelCard:
        """Return the card that `metadata()` wrote.

        Raises:
            DataError: Every field that is missing or out of bounds; `where` names the file.
        """
        try:
            fields = _Metadata.model_validate(dict(metadata))
        except ValidationError as error:
            raise DataError(f"model file {where!r}: its metadata", faults_of(error)) from None
        scaling = fields.normalize
        return cls(
            model=fields.model,
            shape=fields.shape,
            classes=fields.classes,
            task=fields.task,
            round=fields.round,
            normalize=Normalize(scaling.mean, scaling.std) if scaling else None,
            seed=fields.seed,
        )


class _Metadata(BaseModel):
    """A card as a file holds it, every value a text; others may keep fields of their own beside it."""

    model_config = ConfigDict(frozen=True)

    model: str
    shape: Json[Annotated[tuple[Size, ...], Field(min_length=1, max_length=MAX_AXES)]]
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    task: str
    round: Annotated[int, Field(ge=0)]
    normalize: Json[Scaling | None]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    @field_validator("shape")
    @classmethod
    def _is_a_sample(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > MAX_SIZE:
            raise ValueError(f"{math.prod(shape)} numbers are no sample, at most {MAX_SIZE} are due")
        return shape


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
        DataError: No such file, it is no safetensors file, or has numbers of a kind that numpy has not.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # as in save_model

    if not path.is_file():
        raise DataError(f"model file {str(path)!r}", "no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: _array(file, name, path) for name in file.keys()}  # noqa: SIM118  # no mapping
            return arrays, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"model file {str(path)!r}", f"is no safetensors file: {error}") from error


# Any: safetensors does not type what it opens.
def _array(file: Any, name: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.array(file.get_tensor(name))
    except (TypeError, AttributeError):
        array = None  # what safetensors makes of BF16 and the F8 kinds, whose names numpy does not know
    # A package that teaches numpy such names, as onnx does, makes arrays of them that nothing of ours takes.
    if array is None or array.dtype.isbuiltin != 1:
        problem = f"is {file.get_slice(name).get_dtype()}, which numpy has not"
        fault = Fault(f"tensor {name[:80]!r}", problem, "save it as float32")
        raise DataError(f"model file {str(path)!r}", [fault])
    return array
