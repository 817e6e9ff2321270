"""Exports models for devices without PyTorch, once for each model, shape, number of classes and runtime.

An export runs in a child process, one at a time, because the server keeps PyTorch out of its memory. What it
made lies in the artefact store and is found again by a later server, as long as exporter, PyTorch and the
model's source are what they were. Why a model cannot be exported is kept as long; what may be this machine's
fault and pass (a disk, memory, time) is tried again: on a full disk as long as it takes, else a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

import models
from central_server.export_child import run_export
from models.registry import find_model
from trellis import __version__
from trellis.artefacts.offer import NotYet, Offer
from trellis.artefacts.store import ArtefactStore
from trellis.descriptor import TaskDescriptor
from trellis.errors import ArtefactError, DiskFailed, Refused, TrellisError, Unavailable
from trellis.files import write_atomically
from trellis.processes import PidFile

logger = logging.getLogger(__name__)

EXPORT_S = 600.0
"""How long an export may take."""
MOST_BATCH = 256
"""A fixed batch takes its memory on every device; a larger one is trained in parts."""
_AGAIN_S, _AGAIN_MOST_S = 30.0, 600.0
"""How long what may pass rests before it is tried again; twice as long each time."""
_MOST_TRIES = 5
"""What fails so often in a row, with room on the disk, does not pass: devices would wait for it for days."""
SOURCE_HELD_S = 10.0
"""How long it is taken for granted that what an export follows from is what it was."""
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "litert-torch", "ai-edge-litert")
"""Whatever of them is installed in another version may export differently."""


@dataclass(frozen=True)
class Wanted:
    """What is to be exported.

    Attributes:
        batch: Samples that a TFLite graph takes at once, which are the task's, so that no step is padded and
            batch statistics are PyTorch's; None where a graph takes any number.
    """

    model: str
    shape: tuple[int, ...]
    classes: int
    runtime: str
    batch: int | None = None

    @classmethod
    def of(cls, descriptor: TaskDescriptor, runtime: str) -> Self:
        """Return what the devices of a task need that train with `runtime`."""
        batch = min(descriptor.train.batch_size, MOST_BATCH) if runtime == "tflite" else None
        return cls(descriptor.model.name, descriptor.data.shape, descriptor.data.classes, runtime, batch)

    def __str__(self) -> str:
        return f"{self.model} for {self.runtime}, {'×'.join(map(str, self.shape))} to {self.classes} classes"


@dataclass(frozen=True)
class _Failure:
    """Why an export failed.

    Attributes:
        source: The digest of what it followed from.
        lasts: It is the model's, and would fail again.
        tries: How many failed in a row that were not.
        disk: It is the disk's, and passes once there is room.
    """

    source: str
    reason: str
    lasts: bool
    tries: int
    since: float
    disk: bool = False

    @property
    def rests_s(self) -> float:
        rest_s = min(_AGAIN_MOST_S, _AGAIN_S * 2.0 ** min(self.tries - 1, 20))
        return self.since + rest_s - time.monotonic()


Command = Callable[[Wanted, Path], Sequence[str]]
"""The program that writes an export into a file: it exits with 0, or says `error: …` on its stderr."""


def export_command(wanted: Wanted, path: Path) -> list[str]:
    """Return the command that exports with our own exporter."""
    shape = ",".join(map(str, wanted.shape))
    batch = () if wanted.batch is None else ("--batch", str(wanted.batch))
    what = ("--shape", shape, "--classes", str(wanted.classes), *batch)
    to = ("--format", wanted.runtime, "--for", "training", "-o", str(path))
    return [sys.executable, "-m", "trellis", "export", wanted.model, *what, *to]


class Exporter:
    """Exports from `__aenter__` to `__aexit__`, which ends what is under way.

    Args:
        folder: Of its own; the artefacts lie in it too.
        command: What exports; another in trials.

    Attributes:
        store: The artefacts.
    """

    def __init__(self, folder: Path, command: Command = export_command) -> None:
        self.store = ArtefactStore(folder / "files")
        self._folder, self._command = folder, command
        self._pid_file = PidFile(folder / "export.pid")
        self._turn, self._reading = asyncio.Lock(), asyncio.Lock()
        self._sources: dict[str, tuple[str, float]] = {}  # by model: the digest, and when it was read
        self._under_way: dict[Wanted, asyncio.Task[None]] = {}
        self._made: dict[Wanted, tuple[str, Offer]] = {}
        self._failed: dict[Wanted, _Failure] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._pid_file.end_previous)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    async def offer(self, wanted: Wanted) -> Offer:
        """Return the export.

        Raises:
            NotYet: It is under way, or is tried again after it failed for what may pass.
            Refused: It cannot be made (`export`), and why.
            Unavailable: The model's source cannot be read.
        """
        if wanted in self._under_way:
            raise NotYet(f"the server is exporting {wanted}")
        source = await self._source(wanted.model)
        if (made := await asyncio.to_thread(self._found, wanted, source)) is not None:
            return made
        failed = self._failed.get(wanted)
        if failed is not None and failed.source == source:
            if failed.lasts:
                raise Refused("export", failed.reason)
            if (rests_s := failed.rests_s) > 0:
                again = f"{failed.reason}; it tries again in {rests_s:.0f} s"
                raise NotYet(again, again_s=min(max(rests_s, 1.0), 30.0))
        if wanted not in self._under_way:
            task = asyncio.create_task(self._export(wanted, source), name=f"export {wanted}")
            self._under_way[wanted] = task
            task.add_done_callback(lambda _: self._under_way.pop(wanted, None))
        raise NotYet(f"the server is exporting {wanted}")

    async def begin(self, wanted: Wanted) -> None:
        """Have it exported, if it is not yet, and tried anew if it failed.

        What goes wrong is told to whoever asks for it.
        """
        self._failed.pop(wanted, None)
        self._sources.pop(wanted.model, None)  # it may be mended
        try:
            await self.offer(wanted)
        except NotYet:
            pass
        except TrellisError as error:
            logger.error("export %s does not begin: %s", wanted, error)

    async def _source(self, model: str) -> str:
        """Return the digest of what a model's export follows from, read once for all who ask at one time."""
        async with self._reading:
            digest, read = self._sources.get(model, ("", float("-inf")))
            if time.monotonic() - read >= SOURCE_HELD_S:
                digest = await asyncio.to_thread(_source_digest, model)
                self._sources[model] = (digest, time.monotonic())
            return digest

    def _found(self, wanted: Wanted, source: str) -> Offer | None:
        known = self._made.get(wanted)
        if known is None or known[0] != source:
            try:
                text = self._index(wanted, source).read_bytes()
                known = (source, Offer.parse(text, where=str(self._folder)))
            except (OSError, ArtefactError):
                return None
        if self.store.find_intact(known[1].sha256) is None:
            return None
        self._made[wanted] = known
        return known[1]

    def _index(self, wanted: Wanted, source: str) -> Path:
        name = hashlib.sha256(json.dumps([asdict(wanted), source], sort_keys=True).encode()).hexdigest()
        return self._folder / f"{name[:32]}.json"

    async def _export(self, wanted: Wanted, source: str) -> None:
        try:
            async with self._turn:
                logger.info("export %s: begins", wanted)
                offer = await self._made_by_child(wanted)
                entry = self._index(wanted, source)
                await asyncio.to_thread(write_atomically, entry, offer.to_json().encode())
        except (TrellisError, OSError) as error:
            self._note(wanted, source, error)
            return
        self._failed.pop(wanted, None)
        self._made[wanted] = (source, offer)
        logger.info("export %s: %d bytes, SHA-256 %s", wanted, offer.size, offer.sha256)

    def _note(self, wanted: Wanted, source: str, error: TrellisError | OSError) -> None:
        reason = f"the server cannot export {wanted}: {error}"
        disk, before = isinstance(error, DiskFailed | OSError), self._failed.get(wanted)
        alike = before is not None and (before.source, before.disk) == (source, disk)
        tries = 1 + (before.tries if before is not None and alike else 0)
        lasts = isinstance(error, Refused | ArtefactError)
        if not disk and tries >= _MOST_TRIES:
            lasts, reason = True, f"{reason}; it was tried {tries} times"
        logger.error("%s", reason)
        self._failed[wanted] = _Failure(source, reason, lasts, tries, time.monotonic(), disk=disk)

    async def _made_by_child(self, wanted: Wanted) -> Offer:
        # Compilers leave a lot behind where temporary files are.
        workshop = self._folder / "making"
        made = workshop / f"made.{wanted.runtime}"
        try:
            await asyncio.to_thread(_empty, workshop)
            await run_export(self._command(wanted, made), workshop, self._pid_file, limit_s=EXPORT_S)
            size = made.stat().st_size
            sha256 = await asyncio.to_thread(self.store.take, made)
        except FileNotFoundError as error:
            raise TrellisError(f"the export wrote no file: {error}") from error
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, workshop, ignore_errors=True))
        return Offer(runtime=wanted.runtime, model=wanted.model, sha256=sha256, size=size)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


