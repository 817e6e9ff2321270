"""`runs/<task>/`: what the server keeps of a task. Everything is on disk before it is acted on.

descriptor.json    the signed envelope as it came     metrics.jsonl    one finished round a line
state.json         the task's state                   summary.json, report.html    at the end
The ServerApp writes `checkpoints/` and `model.safetensors` beside them. A task that has ended and runs again
under a higher revision leaves its first run in `runs/<task>.r<revision>/`. A new task's folder is made as
`runs/.<task>.new/` and renamed when whole; `load` ends what a kill left there, so no revision is forgotten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trellis.descriptor import TaskDescriptor, parse_json
from trellis.envelope import Envelope
from trellis.errors import ConfigError, InvalidInput, TrellisError
from trellis.files import sync_folder, write_atomically
from trellis.flower.backchannel import RoundRecord
from trellis.identifiers import identifier
from trellis.payloads import CentralTask, Count, TaskState, now_ms
from trellis.tier.history import append_round

logger = logging.getLogger(__name__)

DESCRIPTOR = "descriptor.json"
STATE = "state.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
MODEL = "model.safetensors"
_STAGED = ".new"


class TaskRecord(CentralTask):
    """`state.json`: what `central/tasks/<task>/state` says, and when the task was posted (ms)."""

    posted: Count

    def elapsed_s(self, now: int) -> float:
        """Return the seconds from its posting to its end, or to `now` (ms)."""
        # A clock that was set back makes no time negative.
        return max((self.since if self.state.ended else now) - self.posted, 0) / 1000

    def public(self) -> CentralTask:
        """Return what is published of it."""
        return CentralTask.model_validate(self.model_dump(exclude={"posted"}) | {"ts": now_ms()})


@dataclass(frozen=True)
class StoredTask:
    """A task as the disk has it, without its rounds; the descriptor is the envelope's, parsed."""

    envelope: Envelope
    descriptor: TaskDescriptor
    record: TaskRecord


class Store:
    """The folder of all tasks; one server holds it at a time."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs.resolve()
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.runs / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"runs folder {self.runs}", f"cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(
                f"runs folder {self.runs}", "is held by another `trellis server`: end it, or give --runs"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def folder(self, task: str) -> Path:
        """Return where a task's files lie."""
        return self.runs / task

    def load(self) -> list[StoredTask]:
        """Return every task; a folder that cannot be read is named in the log and left alone."""
        for staged in self.runs.glob(f".*{_STAGED}"):
            self._settle(staged)
        tasks: list[StoredTask] = []
        for folder in sorted(self.runs.iterdir()):
            if "." in folder.name or not (folder / DESCRIPTOR).is_file():
                continue
            try:
                tasks.append(_read_task(folder))
            except (TrellisError, OSError) as error:
                logger.error("folder %s is left alone: %s", folder, error)
        return tasks

    def save(self, task: StoredTask) -> None:
        """Write a task's envelope, then its state: an envelope alone is a task that was just posted."""
        folder = self.folder(task.descriptor.task)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / DESCRIPTOR, task.envelope.to_bytes())
        self.save_record(task.record)

    def stage(self, task: StoredTask) -> None:
        """Write the folder of a new task, or of a new run of one, beside the others; `install` follows."""
        staged = self._staged(task.descriptor.task)
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir()
            write_atomically(staged / DESCRIPTOR, task.envelope.to_bytes())
            write_atomically(staged / STATE, task.record.to_bytes())
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def install(self, task: str, ended: int | None) -> None:
        """Put what was staged in its place; the run that `ended` under that revision is moved aside."""
        folder, aside = self.folder(task), None
        if folder.exists():
            aside = self._free_name(f"{task}.left" if ended is None else f"{task}.r{ended}")
            folder.rename(aside)
        try:
            self._staged(task).rename(folder)
        except OSError:
            if aside is not None:
                aside.rename(folder)
            raise
        sync_folder(self.runs)

    def _staged(self, task: str) -> Path:
        return self.runs / f".{task}{_STAGED}"

    def _free_name(self, name: str) -> Path:
        aside, number = self.runs / name, 1  # no task is called so: identifiers have no dot
        while aside.exists():
            number += 1
            aside = self.runs / f"{name}-{number}"
        return aside

    def _settle(self, staged: Path) -> None:
        folder = self.folder(staged.name.removeprefix(".").removesuffix(_STAGED))
        try:
            if folder.exists() or not (staged / DESCRIPTOR).is_file():
                shutil.rmtree(staged)  # the kill came before the run before it was moved aside
            else:
                staged.rename(folder)
        except OSError as error:
            logger.error("folder %s is left alone: %s", staged, error)

    def save_record(self, record: TaskRecord) -> None:
        """Write a task's state."""
        write_atomically(self.folder(record.task) / STATE, record.to_bytes())

    def append_round(self, task: str, record: RoundRecord) -> None:
        """Append one finished round to the task's metrics."""
        append_round(self.folder(task) / METRICS, record)


def _read_task(folder: Path) -> StoredTask:
    envelope = Envelope.parse((folder / DESCRIPTOR).read_bytes())
    descriptor = parse_json(envelope.payload)
    if descriptor.task != identifier(folder.name, what="folder"):
        raise InvalidInput(f"folder {folder.name!r}", f"holds the task {descriptor.task!r}")
    state = folder / STATE
    record = TaskRecord.parse(state.read_bytes()) if state.is_file() else posted(descriptor)
    # The envelope is written first: after a kill between the two it is the newer one.
    record = record.model_copy(update={"revision": descriptor.revision})
    return StoredTask(envelope, descriptor, record)


def posted(descriptor: TaskDescriptor) -> TaskRecord:
    """Return the record of a task that has just come."""
    now = now_ms()
    return TaskRecord(
        task=descriptor.task,
        revision=descriptor.revision,
        state=TaskState.POSTED,
        since=now,
        posted=now,
        rounds=descriptor.train.rounds,
    )
