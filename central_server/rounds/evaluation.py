"""The server's own evaluation of the global model, on data that no device holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.artefacts import ModelCard, load_model, save_model
from models.backends import Backend
from models.datasets import Dataset, Normalize, check, load, scale
from trellis.descriptor import TaskDescriptor
from trellis.tensors import Arrays


@dataclass(frozen=True)
class ServerData:
    """The server's test split, scaled as the task says."""

    dataset: Dataset


def server_data(descriptor: TaskDescriptor, source: str | None) -> ServerData | None:
    """Return the server's data for a task, or None if the task doesn't ask for it.

    Raises:
        DataError: The data cannot be read, or are not what the task demands.
    """
    if source is None or "server" not in descriptor.evaluate.on:
        return None
    demands = descriptor.data
    dataset = load(source, split="test")
    check(dataset, name=demands.name, shape=demands.shape, classes=demands.classes, min_samples=1)
    return ServerData(scale(dataset, demands.normalize))


def evaluate(backend: Backend, arrays: Arrays, data: ServerData) -> dict[str, float]:
    """Return the server's metrics of the global model."""
    result = backend.evaluate(arrays, data.dataset)
    return {"server_loss": result.loss, "server_accuracy": result.accuracy}


def write_model(path: Path, arrays: Arrays, descriptor: TaskDescriptor, round_number: int) -> None:
    """Write the trained model with what is needed to build it again."""
    demands = descriptor.data
    scaling = demands.normalize
    card = ModelCard(
        model=descriptor.model.name,
        shape=demands.shape,
        classes=demands.classes,
        task=descriptor.task,
        round=round_number,
        normalize=Normalize(mean=scaling.mean, std=scaling.std) if scaling else None,
        seed=descriptor.train.seed,
    )
    save_model(path, arrays, card.metadata())


def read_model(path: Path) -> Arrays:
    """Return the arrays of a model file, fresh from the disk."""
    arrays, _ = load_model(path)
    return arrays
