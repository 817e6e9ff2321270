"""TensorBoard events of a task, by TensorBoard's own writer: no torch, no TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trellis.errors import MissingExtra
from trellis.flower.backchannel import RoundRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TensorBoard:
    """Its classes: an extra, and slow to import."""

    writer: Any
    event: Any
    summary: Any


class _Import:
    """Imports TensorBoard once for all tasks, and says once that it is missing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = False
        self._found: _TensorBoard | None = None

    def get(self) -> _TensorBoard | None:
        with self._lock:
            if not self._done:
                self._found = self._load()
                self._done = True
            return self._found

    def _load(self) -> _TensorBoard | None:
        try:
            return _TensorBoard(
                writer=importlib.import_module(
                    "tensorboard.summary.writer.event_file_writer"
                ).EventFileWriter,
                event=importlib.import_module("tensorboard.compat.proto.event_pb2").Event,
                summary=importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary,
            )
        except ImportError:
            logger.warning("no TensorBoard events are written: %s", MissingExtra("tensorboard", "server"))
            return None


_tensorboard = _Import()


def warm_up() -> None:
    """Import TensorBoard now, so that the first round does not wait for it."""
    _tensorboard.get()


class Scalars:
    """Writes one point a round into a folder; without TensorBoard it writes nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, record: RoundRecord) -> None:
        """Add a round's numbers, visible to a running TensorBoard on return; a full disk costs the point."""
        tensorboard = _tensorboard.get()
        if tensorboard is None:
            return
        try:
            self._add(tensorboard, record)
        except OSError as error:
            logger.warning("%s: no TensorBoard point of round %d: %s", self._folder, record.round, error)
            self._writer = None

    def _add(self, tensorboard: _TensorBoard, record: RoundRecord) -> None:
        if self._writer is None:
            self._writer = tensorboard.writer(str(self._folder))
        values = [
            tensorboard.summary.Value(tag=tag, simple_value=value) for tag, value in points(record).items()
        ]
        summary = tensorboard.summary(value=values)
        self._writer.add_event(tensorboard.event(wall_time=time.time(), step=record.round, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a later `write` opens another."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


def points(record: RoundRecord) -> dict[str, float]:
    """Return a round's numbers by TensorBoard tag."""
    named = {"loss": record.loss, "accuracy": record.accuracy, **record.metrics}
    found = {f"model/{name}": value for name, value in named.items() if value is not None}
    return found | {
        "round/selected": float(record.selected),
        "round/replied": float(record.replied),
        "round/failed": float(record.failed),
        "round/duration_s": record.duration_s,
        "round/bytes_up": float(record.bytes_up),
        "round/bytes_down": float(record.bytes_down),
    }
