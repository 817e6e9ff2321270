"""How files of tests, and ports, are shared out among workers, and what their processes are spared."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from trellis import loopback

# A busy machine's pauses are nobody's fault.
hypothesis.settings.register_profile(
    "ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ours")

FEDERATIONS = ("tests/benchmarks/", "tests/contract/", "tests/end_to_end/", "tests/docs/test_quickstart.py")
"""Where tests mostly wait for many processes."""


class OneWorkerWithoutFederations(LoadFileScheduling):
    """Keeps the last of three or more workers to files without federations, for as long as there are any.

    Federations wait half of their time, so that two at a time leave room for somebody who calculates. Three
    at a time would take the processors from each other, and deadlines would pass. Files of one long test come
    before those of many short ones, which fill the end.
    """

    def _assign_work_unit(self, node: Any) -> None:
        federations = [scope for scope in reversed(self.workqueue) if scope.startswith(FEDERATIONS)]
        others = [scope for scope in self.workqueue if scope not in federations]
        apart = len(self.nodes) >= 3 and node is self.nodes[-1]
        scope = [*others, *federations][0] if apart else [*federations, *others][0]
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker ports of its own: two that look for free ones at one time may find the same.

    The processes that a worker starts look among all: what a test must find free again is a `ReservedPorts`.
    """
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        loopback._PORTS = loopback._PORTS[number :: worker["workercount"]]


@pytest.fixture(autouse=True)
def root_of_the_log() -> Iterator[None]:
    """Leave the root of the log as it was: a service's handler would write into later tests' output.

    What runs in the tests' own process logs to the stderr of its test, which is closed then; of each line
    that comes later a traceback would tell on whatever is stderr there.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Share out whole files our way where `--dist loadfile` asks for that."""
    return OneWorkerWithoutFederations(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Keep what all the imports have left in memory out of every later garbage collection.

    With PyTorch and the converters one takes half a second, and Flower asks for one with every reply.
    """
    gc.collect()
    gc.freeze()
