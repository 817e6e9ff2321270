"""Whether an exported file says what PyTorch says, tried on the file itself with random samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.arrays import Arrays
from models.backends.torch import build_module
from models.export.dropout import MaskedDropout
from models.export.faults import (
    TRAIN_WITH_TORCH,
    Located,
    not_exportable,
    unsupported_operator,
)
from models.export.running import Run, open_file
from models.exported import read_artefact
from models.manifest import Manifest, buffer_role, gradient_role, mask_role, tensor_role
from models.own_code import is_models_own
from models.registry import ModelSpec
from trellis.errors import ArtefactError

TOLERANCE = 1e-5
_FLOOR = 0.01
_DRAWS = 3
_GROSS = 1e-2
"""What no draw may differ by where nothing jumps: the first has the seed that the file was made with."""
_SAMPLES = 6
_MASKED = 2


@dataclass(frozen=True)
class Difference:
    """How far an output of the file is from PyTorch's.

    Attributes:
        program: `train`, `eval` or `predict`.
        role: The output.
        share: The greatest difference of an element, over the scale: the greatest element of that output in
            PyTorch; for gradients at least a hundredth of the greatest element of all gradients, since one
            that is zero but for rounding has no scale of its own; for all others at least 1.
    """

    program: str
    role: str
    share: float


def require_gradients(spec: ModelSpec, graphs: Iterable[Located], manifest: Manifest, path: Path) -> None:
    """Pass if the file gives the losses, gradients, buffers and logits of PyTorch, to `TOLERANCE`.

    The measure is `Difference.share`. Of three draws of weights and samples one must pass: a ReLU whose
    input is within rounding of zero may fall to either side, and then both sides are right. Of losses, logits
    and buffers, which do not jump, none may differ by more than a hundredth.

    Raises:
        InvalidInput: Another result, or the runtime does not run the file.
    """
    _require(lambda run, seed: differences(run, spec, manifest, seed=seed), graphs, manifest, path)


def require_logits(module: nn.Module, graphs: Iterable[Located], manifest: Manifest, path: Path) -> None:
    """Pass if the file gives the logits of the trained module; measure and draws as for gradients.

    Raises:
        InvalidInput: Another result, or the runtime does not run the file.
    """

    def compare(run: Run, seed: int) -> list[Difference]:
        samples = (manifest.batch or _SAMPLES, *manifest.shape)
        x = np.random.default_rng(seed).standard_normal(samples, dtype=np.float32)
        with torch.no_grad():
            due = module(torch.from_numpy(x)).numpy()
        return [_difference("predict", "logits", run("predict", {"x": x})["logits"], due, 1.0)]

    _require(compare, graphs, manifest, path)


def _require(
    compare: Callable[[Run, int], list[Difference]], graphs: Iterable[Located], manifest: Manifest, path: Path
) -> None:
    try:
        read_artefact(path, runtime=manifest.runtime, purpose=manifest.purpose)
    except ArtefactError as error:
        problem = f"who uses it would refuse the file: {'; '.join(map(str, error.faults))}"
        remedy = f"use other layers, {TRAIN_WITH_TORCH}"
        raise not_exportable(manifest.model, manifest.runtime, problem, remedy) from error
    try:
        run = open_file(path, manifest)
        draws = [compare(run, seed) for seed in range(_DRAWS)]
    except Exception as error:  # ONNX Runtime's errors have no base but Exception
        if not is_models_own(error):
            raise
        raise unsupported_operator(manifest.model, manifest.runtime, graphs, error) from error
    least = min((_greatest(draw) for draw in draws), key=lambda difference: difference.share)
    steady = _greatest(one for draw in draws for one in draw if not _jumps(one.role))
    worst, most = (least, TOLERANCE) if least.share > TOLERANCE else (steady, _GROSS)
    if worst.share <= most:
        return
    problem = (
        f"its {worst.program} program gives another {worst.role} than PyTorch: they differ by "
        f"{worst.share:.1e} of its greatest element, at most {most:.0e} is due"
    )
    raise not_exportable(manifest.model, manifest.runtime, problem, TRAIN_WITH_TORCH.removeprefix("or "))


def greatest_difference(run: Run, spec: ModelSpec, manifest: Manifest, *, seed: int) -> Difference:
    """Return the output of `train` and `eval` that is farthest from PyTorch's, on one draw."""
    return _greatest(differences(run, spec, manifest, seed=seed))