def _exporters_sources() -> list[Path]:
    """Return what makes a file of a model, what it says of itself, and what it is checked by."""
    ours = Path(models.__file__).parent
    folders = [path for name in ("export", "exported") for path in sorted((ours / name).rglob("*.py"))]
    return [*folders, ours / "manifest.py", ours / "backends" / "torch.py"]


def _models_sources(model: str) -> list[Path]:
    folder = _source_folder(model)
    return [] if folder is None else sorted(folder.glob("*.py"))


def _source_folder(model: str) -> Path | None:
    """Return where a model is defined, if that is a folder: it may be built of its neighbours' parts."""
    spec = find_model(model)
    build: object = spec.build
    while isinstance(build, functools.partial):
        build = build.func
    # A function has a module of its own, an object that is called has its class's.
    file = getattr(sys.modules.get(str(build.__module__)), "__file__", None)
    return None if file is None else Path(file).parent


def _source_digest(model: str) -> str:
    """Return a digest of what an export follows from: exporter, PyTorch, and the model's source."""
    digest = hashlib.sha256(f"trellis {__version__}\n".encode())
    for tool in _TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{tool} {version(tool)}\n".encode())
    try:
        for path in (*_exporters_sources(), *_models_sources(model)):
            digest.update(path.read_bytes())
    except OSError as error:
        raise Unavailable(f"the source of model {model!r} cannot be read: {error}") from error
    return digest.hexdigest()
