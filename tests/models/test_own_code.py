"""What a model's code is blamed for, and what it is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.export.faults import exporting
from models.own_code import is_models_own
from trellis.errors import InvalidInput, Refused


def _in_a_converter() -> None:
    try:
        torch.empty(2**50)
    except RuntimeError as error:
        raise ValueError("step 3 failed") from error


def _after_a_try() -> None:
    try:
        inspect.getsource(compile("0", "<nowhere>", "eval"))
    except OSError:
        raise ValueError("no operator of that name")  # noqa: B904 - as converters do


def _refused() -> None:
    raise Refused("export", "no")


@pytest.mark.parametrize(
    ("fails", "own"),
    [
        (lambda: torch.empty(2**50), False),
        (lambda: np.empty(2**50), False),
        (lambda: open("/nowhere"), False),  # noqa: SIM115
        (_refused, False),
        (_in_a_converter, False),
        (_after_a_try, True),
        (lambda: torch.zeros(2) @ torch.zeros(3), True),
        (lambda: {}["size"], True),
    ],
)
def test_what_passes_is_not_the_models(fails: Callable[[], object], own: bool) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each its own
        fails()
    assert is_models_own(raised.value) is own
    with pytest.raises(InvalidInput if own else raised.type), exporting("m", "onnx"):
        fails()
