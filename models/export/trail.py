"""Which module of a model an operator stands in: written on every node of a graph while it is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_MARK = "trellis_module"


def module_of(node: torch.fx.Node) -> str:
    """Return the dotted name of the module that a node stands in, or `""` for what is none's."""
    return str(node.meta.get(_MARK, ""))


def exported_module_of(node: torch.fx.Node) -> str:
    """Return what `module_of` does, for a node of a graph by `torch.export`."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


class ModuleTrail:
    """Marks the nodes of the graph that `make_fx` traces with the module that runs.

    Forward, modules say when they begin and end. Backward, each step of autograd remembers whose it is.
    """

    def __init__(self) -> None:
        self._running: list[str] = []
        self._backward = ""
        self._known: set[torch.autograd.graph.Node] = set()

    @property
    def current(self) -> str:
        """The module that runs now; after a failure, the one that failed."""
        return self._running[-1] if self._running else self._backward

    @contextmanager
    def followed(self, module: torch.nn.Module) -> Iterator[None]:
        """Mark what is traced in the block; an error leaves `current` as it was then."""
        with ExitStack() as hooks:
            for name, part in module.named_modules():
                enter, leave = self._hooks(name)
                hooks.callback(part.register_forward_pre_hook(enter).remove)
                hooks.callback(part.register_forward_hook(leave).remove)
            yield
            self._mark()
            self._backward = ""

    @contextmanager
    def within(self, module: str) -> Iterator[None]:
        """Mark what is traced in the block as that module's."""
        self._mark()
        self._backward = module
        yield
        self._mark()
        self._backward = ""

    def _mark(self) -> None:
        """Say of every node traced since the last call that it is the current module's."""
        mode = get_proxy_mode()
        if mode is None:
            return
        for node in reversed(mode.tracer.graph.nodes):
            if _MARK in node.meta:
                break
            node.meta[_MARK] = self.current

    def _hooks(self, name: str) -> tuple[Any, Any]:
        def enter(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self._mark()
            self._claim(inputs)
            self._running.append(name)

        def leave(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._mark()
            self._claim(output)
            self._running.pop()

        return enter, leave

    def _claim(self, values: Any) -> None:
        """Let the steps of autograd behind `values` that are nobody's yet be the current module's."""
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
        waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        name = self.current
        while waiting:
            step = waiting.pop()
            if step in self._known:
                continue
            self._known.add(step)
            step.register_prehook(lambda *_: self._step_back(name))
            waiting += [before for before, _ in step.next_functions if before is not None]

    def _step_back(self, name: str) -> None:
        self._mark()
        self._backward = name
