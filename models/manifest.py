"""The manifest of an exported model: what the graph in the file is called by, and what it trains.

It is one JSON object that travels inside the artefact, under the key `trellis`: in ONNX among
`metadata_props`, in TFLite as an entry of `Model.metadata`. With it a device without PyTorch feeds and reads
the graph by torch's names and layouts. A graph has programs: a training artefact `train` and `eval`, an
inference artefact `predict`. A program names its inputs and outputs by role:

    tensor:NAME    input    the parameter or buffer NAME, as in `state_dict()`
    x              input    (batch, *shape) float32
    y              input    (batch,) labels, int64 for ONNX and int32 for TFLite
    w              input    (batch,) float32: 1 counts a sample, 0 masks it (the padded tail of a fixed batch)
    mask:NAME      input    (batch, *shape of the mask) float32: what dropout draws, see `DropoutMask`
    loss           output   () float32: mean over the samples that count
    correct        output   () float32: how many samples that count are told right
    gradient:NAME  output   of the loss, by the parameter NAME
    buffer:NAME    output   the buffer NAME after the step
    logits         output   (batch, classes) float32
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trellis.errors import ArtefactError
from trellis.faults import faults_of

METADATA_KEY = "trellis"
MAX_MANIFEST_BYTES = 1024 * 1024

Purpose = Literal["training", "inference"]
Runtime = Literal["onnx", "tflite"]
QuantizationMethod = Literal["fp16", "int8-dynamic", "int8-static"]
Name = Annotated[str, Field(min_length=1, max_length=512)]
MAX_SIZE = 2**31 - 1
"""Of an axis, and of all that an array holds."""
MAX_AXES = 8
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]

PROGRAMS: Mapping[Purpose, frozenset[str]] = {
    "training": frozenset({"train", "eval"}),
    "inference": frozenset({"predict"}),
}


def tensor_role(name: str) -> str:
    """Return the role of the input that takes the parameter or buffer of that name."""
    return f"tensor:{name}"


def gradient_role(name: str) -> str:
    """Return the role of the output that holds the gradient by the parameter of that name."""
    return f"gradient:{name}"


def buffer_role(name: str) -> str:
    """Return the role of the output that holds the buffer of that name after the step."""
    return f"buffer:{name}"


def mask_role(name: str) -> str:
    """Return the role of the input that takes the dropout mask of that name."""
    return f"mask:{name}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TensorEntry(_Part):
    """One array of the model, in torch's name and layout.

    Attributes:
        name: As in `state_dict()`.
        shape: Of the array; `()` is a scalar.
        dtype: As numpy calls it.
        kind: `parameter` has a gradient; `buffer` is given anew by a training step; `counter` is an
            integer that grows by one with every step, as BatchNorm's `num_batches_tracked` does, and no
            input of the graph; `constant` comes back from training as it came.
    """

    name: Name
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_SIZE)], ...], Field(max_length=MAX_AXES)]
    dtype: Annotated[str, Field(pattern=r"^(float(16|32|64)|u?int(8|16|32|64)|bool)$")]
    kind: Literal["parameter", "buffer", "counter", "constant"]

    @model_validator(mode="after")
    def _is_an_array(self) -> Self:
        if math.prod(self.shape) > MAX_SIZE:
            raise ValueError(f"{self.name[:80]!r} of {math.prod(self.shape)} elements is no array of a model")
        return self


class DropoutMask(_Part):
    """An input of `train` that the device draws anew for every step.

    Every element is 1 / keep with probability `keep`, else 0.

    Attributes:
        name: The dropout module's, with `#2` behind it where the model calls it a second time.
        shape: Of one sample's mask; the input is (batch, *shape).
        keep: The probability to stay.
    """

    name: Name
    shape: Annotated[tuple[Size, ...], Field(max_length=MAX_AXES)]
    keep: Annotated[float, Field(gt=0, le=1)]


class Program(_Part):
    """What one program of the graph takes and gives: names in the graph, by role."""

    inputs: dict[str, Name]
    outputs: dict[str, Name]


class Scaling(_Part):
    """Mean and standard deviation by which samples in [0, 1] are scaled before they go in as `x`."""

    mean: Annotated[float, Field(allow_inf_nan=False)]
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Quantization(_Part):
    """How the numbers of a trained model were made smaller.

    Attributes:
        method: `fp16` halves the weights; `int8-dynamic` has weights of 8 bits, and finds the range of what
            goes through anew for every batch; `int8-static` has ranges that calibration found.
        calibration: The name of the data set that found them (`int8-static` only).
        samples: How many of its samples did.
    """

    method: QuantizationMethod
    calibration: Name | None = None
    samples: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        calibrated = self.calibration is not None and self.samples > 0
        if calibrated != (self.method == "int8-static") or (self.calibration is None and self.samples):
            raise ValueError(
                f"{self.method} with calibration {self.calibration!r} on {self.samples} samples came; "
                "int8-static has both, the others have none"
            )
        return self


class Manifest(_Part):
    """What an artefact says of itself.

    Attributes:
        schema_version: Of this object; `schema` in JSON.
        purpose: `training` takes parameters and gives gradients; `inference` has trained weights inside.
        runtime: Whose format the file has.
        model: The name in the registry.
        shape: The shape of one sample.
        classes: How many classes the model tells apart.
        digest: SHA-256, in hexadecimal digits, of the model: names, shapes and dtypes of its arrays and the
            operators of its forward pass. The same for both runtimes, and for the same versions of exporter
            and torch.
        opset: The set of operators that the graph uses: `ai.onnx 18`, `tflite 3`.
        batch: The graph's fixed number of samples, or None where any number goes.
        tensors: The model's arrays in the order of `state_dict()`.
        inside: SHA-256, by name, of the arrays that stand in the graph: those that come to be trained are the
            same (`training` only).
        masks: What dropout draws; empty for models without.
        programs: By name, see `PROGRAMS`.
        normalize: How samples are scaled for a trained model, if they are (`inference` only).
        quantization: What was done to the numbers, if anything was (`inference` only).
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    purpose: Purpose
    runtime: Runtime
    model: Name
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=MAX_AXES)]
    classes: Size
    digest: Sha256
    opset: Name
    batch: Size | None
    tensors: tuple[TensorEntry, ...]
    inside: dict[Name, Sha256] = {}
    masks: tuple[DropoutMask, ...] = ()
    programs: dict[str, Program]
    normalize: Scaling | None = None
    quantization: Quantization | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) < len(names):
            raise ValueError("tensors name one array twice")
        constants = {tensor.name for tensor in self.tensors if tensor.kind == "constant"}
        if unknown := sorted(set(self.inside) - constants):
            raise ValueError(f"inside names {unknown[0][:80]!r}, which is no constant of it")
        if self.purpose != "inference" and (self.normalize or self.quantization):
            raise ValueError(
                f"normalize and quantization are an inference artefact's, this is for {self.purpose}"
            )
        if set(self.programs) != PROGRAMS[self.purpose]:
            due = " and ".join(sorted(PROGRAMS[self.purpose]))
            raise ValueError(f"programs {sorted(self.programs)} came, {due} are due for {self.purpose}")
        for name, program in self.programs.items():
            self._check_roles(name, "inputs", program.inputs, *self._input_roles(name))
            self._check_roles(name, "outputs", program.outputs, *self._output_roles(name))
        return self

    def to_json(self) -> str:
        """Return the manifest as JSON, the same text for the same manifest; `parse` is the inverse."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def parse(cls, text: bytes | str, *, where: str) -> Manifest:
        """Return the manifest in `text`.

        Raises:
            ArtefactError: It is too large, no JSON, or not whole; every fault is named, `where` is the file.
        """
        what = f"artefact {where!r}: its manifest"
        if len(text) > MAX_MANIFEST_BYTES:
            raise ArtefactError(what, f"has {len(text)} bytes, at most {MAX_MANIFEST_BYTES} are due")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ArtefactError(what, faults_of(error)) from None

    def _input_roles(self, program: str) -> tuple[set[str], set[str]]:
        """Return the inputs that a program must have and those that it may have."""
        if program == "predict":
            return {"x"}, set()
        tensors = {tensor_role(tensor.name) for tensor in self.tensors}
        masks = {mask_role(mask.name) for mask in self.masks} if program == "train" else set()
        return {"x", "y", "w"} | masks, tensors

    def _output_roles(self, program: str) -> tuple[set[str], set[str]]:
        if program == "predict":
            return {"logits"}, set()
        if program == "eval":
            return {"loss", "correct", "logits"}, set()
        gradients = {gradient_role(tensor.name) for tensor in self.tensors if tensor.kind == "parameter"}
        buffers = {buffer_role(tensor.name) for tensor in self.tensors if tensor.kind == "buffer"}
        return {"loss", "correct"} | gradients | buffers, set()

    @staticmethod
    def _check_roles(program: str, side: str, came: Mapping[str, str], must: set[str], may: set[str]) -> None:
        missing, unknown = sorted(must - set(came)), sorted(set(came) - must - may)
        if missing:
            raise ValueError(f"programs.{program}.{side}: {missing[0]!r} is missing")
        if unknown:
            raise ValueError(f"programs.{program}.{side}: {unknown[0]!r} is no role of it")
        if len(set(came.values())) < len(came):
            raise ValueError(f"programs.{program}.{side}: two roles have one name in the graph")
