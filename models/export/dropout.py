"""Dropout whose masks are inputs: what is drawn comes from whoever trains, not from inside the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from models.manifest import DropoutMask

_Layer = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d
_BY_MAP = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class MaskedDropout:
    """Takes the place of a module's dropout layers: in training mode each multiplies by the next mask.

    While `masks` are not given, they are noted instead, and nothing is dropped.
    """

    def __init__(self, module: nn.Module) -> None:
        self._noted: dict[str, DropoutMask] = {}
        self._samples: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._masks: Iterator[torch.Tensor] | None = None
        for name, layer in module.named_modules():
            if isinstance(layer, (nn.Dropout, *_BY_MAP)):
                setattr(layer, "forward", partial(self._forward, name, layer))  # noqa: B010  # a method, for mypy

    @property
    def noted(self) -> tuple[DropoutMask, ...]:
        """The masks that the module took in training mode so far, in the order of its calls."""
        return tuple(self._noted.values())

    def first_without_batch(self, batch: int) -> str | None:
        """Return the first noted mask whose layer does not have `batch` samples along its first axis."""
        return next((name for name, samples in self._samples.items() if samples != batch), None)

    @contextmanager
    def fed(self, masks: Sequence[torch.Tensor]) -> Iterator[None]:
        """Let the layers take these masks, in the order of `noted`."""
        self._masks = iter(masks)
        try:
            yield
        finally:
            self._masks = None

    def _forward(self, name: str, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        if not layer.training or layer.p == 0:
            return x
        if layer.p == 1:
            return x * 0.0
        if self._masks is not None:
            return x * next(self._masks)
        self._note(name, layer, x)
        return x

    def _note(self, name: str, layer: _Layer, x: torch.Tensor) -> None:
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        unique = name if calls == 1 else f"{name}#{calls}"
        self._samples[unique], *rest = x.shape
        shape = tuple(rest)
        if isinstance(layer, _BY_MAP):
            shape = (shape[0],) + (1,) * (len(shape) - 1)
        self._noted[unique] = DropoutMask(name=unique, shape=shape, keep=1 - layer.p)
