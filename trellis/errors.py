"""Every error that Trellis raises on purpose.

A class says what the caller does next; a message says who, what came, what was due, and what to do.

    TrellisError                  exit code 1
    ├── InvalidInput              exit code 2: mend the input; `faults` names every field
    │   ├── DescriptorError       a task descriptor
    │   ├── PayloadError          an MQTT payload or topic
    │   ├── TensorError           packed tensors
    │   ├── ConfigError           options, environment, trellis.toml, key files
    │   ├── DataError             a data set, or a device's data against a task
    │   └── ArtefactError         an exported model file that is broken, hostile or another model's
    ├── Refused                   a rule said no: don't retry; `code` says which (exit code 2: mend the task)
    ├── DiskFailed                this machine's disk did not take it: free space, then try again
    ├── Damaged                   what was kept is there and cannot be understood: begin anew
    ├── Unavailable               nobody answered (broker, server, SuperLink): try again, or start it
    ├── MissingExtra              exit code 2: install the named extra
    ├── Displaced                 exit code 3: another process has come under this one's name; don't come back
    ├── TrainingFailed            local training or evaluation failed; the update is dropped
    └── Canceled                  the work was called off; not a failure
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class TrellisError(Exception):
    """Anything Trellis raises on purpose."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing wrong with an input.

    Attributes:
        field: Dotted path of the field, `""` for the input as a whole.
        problem: What came and what was due.
        remedy: What to do, or `""` where the problem says it.
    """

    field: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.problem}" + (f" ({self.remedy})" if self.remedy else "")


class InvalidInput(TrellisError):
    """An input that must be mended; `faults` holds every fault found, never only the first."""

    exit_code = 2

    def __init__(self, what: str, faults: Iterable[Fault] | str = ()) -> None:
        self.what = what
        self.faults = (Fault("", faults),) if isinstance(faults, str) else tuple(faults)
        lines = [str(fault) for fault in self.faults]
        if len(lines) <= 1:
            message = ": ".join([what, *lines])
        else:
            message = "\n  - ".join([f"{what}: {len(lines)} faults", *lines])
        super().__init__(message)


class DescriptorError(InvalidInput):
    """A task descriptor that breaks the contract."""


class PayloadError(InvalidInput):
    """An MQTT topic or payload that is not ours."""


class TensorError(InvalidInput):
    """Packed tensors, or a set of arrays, that do not fit."""


class ConfigError(InvalidInput):
    """Options, environment, `trellis.toml` or key files."""


class DataError(InvalidInput):
    """A data set that cannot be read, or that does not meet a task's demands."""


class ArtefactError(InvalidInput):
    """An exported model file that is broken, hostile, or not the model that was asked for."""


TASK_FIELDS = {
    "clock": "issued_at",
    "expired": "expires_at",
    "aggregation": "aggregation",
    "model": "model.name",
    "data": "evaluate.on",
    "region": "regions",
}
"""The codes of refusals for what a task says, and the field that says it."""


class Refused(TrellisError):
    """A rule said no.

    Attributes:
        code: A short stable word for machines: `signature`, `untrusted`, `clock`, `expired`, `region`,
            `revision`, `server`, `data`, `model`, `conflict`, `broker`, `reply`, `link`, `token`,
            `unknown`, `principal`, `aggregation`, `extra`, `export`, `artefact`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        # What stands in the task is an input, whoever looks at it: alone as well as among other faults of it.
        self.exit_code = 2 if code in TASK_FIELDS else 1
        super().__init__(message)


class DiskFailed(TrellisError):
    """What must be kept could not be written: the disk is full, read-only or broken."""


class Damaged(TrellisError):
    """What was kept cannot be understood any more; the message names the files."""


class Unavailable(TrellisError):
    """Nobody answered; the message says who was asked and how to start it."""


class MissingExtra(TrellisError):
    """An optional package is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed: pip install 'trellis-fl[{extra}]'")


class Displaced(TrellisError):
    """A younger process is there under the same name, and this one ends: two would end each other in turn."""

    exit_code = 3


class TrainingFailed(TrellisError):
    """Local training or evaluation failed; nothing of it may be averaged in."""


class Canceled(TrellisError):
    """The work was called off."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what was raised: a TaskGroup wraps it, in groups of groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def in_one_line(error: BaseException) -> str:
    """Return what was raised for people: our errors speak for themselves, others come with their type."""
    said = (
        str(one) if isinstance(one, TrellisError) else f"{type(one).__name__}: {one}" for one in leaves(error)
    )
    return " ".join("; ".join(said).split())[:2000]
