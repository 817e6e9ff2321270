"""The models a task may name: ours, and those that installed packages offer.

A package offers a model by an entry point in the group `trellis.models`:

    [project.entry-points."trellis.models"]
    tiny = "my_package.tiny:MODEL"          # MODEL = ModelSpec("tiny", "two layers", build)

Nothing here imports torch: a model's module is imported when it is asked for, and torch when it is built.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from trellis.errors import ConfigError, Fault, InvalidInput, Refused, TrellisError
from trellis.nearest import did_you_mean

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

GROUP = "trellis.models"

BUILT_IN = {
    "convnet": "models.zoo.convnet:MODEL",
    "gru": "models.zoo.gru:MODEL",
    "lenet5": "models.zoo.lenet5:MODEL",
    "mlp": "models.zoo.mlp:MODEL",
    "mobile-cnn": "models.zoo.mobile_cnn:MODEL",
    "resnet8": "models.zoo.resnet8:MODEL",
    "sensor-cnn": "models.zoo.sensor_cnn:MODEL",
    "softmax": "models.zoo.softmax:MODEL",
}
"""Ours, so that they are there in a checkout that nobody installed."""

Shape = tuple[int, ...]


def _fits_all(_: Shape) -> str:
    return ""


def pictures_from(smallest: int) -> Callable[[Shape], str]:
    """Return the `misfit` of a model for pictures of at least smallest×smallest, whatever their channels."""

    def misfit(shape: Shape) -> str:
        if len(shape) == 3 and shape[0] >= 1 and min(shape[1:]) >= smallest:
            return ""
        return f"(channels, height, width) of at least {smallest}×{smallest}"

    return misfit


@dataclass(frozen=True)
class ModelSpec:
    """A model that a task may name.

    Attributes:
        name: The name in the task descriptor; the entry point's name, too.
        describe: One line for `trellis model list`.
        build: `build(shape, classes)` returns a `torch.nn.Module` that maps (batch, *shape) float32 to
            (batch, classes) logits. It imports torch itself.
        misfit: Says what the model wants where samples of a shape do not fit, else `""`. Optional.
    """

    name: str
    describe: str
    build: Callable[[Shape, int], torch.nn.Module]
    misfit: Callable[[Shape], str] = _fits_all


def model_names() -> list[str]:
    """Return every name that `find_model` knows, sorted; no model's module is imported."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def find_model(name: str) -> ModelSpec:
    """Return the model of that name.

    Raises:
        Refused: No such model (code `model`).
        ConfigError: The package that offers it is broken.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        spec = getattr(importlib.import_module(module), attribute)
        _warn_of_shadowed(name)
    else:
        points = list(entry_points(group=GROUP, name=name))
        if not points:
            raise Refused("model", _unknown(name))
        spec = _loaded(name, points)
    if not isinstance(spec, ModelSpec):
        raise ConfigError(
            f"model {name!r}", f"its entry point gives a {type(spec).__name__}, not a ModelSpec"
        )
    if spec.name != name:
        raise ConfigError(
            f"model {name!r}", f"its entry point gives the model {spec.name!r}; the names must agree"
        )
    return spec


def require_fit(spec: ModelSpec, shape: Shape) -> None:
    """Pass if the model takes samples of that shape.

    Raises:
        InvalidInput: It does not; the message names the models that do.
    """
    problem = spec.misfit(shape)
    if not problem:
        return
    others = ", ".join(models_that_fit(shape)) or "none that is known here"
    raise InvalidInput(
        f"model {spec.name!r}",
        [
            Fault(
                "data.shape", f"samples have shape {shape}, it wants {problem}", f"models that fit: {others}"
            )
        ],
    )


def models_that_fit(shape: Shape) -> list[str]:
    """Return the names of the models that take samples of that shape; broken packages are left out."""
    fitting = []
    for name in model_names():
        try:
            spec = find_model(name)
        except TrellisError as error:
            logger.debug("model %s is left out: %s", name, error)
            continue
        if not spec.misfit(shape):
            fitting.append(name)
    return fitting


def _unknown(name: str) -> str:
    known = model_names()
    hint = did_you_mean(name, known, after=" ")
    return (
        f"model {name[:80]!r} is not known here: {hint}Known are {', '.join(known)}; a package adds one by "
        f"an entry point in the group {GROUP!r}"
    )


def _loaded(name: str, points: list[EntryPoint]) -> object:
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise ConfigError(
            f"model {name!r}", f"is offered more than once ({', '.join(values)}): uninstall all but one"
        )
    point = points[0]
    try:
        loaded: object = point.load()
    except Exception as error:  # a stranger's module may raise anything while it is imported
        package = point.dist.name if point.dist else "an unnamed package"
        problem = f"its entry point {point.value!r} of {package} failed: {type(error).__name__}: {error}"
        raise ConfigError(f"model {name!r}", [Fault("", problem, f"mend or uninstall {package}")]) from error
    return loaded


def _warn_of_shadowed(name: str) -> None:
    for point in entry_points(group=GROUP, name=name):
        if point.value != BUILT_IN[name]:
            logger.warning("model %s is built in: entry point %s is ignored, rename it", name, point.value)
