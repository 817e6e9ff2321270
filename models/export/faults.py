"""Why a model cannot be exported, said so that its author can mend it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from models.manifest import Runtime
from models.own_code import causes, is_models_own
from trellis.errors import Fault, InvalidInput

TRAIN_WITH_TORCH = "or train it on devices with the extra torch alone"

_OPERATORS = (
    re.compile(r"op='([\w.]+)', overload='(\w+)'"),  # torch.onnx
    re.compile(r"Lowering not found: ([\w.]+)"),  # litert-torch
    re.compile(r"target=torch\.ops\.([\w.]+)\]"),  # fx
    re.compile(r'loc\(.*"(\w+)"\)+:'),  # MLIR
    re.compile(r"\(([A-Z]+)\w*\) failed to (?:prepare|invoke)"),  # LiteRT
    re.compile(r"implementation for (\w+)\(\d+\)"),  # ONNX Runtime
)


class Located(Protocol):
    """What knows the modules of a model in which an operator stands."""

    def modules_with(self, operator: str) -> list[str]:
        """Return their dotted names."""


def not_exportable(
    model: str, runtime: Runtime, problem: str, remedy: str, *, module: str = ""
) -> InvalidInput:
    """Return the error for a model that a runtime cannot take; `module` is where in it the fault lies."""
    return InvalidInput(
        f"model {model!r} cannot be exported to {runtime}",
        [Fault(f"module {module!r}" if module else "", problem, remedy)],
    )


@contextmanager
def exporting(model: str, runtime: Runtime) -> Iterator[None]:
    """Let no fault of the model's own out of the block but as one that is told.

    A model's own code runs in it, and libraries that raise whatever their many steps raise.

    Raises:
        InvalidInput: In place of all else.
    """
    try:
        yield
    except Exception as error:
        if not is_models_own(error):
            raise
        problem = f"its export failed: {_brief(error)}"
        raise not_exportable(model, runtime, problem, f"mend it, {TRAIN_WITH_TORCH}") from error


def unsupported_operator(
    model: str, runtime: Runtime, graphs: Iterable[Located], error: BaseException
) -> InvalidInput:
    """Return the error for what a converter or runtime raised: the operator it names, and whose it is."""
    remedy = f"use other layers, {TRAIN_WITH_TORCH}"
    for cause in causes(error):
        operator = _named_in(str(cause))
        if operator:
            modules = sorted({name for graph in graphs for name in graph.modules_with(operator)} - {""})
            problem = f"{runtime} does not take its operator {operator}: {_brief(cause)}"
            return not_exportable(model, runtime, problem, remedy, module=", ".join(modules))
    return not_exportable(model, runtime, f"the converter failed: {_brief(error)}", remedy)


def _named_in(text: str) -> str:
    for pattern in _OPERATORS:
        if (found := pattern.search(text)) is not None:
            return ".".join(found.groups()).removesuffix(".default").lower()
    return ""


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(" While executing ")[0]
    return f"{type(error).__name__}: {text[:200]}"
