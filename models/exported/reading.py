"""An exported model's file, checked before a runtime opens it.

A file comes from elsewhere, and a runtime believes what it reads: a custom operator is code, external data is
any file of this machine, and a graph that is not the manifest's would train another model. So the file is
read here first, by our own readers, as data.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.exported.graph_file import GraphFile, MalformedFile, Port
from models.exported.onnx_file import read_onnx
from models.exported.tflite_file import read_tflite
from models.manifest import METADATA_KEY, Manifest, Purpose, Runtime
from trellis.errors import ArtefactError, Fault

MAX_ARTEFACT_BYTES = 256 * 1024**2
"""As much as a device fetches by default. Training artefacts hold no weights: the zoo's have 0.3 MB."""

_READERS: Mapping[Runtime, Callable[..., GraphFile]] = {"onnx": read_onnx, "tflite": read_tflite}
LABEL_DTYPES: Mapping[Runtime, str] = {"onnx": "int64", "tflite": "int32"}
_SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Artefact:
    """A file that keeps to its format and to its manifest.

    Attributes:
        where: The file's name, for messages.
        manifest: What it says of itself.
        content: The whole file, as it was checked.
    """

    where: str
    manifest: Manifest
    content: bytes


def read_artefact(
    path: Path, *, runtime: Runtime, purpose: Purpose, max_bytes: int = MAX_ARTEFACT_BYTES
) -> Artefact:
    """Return a file whose graph is what its manifest says, and asks for nothing that is not allowed.

    Raises:
        ArtefactError: It cannot be read, is too large, broken, of another runtime or purpose, not what its
            manifest says, or asks for operators or files beside it; every fault found is named.
    """
    where = path.name
    what = f"artefact {where!r}"
    content = _content(path, what, max_bytes)
    try:
        file = _READERS[runtime](content, metadata_key=METADATA_KEY)
    except MalformedFile as error:
        raise ArtefactError(what, f"is no {runtime} file, or a broken one: {error}") from None
    if file.strange:
        shown = [Fault("", problem) for problem in file.strange[:_SHOWN_FAULTS]]
        more = len(file.strange) - len(shown)
        raise ArtefactError(what, [*shown, *([Fault("", f"and {more} faults more")] if more else [])])
    if file.manifest is None:
        raise ArtefactError(what, [Fault("", "has no manifest", "make it with 'trellis export'")])
    manifest = Manifest.parse(file.manifest, where=where)
    faults = [*_faults_of_kind(manifest, runtime, purpose)] or [*_faults_of_graph(manifest, file)]
    if faults:
        raise ArtefactError(what, faults)
    return Artefact(where, manifest, content)


def require_model(artefact: Artefact, model: str, *, shape: tuple[int, ...], classes: int) -> None:
    """Pass if the artefact is of that model, for such samples and so many classes.

    Raises:
        ArtefactError: It is another's.
    """
    manifest = artefact.manifest
    came = {"model": manifest.model, "shape": manifest.shape, "classes": manifest.classes}
    due = {"model": model, "shape": shape, "classes": classes}
    faults = [
        Fault(field, f"is {came[field]!r}, {due[field]!r} is due")
        for field in due
        if came[field] != due[field]
    ]
    if faults:
        raise ArtefactError(f"artefact {artefact.where!r}", faults)


def _content(path: Path, what: str, max_bytes: int) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ArtefactError(what, "is no file")
        size = found.st_size
        if size <= max_bytes:
            with path.open("rb") as file:
                # One byte more than allowed: a file that grows is not read to its end.
                content = file.read(max_bytes + 1)
            size = len(content)
    except OSError as error:
        raise ArtefactError(what, f"cannot be read: {error.strerror}") from None
    if size > max_bytes:
        raise ArtefactError(what, f"has {size} bytes, at most {max_bytes} are due")
    if not content:
        raise ArtefactError(what, "is empty")
    return content


def _faults_of_kind(manifest: Manifest, runtime: Runtime, purpose: Purpose) -> Iterator[Fault]:
    if manifest.runtime != runtime:
        yield Fault("runtime", f"is {manifest.runtime!r}, {runtime!r} is due")
    if manifest.purpose != purpose:
        remedy = f"export it with --for {purpose}"
        yield Fault("purpose", f"is {manifest.purpose!r}, {purpose!r} is due", remedy)


def _faults_of_graph(manifest: Manifest, file: GraphFile) -> Iterator[Fault]:
    """Yield where the graph is not what the manifest says it is."""
    for name, program in manifest.programs.items():
        ports = file.ports(name)
        if ports is None:
            yield Fault(f"programs.{name}", "is not in the graph")
            continue
        sides = (("inputs", program.inputs, ports.inputs), ("outputs", program.outputs, ports.outputs))
        for side, roles, found in sides:
            for role, called in roles.items():
                field = f"programs.{name}.{side}.{role}"
                if called not in found:
                    yield Fault(field, f"is called {called[:80]!r}, which the graph does not have")
                elif problem := _misfit(found[called], _due(manifest, role)):
                    yield Fault(field, problem)


def _due(manifest: Manifest, role: str) -> Port:
    """Return what a role's port has to be; an axis of None takes any number of samples."""
    batch = (manifest.batch,)
    kind, _, name = role.partition(":")
    if kind in ("tensor", "gradient", "buffer"):
        tensor = next(tensor for tensor in manifest.tensors if tensor.name == name)
        return Port(tensor.dtype, tensor.shape)
    if kind == "mask":
        return Port("float32", batch + next(mask.shape for mask in manifest.masks if mask.name == name))
    return {
        "x": Port("float32", batch + manifest.shape),
        "y": Port(LABEL_DTYPES[manifest.runtime], batch),
        "w": Port("float32", batch),
        "loss": Port("float32", ()),
        "correct": Port("float32", ()),
        "logits": Port("float32", (*batch, manifest.classes)),
    }[kind]


def _misfit(came: Port, due: Port) -> str:
    """Return what is wrong with a port, or `""`; a shape that the file leaves open is no fault."""
    if came.dtype != due.dtype:
        return f"is {came.dtype} in the graph, {due.dtype} is due"
    if came.shape is None or due.shape is None:
        return ""
    if math.prod(size or 1 for size in came.shape) == 1 and due.shape == ():
        return ""
    fits = len(came.shape) == len(due.shape) and all(
        size is None or size == wanted for size, wanted in zip(came.shape, due.shape, strict=True)
    )
    return "" if fits else f"has shape {_shown(came.shape)} in the graph, {_shown(due.shape)} is due"


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
