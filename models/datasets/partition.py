"""Cutting one data set into the parts of several devices, for trials."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.datasets.dataset import Dataset, Indices, Labels, members_by_label
from trellis.errors import ConfigError, DataError, Fault
from trellis.seeds import generator

FEWEST = 8
"""Samples that every part gets at least, where there are enough for all."""

_ALPHA_MIN, _ALPHA_MAX = 1e-3, 1e6


@dataclass(frozen=True)
class Split:
    """How a data set is cut into parts; `alpha` is the Dirichlet distribution's."""

    kind: Literal["iid", "classes", "dirichlet"]
    alpha: float = math.nan


_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})", re.ASCII)


def parse_partition(text: str) -> tuple[int, int]:
    """Return (index, parts) of `INDEX/PARTS`: `0/3` is the first of three.

    Raises:
        ConfigError: It is not of that form, or no such part exists.
    """
    match = _PART.fullmatch(text)
    if match is None:
        raise ConfigError(
            "options", [Fault("partition", f"{text[:80]!r} came, INDEX/PARTS is due", "such as 0/3")]
        )
    index, parts = int(match[1]), int(match[2])
    _require_part(index, parts)
    return index, parts


def parse_split(text: str) -> Split:
    """Return the cut that `iid`, `classes` or `dirichlet:ALPHA` names.

    Raises:
        ConfigError: It is none of them.
    """
    if text == "iid":
        return Split("iid")
    if text == "classes":
        return Split("classes")
    kind, _, number = text.partition(":")
    try:
        alpha = float(number) if kind == "dirichlet" else math.nan
    except ValueError:
        alpha = math.nan
    if not _ALPHA_MIN <= alpha <= _ALPHA_MAX:
        problem = f"{text[:80]!r} came, iid, classes or dirichlet:ALPHA is due"
        remedy = (
            f"such as dirichlet:0.3; ALPHA from {_ALPHA_MIN:g} to {_ALPHA_MAX:g}, the lower the more uneven"
        )
        raise ConfigError("options", [Fault("split", problem, remedy)])
    return Split("dirichlet", alpha)


def partition(dataset: Dataset, index: int, parts: int, *, split: str, seed: int) -> Dataset:
    """Return part `index` of `parts`, as `cut` makes them.

    Raises:
        ConfigError: No such part, or no such split.
        DataError: As `cut` does.
    """
    _require_part(index, parts)
    return dataset.take(cut(dataset, parts, split=split, seed=seed)[index])


def cut(dataset: Dataset, parts: int, *, split: str, seed: int) -> list[Indices]:
    """Return the samples of every part; they are disjoint, together the whole, and follow from the seed.

    `iid` deals shuffled samples out evenly. `dirichlet:ALPHA` makes the classes uneven as in Hsu et al.,
    "Measuring the effects of non-identical data distribution for federated visual classification", 2019; as
    the parts must be disjoint and complete, the draw is one Dirichlet(α) over the parts for every class
    (Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", 2019, sec. 4), not one
    over the classes for every part. `classes` gives part i the class i modulo their number, as the one-class
    devices of Liu et al., "Client-edge-cloud hierarchical federated learning", 2020, sec. IV; the parts of
    one class share it evenly, and where there are fewer parts than classes each has several.

    Raises:
        ConfigError: No such split.
        DataError: There are fewer samples, or of a class fewer, than parts that share them.
    """
    kind = parse_split(split)
    if len(dataset) < parts:
        raise DataError(
            f"data set {dataset.name!r}", f"holds {len(dataset)} samples, too few for {parts} parts"
        )
    rng = generator(seed, "partition", split, parts)
    match kind:
        case Split("classes"):
            chosen = _by_class(dataset, parts, rng)
        case Split("dirichlet", alpha):
            chosen = _dirichlet(dataset.y, parts, alpha, rng)
        case _:
            chosen = np.array_split(rng.permutation(len(dataset)), parts)
    return [np.sort(part) for part in chosen]


def _require_part(index: int, parts: int) -> None:
    if parts < 1 or not 0 <= index < parts:
        problem = f"'{index}/{parts}' came, an index from 0 to below the number of parts is due"
        raise ConfigError("options", [Fault("partition", problem, "the first of three is 0/3, the last 2/3")])


def _by_class(dataset: Dataset, parts: int, rng: np.random.Generator) -> list[Indices]:
    labels = members_by_label(dataset.y)
    pieces: list[list[Indices]] = [[] for _ in range(parts)]
    for number, (label, held) in enumerate(labels):
        members = rng.permutation(held)
        sharing = range(number, parts, len(labels)) if number < parts else [number % parts]
        if len(members) < len(sharing):
            problem = (
                f"holds {len(members)} samples of class {label}, too few for the {len(sharing)} parts of it"
            )
            raise DataError(f"data set {dataset.name!r}", problem)
        for part, piece in zip(sharing, np.array_split(members, len(sharing)), strict=True):
            pieces[part].append(piece)
    return [np.concatenate(part) for part in pieces]


def _dirichlet(y: Labels, parts: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    pieces: list[list[Indices]] = [[] for _ in range(parts)]
    for _, held in members_by_label(y):
        members = rng.permutation(held)
        shares = rng.dirichlet(np.full(parts, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.intp)
        for part, piece in zip(pieces, np.split(members, cuts), strict=True):
            part.append(piece)
    return _with_fewest([np.concatenate(part) for part in pieces], min(FEWEST, len(y) // parts), rng)


def _with_fewest(parts: list[Indices], fewest: int, rng: np.random.Generator) -> list[Indices]:
    """Move samples chosen at random from the largest part of the moment, until every part has `fewest`."""
    members = [part.tolist() for part in parts]
    for poor in members:
        while len(poor) < fewest:
            rich = max(members, key=len)
            poor.append(rich.pop(int(rng.integers(len(rich)))))
    return [np.array(part, dtype=np.intp) for part in members]
