"""The manifest of exported models: written and read back, and whole or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.manifest import MAX_MANIFEST_BYTES, Manifest
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
        {"name": "order", "shape": [4], "dtype": "int64", "kind": "constant"},
    ],
    "inside": {"order": "1" * 64},
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
        (changed("inside", "order", to="11"), "inside.order: string should match pattern"),
        (changed("inside", "norm.mean", to="1" * 64), "inside names 'norm.mean', which is no constant of it"),
        (changed("purpose", to="inference"), "predict are due for inference"),
        (changed("programs", "eval", to=...), r"\['train'\] came, eval and train are due for training"),
        (changed("programs", "train", "inputs", "w", to=...), "train.inputs: 'w' is missing"),
        (changed("programs", "train", "inputs", "tensor:else", to="e"), r"train\.inputs: 'tensor:else' is"),
        (changed("programs", "train", "inputs", "mask:dropout", to=...), "'mask:dropout' is missing"),
        (changed("programs", "eval", "inputs", "mask:dropout", to="m0"), "'mask:dropout' is no role of it"),
        (changed("programs", "train", "outputs", "gradient:fc.weight", to=...), "'gradient:fc.weight' is"),
        (changed("programs", "train", "outputs", "buffer:norm.mean", to=...), "'buffer:norm.mean' is m"),
        (changed("programs", "train", "outputs", "loss", to="c"), r"train\.outputs: two roles have one name"),
        (changed("quantization", to={"method": "fp16"}), "are an inference artefact's, this is for training"),
        (changed("quantization", to={"method": "int4"}), "quantization.method: "),
        (changed("quantization", to={"method": "int8-static"}), "int8-static has both, the others have none"),
        (changed("quantization", to={"method": "int8-static", "calibration": "mnist"}), "has both"),
        (changed("quantization", to={"method": "int8-static", "samples": 9}), "has both"),
        (changed("tensors", 2, "shape", to=[2**16, 2**15]), "'norm.count' of 2147483648 elements is no"),
        (changed("quantization", to={"method": "fp16", "samples": 9}), "fp16 with calibration None on 9"),
        (changed("quantization", to={"method": "fp16", "calibration": "mnist", "samples": 9}),
         "fp16 with calibration 'mnist' on 9 samples came; int8-static has both, the others have none"),
        ("x" * 1_048_577, "has 1048577 bytes, at most 1048576 are due"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_whole_is_refused_with_the_file_and_the_fault(text: str, problem: str) -> None:
    with pytest.raises(ArtefactError, match=problem) as caught:
        Manifest.parse(text, where="a.onnx")
    assert str(caught.value).startswith("artefact 'a.onnx': its manifest")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "inside", "outside"),
    [
        (("tensors", 2, "shape", 0), (0, 2**31 - 1), (-1, 2**31)),
        (("tensors", 2, "shape"), ([], [1] * 8), ([1] * 9,)),
        (("masks", 0, "shape"), ([], [1] * 8), ([1] * 9,)),
        (("tensors", 0, "dtype"), ("float16", "uint8", "bool"), ("complex64", "float8", "bool8", "xbool")),
        (("tensors", 0, "name"), ("n" * 512,), ("", "n" * 513)),
        (("tensors", 2, "kind"), ("counter",), ("state",)),
        (("masks", 0, "keep"), (1, 1e-9), (0, 1.1)),
        (("masks", 0, "shape", 0), (1, 2**31 - 1), (0, 2**31)),
        (("classes",), (1, 2**31 - 1), (0, 2**31)),
        (("shape",), ([1] * 8, [1]), ([], [1] * 9)),
        (("batch",), (1, None), (0,)),
        (("model",), ("m",), ("",)),
        (("digest",), ("f" * 64,), ("F" * 64, "0" * 65, "0" * 64 + "\n")),
        (("runtime",), ("tflite",), ("torch",)),
    ],
)
def test_every_field_has_its_bounds(
    path: tuple[str | int, ...], inside: tuple[Any, ...], outside: tuple[Any, ...]
) -> None:
    whole = json.loads(json.dumps(TRAINING))
    whole["tensors"][2]["shape"] = [1]
    if path == ("tensors", 0, "name"):  # its roles name it
        for program in whole["programs"].values():
            for side in ("inputs", "outputs"):
                program[side] = {
                    role.replace("fc.weight", inside[0]): name for role, name in program[side].items()
                }

    def with_value(value: Any) -> str:
        copy = json.loads(json.dumps(whole))
        place = copy
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return json.dumps(copy)

    for value in inside:
        Manifest.parse(with_value(value), where="a.onnx")
    for value in outside:
        with pytest.raises(ArtefactError) as caught:
            Manifest.parse(with_value(value), where="a.onnx")
        assert [fault.field for fault in caught.value.faults] == [".".join(map(str, path))]


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"mean": 0, "std": 1e-9}, None),
        ({"mean": 0, "std": 0}, "normalize.std"),
        ({"std": 1}, "normalize.mean"),
    ],
)
def test_scaling_is_by_a_deviation_above_zero(scaling: dict[str, float], field: str | None) -> None:
    text = json.loads(changed("normalize", to=scaling))
    text |= {
        "purpose": "inference",
        "programs": {"predict": {"inputs": {"x": "x"}, "outputs": {"logits": "z"}}},
    }
    if field is None:
        assert Manifest.parse(json.dumps(text), where="a.onnx").normalize is not None
        return
    with pytest.raises(ArtefactError) as caught:
        Manifest.parse(json.dumps(text), where="a.onnx")
    assert [fault.field for fault in caught.value.faults] == [field]


def test_a_manifest_may_be_as_long_as_the_limit() -> None:
    text = json.dumps(TRAINING)
    Manifest.parse(text + " " * (MAX_MANIFEST_BYTES - len(text)), where="a.onnx")


@pytest.mark.parametrize("samples", [1, 512])
def test_what_was_quantised_and_by_which_samples_is_read_back(samples: int) -> None:
    said = {"method": "int8-static", "calibration": "mnist", "samples": samples}
    text = json.loads(changed("quantization", to=said))
    text |= {
        "purpose": "inference",
        "programs": {"predict": {"inputs": {"x": "x"}, "outputs": {"logits": "z"}}},
    }
    manifest = Manifest.parse(json.dumps(text), where="a.onnx")
    assert manifest.quantization is not None
    assert json.loads(manifest.to_json())["quantization"] == said
