"""Data sets: loading, scaling, the check against a task's demands, and cutting into parts."""

from models.datasets.dataset import Dataset, Normalization, Normalize, check, check_for_model, scale
from models.datasets.sources import Source, Split, load, parse_source

__all__ = [
    "Dataset",
    "Normalization",
    "Normalize",
    "Source",
    "Split",
    "check",
    "check_for_model",
    "load",
    "parse_source",
    "scale",
]
