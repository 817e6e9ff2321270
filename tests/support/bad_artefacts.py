"""Fronts that give a device what it should not train from, each made of a right artefact for ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from artefact_fronts import Scripted, offer_of
from starlette.responses import Response
from starlette.types import ASGIApp

from models.manifest import METADATA_KEY, Manifest


@dataclass(frozen=True)
class Bad:
    """A front for the right artefact's content, and what a device says of it, as a regular expression."""

    front: Callable[[bytes], ASGIApp]
    problem: str


def honest(content: bytes) -> ASGIApp:
    """Return a front that offers and gives just this."""
    return Scripted(offer_of(content), lambda _: Response(content))


def changed(good: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    """Return the artefact after `change` has had it."""
    model = onnx.load_model_from_string(good)
    change(model)
    return model.SerializeToString()


def renamed(good: bytes, **said: Any) -> bytes:
    """Return the artefact with another manifest."""

    def change(model: onnx.ModelProto) -> None:
        (entry,) = (one for one in model.metadata_props if one.key == METADATA_KEY)
        entry.value = Manifest.parse(entry.value, where="it").model_copy(update=said).to_json()

    return changed(good, change)


def _custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"
    model.opset_import.add(domain="evil.example", version=1)


def _outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    for field in ("raw_data", "int64_data", "float_data", "int32_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../journal.sqlite"


def _other_names(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "another"


def _instead(content: Callable[[bytes], bytes]) -> Callable[[bytes], ASGIApp]:
    return lambda good: Scripted(offer_of(good), lambda _: Response(content(good)))


def _of(content: Callable[[bytes], bytes]) -> Callable[[bytes], ASGIApp]:
    return lambda good: honest(content(good))


BAD: dict[str, Bad] = {
    "wrong digest": Bad(_instead(lambda good: bytes(len(good))), "SHA-256"),
    "truncated": Bad(_instead(lambda good: good[:-9]), "it offered"),
    "truncated at its source": Bad(_of(lambda good: good[: len(good) // 2]), "is no onnx file, or a broken"),
    "no graph": Bad(_of(lambda _: b"not a graph at all"), "is no onnx file, or a broken"),
    "3 GB": Bad(
        lambda good: Scripted(offer_of(good).model_copy(update={"size": 3 * 1024**3})),
        "has 3221225472 bytes, at most 268435456 are taken here: start the device with a higher",
    ),
    "other model": Bad(_of(lambda good: renamed(good, model="lenet5")), "lenet5"),
    "other shape": Bad(_of(lambda good: renamed(good, shape=(4,))), "shape"),
    "other classes": Bad(_of(lambda good: renamed(good, classes=9)), r"(?s)9\) is due"),
    "other names": Bad(_of(lambda good: changed(good, _other_names)), "which the graph does not have"),
    "other runtime": Bad(_of(lambda good: renamed(good, runtime="tflite")), "tflite"),
    "custom operator": Bad(_of(lambda good: changed(good, _custom)), "evil.example"),
    "external data": Bad(_of(lambda good: changed(good, _outside)), "journal.sqlite|external|outside"),
}


def contents(*folders: Path, without: str = "journal.sqlite") -> dict[Path, str]:
    """Return the digest of every file below the folders, of each link where it leads, and all folders.

    A device's journal changes with everything that it says, and is left out.
    """
    found: dict[Path, str] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.name.startswith(without):
            continue
        if path.is_symlink() or not path.is_file():
            found[path] = str(path.readlink()) if path.is_symlink() else ""
        else:
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