def differences(run: Run, spec: ModelSpec, manifest: Manifest, *, seed: int) -> list[Difference]:
    """Return how far all outputs of `train` and `eval` are from PyTorch's, on one draw."""
    draw = _Draw(spec, manifest, seed)
    found = []
    for program, due in (("train", draw.trained()), ("eval", draw.evaluated())):
        came = run(program, draw.inputs)
        gradients = [float(np.abs(array).max()) for role, array in due.items() if _is_gradient(role)]
        for role, array in due.items():
            floor = _FLOOR * max(gradients) if _is_gradient(role) else 1.0
            found.append(_difference(program, role, came[role], array, floor))
    return found


def _greatest(found: Iterable[Difference]) -> Difference:
    return max(found, key=lambda difference: difference.share)


def _jumps(role: str) -> bool:
    """Return whether an output may jump where an input moves within rounding."""
    return _is_gradient(role) or role == "correct"


class _Draw:
    """Random weights, samples, labels and masks, and what PyTorch makes of them."""

    def __init__(self, spec: ModelSpec, manifest: Manifest, seed: int) -> None:
        self._manifest = manifest
        rng = np.random.default_rng(seed)
        self._module = build_module(spec, shape=manifest.shape, classes=manifest.classes, seed=seed)
        self._shake(rng)
        self._dropout = MaskedDropout(self._module)
        self._batch = manifest.batch or _SAMPLES
        self.inputs = self._drawn(rng)

    def trained(self) -> Arrays:
        """Return the loss, the right answers, the gradients and the buffers after the step."""
        module = self._module.train()
        masks = [torch.from_numpy(self.inputs[mask_role(mask.name)]) for mask in self._manifest.masks]
        with self._dropout.fed(masks):
            results = self._measured(module(torch.from_numpy(self.inputs["x"])))
        torch.autograd.backward(results["loss"])
        parameters = dict(module.named_parameters(remove_duplicate=False))
        state = module.state_dict()
        for tensor in self._manifest.tensors:
            if tensor.kind == "parameter":
                results[gradient_role(tensor.name)] = parameters[tensor.name].grad
            if tensor.kind == "buffer":
                results[buffer_role(tensor.name)] = state[tensor.name]
        return {role: value.detach().numpy().copy() for role, value in results.items()}

    def evaluated(self) -> Arrays:
        """Return the loss, the right answers and the logits, with the weights as they came."""
        state = self._module.state_dict()
        for name in state:
            if (came := self.inputs.get(tensor_role(name))) is not None:
                state[name].copy_(torch.from_numpy(came))
        with torch.no_grad():
            logits = self._module.eval()(torch.from_numpy(self.inputs["x"]))
            results = {**self._measured(logits), "logits": logits}
        return {role: value.numpy() for role, value in results.items()}

    def _measured(self, logits: torch.Tensor) -> dict[str, Any]:
        labels = torch.from_numpy(self.inputs["y"].astype(np.int64))
        weights = torch.from_numpy(self.inputs["w"])
        losses = functional.cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(1) == labels) * weights
        return {"loss": (losses * weights).sum() / weights.sum(), "correct": right.sum()}

    def _drawn(self, rng: np.random.Generator) -> Arrays:
        manifest, batch = self._manifest, self._batch
        state = {name: tensor.detach().numpy().copy() for name, tensor in self._module.state_dict().items()}
        inputs: Arrays = {tensor_role(name): array for name, array in state.items()}
        for mask in manifest.masks:
            kept = rng.random((batch, *mask.shape)) < mask.keep
            inputs[mask_role(mask.name)] = (kept / mask.keep).astype(np.float32)
        inputs["x"] = rng.standard_normal((batch, *manifest.shape), dtype=np.float32)
        labels = rng.integers(0, manifest.classes, batch)
        inputs["y"] = labels.astype(np.int64 if manifest.runtime == "onnx" else np.int32)
        # Samples that do not count stand at the end, as a device pads them.
        counts = np.arange(batch) < max(1, batch - _MASKED)
        inputs["w"] = counts.astype(np.float32)
        return inputs

    def _shake(self, rng: np.random.Generator) -> None:
        """Move all parameters: what starts as zeros and ones hides mistakes."""
        with torch.no_grad():
            for parameter in self._module.parameters():
                noise = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
                parameter.add_(torch.from_numpy(noise), alpha=0.05)


def _is_gradient(role: str) -> bool:
    return role.startswith(gradient_role(""))


def _difference(
    program: str, role: str, came: np.ndarray[Any, Any], due: np.ndarray[Any, Any], floor: float
) -> Difference:
    if came.shape != due.shape or not np.isfinite(came).all():
        return Difference(program, role, float("inf"))
    scale = max(float(np.abs(due).max(initial=0.0)), floor)
    greatest = float(np.abs(came.astype(np.float64) - due).max(initial=0.0))
    return Difference(program, role, greatest / scale if scale else float(greatest > 0))
