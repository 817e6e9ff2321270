"""A model made ready to be traced: what it trains, what it draws, and what its graph takes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from models.backends.torch import build_module
from models.export.dropout import MaskedDropout
from models.export.faults import TRAIN_WITH_TORCH, not_exportable
from models.manifest import DropoutMask, Runtime, TensorEntry
from models.registry import ModelSpec
from trellis.faults import faults_of

Kind = Literal["parameter", "buffer", "counter", "constant"]

_COUNTER = "num_batches_tracked"
"""BatchNorm's count of steps, which whoever trains can count as well."""
_PROBED_BATCH = 13
"""Samples of the probe: no other axis is likely to have as many."""


@dataclass(frozen=True)
class Source:
    """A model to trace.

    Attributes:
        model: Its name.
        shape: The shape of one sample.
        classes: How many classes it tells apart.
        module: Of its own, with dropout by `dropout` and without counters of batches.
        another: The model built with another seed.
        dropout: Feeds the masks.
        tensors: The arrays of `state_dict()`.
        masks: What dropout takes, in its order.
    """

    model: str
    shape: tuple[int, ...]
    classes: int
    module: nn.Module
    another: nn.Module
    dropout: MaskedDropout
    tensors: tuple[TensorEntry, ...]
    masks: tuple[DropoutMask, ...]

    @property
    def fed(self) -> list[str]:
        """The arrays that graphs take as inputs; the others are whole numbers, and stand in the graph."""
        return [tensor.name for tensor in self.tensors if tensor.dtype == "float32"]

    @property
    def trained(self) -> list[str]:
        """The arrays that have a gradient."""
        return [tensor.name for tensor in self.tensors if tensor.kind == "parameter"]

    @property
    def renewed(self) -> list[str]:
        """The arrays that a training step gives anew."""
        return [tensor.name for tensor in self.tensors if tensor.kind == "buffer"]


def open_source(spec: ModelSpec, *, shape: tuple[int, ...], classes: int, runtime: Runtime) -> Source:
    """Return the model, built with initial weights.

    Raises:
        InvalidInput: It does not take such samples, or cannot be exported for a reason that shows already.
    """
    module, another = (build_module(spec, shape=shape, classes=classes, seed=seed) for seed in (0, 1))
    probe = _Probe(spec.name, runtime, module, shape, classes)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.num_batches_tracked = None  # a counter that only momentum=None reads
    dropout = MaskedDropout(module)
    return Source(spec.name, shape, classes, module, another, dropout, probe.tensors, probe.masks)


class _Probe:
    """What one training step of a copy shows of a model."""

    def __init__(
        self, model: str, runtime: Runtime, module: nn.Module, shape: tuple[int, ...], classes: int
    ) -> None:
        self._model, self._runtime = model, runtime
        self._require_untied(module)
        trial = copy.deepcopy(module).train()
        dropout = MaskedDropout(trial)
        before = {name: array.clone() for name, array in trial.state_dict().items()}
        reached = self._gradients(trial, shape, classes)
        if (misplaced := dropout.first_without_batch(_PROBED_BATCH)) is not None:
            problem = "its dropout does not have the samples along the first axis"
            raise self._refused(problem, "put them there, " + TRAIN_WITH_TORCH, module=misplaced)
        self.masks = dropout.noted
        self.tensors = tuple(
            self._entry(name, array, before[name], reached) for name, array in trial.state_dict().items()
        )

    def _gradients(self, trial: nn.Module, shape: tuple[int, ...], classes: int) -> set[str]:
        """Return the names of the parameters that the loss depends on; buffers of `trial` change."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((_PROBED_BATCH, *shape), generator=generator)
        y = torch.randint(0, classes, (_PROBED_BATCH,), generator=generator)
        trainable = {name: part for name, part in trial.named_parameters() if part.requires_grad}
        if not trainable:
            raise self._refused("it has no parameter to train", "set requires_grad on some")
        loss = functional.cross_entropy(trial(x), y)
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        return {name for name, gradient in zip(trainable, gradients, strict=True) if gradient is not None}

    def _entry(self, name: str, after: torch.Tensor, before: torch.Tensor, reached: set[str]) -> TensorEntry:
        dtype = str(after.dtype).removeprefix("torch.")
        changed = not torch.equal(after, before)
        is_counter = name.rpartition(".")[2] == _COUNTER
        if changed and not after.is_floating_point() and not is_counter:
            problem = f"training changes {name!r}, which is {dtype}: only float32 is taken back"
            raise self._refused(problem, "keep it as float32, " + TRAIN_WITH_TORCH, module=_owner(name))
        kind: Kind = "constant"
        if name in reached:
            kind = "parameter"
        elif changed:
            kind = "counter" if is_counter else "buffer"
        if (kind in {"parameter", "buffer"} or after.is_floating_point()) and dtype != "float32":
            raise self._refused(f"{name!r} is {dtype}, float32 is due", "use float32", module=_owner(name))
        try:
            return TensorEntry(name=name, shape=tuple(after.shape), dtype=dtype, kind=kind)
        except ValidationError as error:
            problem = f"{name!r}: {'; '.join(map(str, faults_of(error)))}"
            raise self._refused(problem, "leave it out, " + TRAIN_WITH_TORCH, module=_owner(name)) from error

    def _require_untied(self, module: nn.Module) -> None:
        first: dict[int, str] = {}
        for name, part in module.named_parameters(remove_duplicate=False):
            other = first.setdefault(id(part), name)
            if other != name:
                problem = f"{name!r} and {other!r} are one parameter"
                raise self._refused(problem, "give each a parameter of its own, " + TRAIN_WITH_TORCH)

    def _refused(self, problem: str, remedy: str, *, module: str = "") -> Exception:
        return not_exportable(self._model, self._runtime, problem, remedy, module=module)


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]
