"""What a device works on in a task, and how much of it: its data and its training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from trellis.descriptor_fields import MAX_CLASSES, Finite, Name, Positive
from trellis.descriptor_rules import Rule, Section
from trellis.errors import Fault


class Normalize(Section):
    """Inputs in [0, 1] become (x - mean) / std."""

    mean: Finite = 0.0
    std: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0


class DataDemands(Section):
    """What a device's own data must be. `shape` is one sample's, without the batch axis."""

    name: Name
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=4)
    classes: Annotated[int, Field(strict=True, ge=2, le=MAX_CLASSES)]
    min_samples: Positive = 1
    normalize: Normalize | None = None
    instructions: str = Field(default="", max_length=2000)


def _counted_in_one_way(train: Train) -> Iterator[Fault]:
    if train.local_epochs is not None and train.local_steps is not None:
        yield Fault(
            "local_steps",
            f"is {train.local_steps}, and local_epochs is {train.local_epochs}: exactly one of them is due",
            "remove one",
        )


def _momentum_where_it_counts(train: Train) -> Iterator[Fault]:
    if train.optimizer == "adam" and train.momentum:
        yield Fault(
            "momentum",
            f"is {train.momentum:g} with optimizer adam, which has moments of its own",
            "leave momentum out, or take sgd",
        )


class Train(Section):
    """Local training. A device's work in a round is counted in epochs over its data, or in steps.

    Attributes:
        local_epochs: Passes over the data; exactly one of this and `local_steps` is not None.
        local_steps: Mini-batches, over as many passes as they need.
        momentum: Of `sgd`; `adam` has moments of its own.
        clip_norm: The most that the norm of a step's gradients together may be.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "anyOf": [
                    {"required": ["local_epochs", "local_steps"]},
                    {
                        "required": ["optimizer", "momentum"],
                        "properties": {"optimizer": {"const": "adam"}, "momentum": {"exclusiveMinimum": 0}},
                    },
                ]
            }
        }
    )

    rounds: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    local_epochs: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = Field(
        default=None, json_schema_extra={"default": 1}
    )
    local_steps: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    batch_size: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 32
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=1000, allow_inf_nan=False)]
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(strict=True, ge=0, le=1000, allow_inf_nan=False)] = 0.0
    clip_norm: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] = 0

    rules: ClassVar = (
        Rule(("local_epochs", "local_steps"), _counted_in_one_way),
        Rule(("optimizer", "momentum"), _momentum_where_it_counts),
    )

    @classmethod
    def filled(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Return what came, an epoch a round if it counts in nothing."""
        counts = not (value.get("local_epochs") is value.get("local_steps") is None)
        return value if counts else value | {"local_epochs": 1}
