"""Samples on which the ranges of what goes through a model are measured."""

from __future__ import annotations

from collections.abc import Iterator

from models.backends.graph import Array, padded
from models.datasets import Dataset, check_for_model, scale
from models.manifest import Manifest
from trellis.seeds import generator

SAMPLES = 512
_SEED = 42
_BATCH = 32


def calibration_samples(data: Dataset, manifest: Manifest) -> Array:
    """Return up to `SAMPLES` of the data, scaled as the model wants them, drawn always alike.

    Raises:
        DataError: The data cannot be fed to the model.
    """
    check_for_model(data, shape=manifest.shape, classes=manifest.classes)
    chosen = generator(_SEED, "calibration").permutation(len(data))[:SAMPLES]
    return scale(data.take(chosen), manifest.normalize).x


def batches(samples: Array, manifest: Manifest) -> Iterator[Array]:
    """Yield the samples in as many at once as the model takes."""
    size = manifest.batch or _BATCH
    for start in range(0, len(samples), size):
        piece = samples[start : start + size]
        yield padded(piece, manifest.batch or len(piece))
