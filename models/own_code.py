"""Whose fault it is when a model's own code, or what runs it, raises something."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trellis.errors import TrellisError

_LACKS = re.compile(
    r"can('t|not) allocate memory|failed to allocate memory|bad_alloc|can't start new thread",
    re.IGNORECASE,
)
"""How PyTorch, ONNX Runtime, C++ and Python speak of memory or threads that they did not get."""


def is_models_own(error: Exception) -> bool:
    """Whether a model's code is to blame for what was raised: not for what is told already, or passes."""
    if isinstance(error, TrellisError | OSError | MemoryError):
        return False
    return not any(_LACKS.search(str(cause)) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what caused it, the first cause first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    yield from reversed(chain)
