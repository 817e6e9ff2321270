"""The manifest of exported models: written and read back, and whole or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.manifest import Manifest
from trellis.errors import ArtefactError

TRAINING: dict[str, Any] = {
    "schema": 1,
    "purpose": "training",
    "runtime": "onnx",
    "model": "tiny",
    "shape": [4],
    "classes": 3,
    "digest": "0" * 64,
    "opset": "ai.onnx 18",
    "batch": None,
    "tensors": [
        {"name": "fc.weight", "shape": [3, 4], "dtype": "float32", "kind": "parameter"},
        {"name": "norm.mean", "shape": [4], "dtype": "float32", "kind": "buffer"},
        {"name": "norm.count", "shape": [], "dtype": "int64", "kind": "constant"},
    ],
    "masks": [{"name": "dropout", "shape": [4], "keep": 0.5}],
    "programs": {
        "train": {
            "inputs": {"tensor:fc.weight": "p0", "tensor:norm.mean": "b0", "x": "x", "y": "y", "w": "w",
                       "mask:dropout": "m0"},
            "outputs": {"loss": "l", "correct": "c", "gradient:fc.weight": "g0", "buffer:norm.mean": "n0"},
        },
        "eval": {
            "inputs": {"tensor:fc.weight": "p0", "tensor:norm.mean": "b0", "x": "x", "y": "y", "w": "w"},
            "outputs": {"loss": "el", "correct": "ec", "logits": "z"},
        },
    },
    "normalize": None,
    "quantization": None,
}  # fmt: skip


def changed(*path: str | int, to: Any) -> str:
    """Return the manifest as JSON with one value replaced, or with the key removed for `to=...`."""
    copy = json.loads(json.dumps(TRAINING))
    place = copy
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(copy)


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    manifest = Manifest.parse(json.dumps(TRAINING), where="a.onnx")
    assert json.loads(manifest.to_json()) == TRAINING
    assert Manifest.parse(manifest.to_json().encode(), where="a.onnx") == manifest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Invalid JSON"),
        (changed("schema", to=2), "schema: input should be 1, got 2"),
        (changed("digest", to="00"), "digest: string should match pattern"),
        (changed("shape", 0, to=0), "shape.0: input should be greater than or equal to 1, got 0"),
        (changed("code", to="import os"), "code: is no field of it"),
        (changed("tensors", 1, "name", to="fc.weight"), "tensors name one array twice"),
        (changed("purpose", to="inference"), "predict are due for inference"),
        (changed("programs", "eval", to=...), r"\['train'\] came, eval and train are due for training"),
        (changed("programs", "train", "inputs", "w", to=...), "train.inputs: 'w' is missing"),
        (changed("programs", "train", "inputs", "tensor:else", to="e"), "'tensor:else' is no role of it"),
        (changed("programs", "train", "inputs", "mask:dropout", to=...), "'mask:dropout' is missing"),
        (changed("programs", "eval", "inputs", "mask:dropout", to="m0"), "'mask:dropout' is no role of it"),
        (changed("programs", "train", "outputs", "gradient:fc.weight", to=...), "'gradient:fc.weight' is"),
        (changed("programs", "train", "outputs", "buffer:norm.mean", to=...), "'buffer:norm.mean' is m"),
        (changed("programs", "train", "outputs", "loss", to="c"), "two roles have one name in the graph"),
        (changed("quantization", to={"method": "fp16"}), "are an inference artefact's, this is for training"),
        (changed("quantization", to={"method": "int4"}), "quantization.method: "),
        (changed("quantization", to={"method": "int8-static"}), "int8-static has both, the others have none"),
        (changed("quantization", to={"method": "fp16", "samples": 9}), "int8-static has both"),
        (changed("quantization", to={"method": "fp16", "calibration": "mnist", "samples": 9}), "has both"),
        ("x" * 1_048_577, "has 1048577 bytes, at most 1048576 are due"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_whole_is_refused_with_the_file_and_the_fault(text: str, problem: str) -> None:
    with pytest.raises(ArtefactError, match=problem) as caught:
        Manifest.parse(text, where="a.onnx")
    assert str(caught.value).startswith("artefact 'a.onnx': its manifest")
    assert caught.value.exit_code == 2


def test_what_was_quantised_and_by_which_samples_is_read_back() -> None:
    said = {"method": "int8-static", "calibration": "mnist", "samples": 512}
    text = json.loads(changed("quantization", to=said))
    text |= {
        "purpose": "inference",
        "programs": {"predict": {"inputs": {"x": "x"}, "outputs": {"logits": "z"}}},
    }
    manifest = Manifest.parse(json.dumps(text), where="a.onnx")
    assert manifest.quantization is not None
    assert json.loads(manifest.to_json())["quantization"] == said
