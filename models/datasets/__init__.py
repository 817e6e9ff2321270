"""Data sets: loading, scaling, the check against a task's demands, and cutting into parts."""

from models.datasets.dataset import Dataset, Normalization, Normalize, check, scale
from models.datasets.sources import Split, load

__all__ = ["Dataset", "Normalization", "Normalize", "Split", "check", "load", "scale"]
