"""What a service's bus may meet beside a task, put in the place of a session's `subscribe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trellis.errors import Refused, Unavailable

Subscribe = Callable[..., Any]


async def breaks(_: Any, filters: Sequence[str]) -> Sequence[str]:
    raise RuntimeError("a bug of the bus")


async def denies(_: Any, filters: Sequence[str]) -> Sequence[str]:
    return filters


async def denies_executions_of_a_task(_: Any, filters: Sequence[str]) -> Sequence[str]:
    return [filter for filter in filters if filter.endswith("/execution") and "/tasks/+/" not in filter]


faults_of_the_bus = pytest.mark.parametrize(
    ("subscribe", "due"), [(breaks, Unavailable), (denies, Refused), (denies_executions_of_a_task, Refused)]
)
