"""Random choices that derive from a task's seed and from who makes them, and from nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *scope: str | int) -> np.random.Generator:
    """Return the generator of one choice: the same seed and scope give the same stream everywhere.

    The scope names the choice, such as `("train", "cam-7", 3)`. SHA-256 spreads it over a
    `SeedSequence`, so neighbouring scopes share nothing.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in scope)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(np.frombuffer(digest, dtype=np.uint32)))
    )
