"""What a device works on in a task, and how much of it: its data and its training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trellis.descriptor_fields import Finite, Name, Positive, Section


class Normalize(Section):
    """Inputs in [0, 1] become (x - mean) / std."""

    mean: Finite = 0.0
    std: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0


class DataDemands(Section):
    """What a device's own data must be. `shape` is one sample's, without the batch axis."""

    name: Name
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=4)
    classes: Annotated[int, Field(strict=True, ge=2, le=1_000_000)]
    min_samples: Positive = 1
    normalize: Normalize | None = None
    instructions: str = Field(default="", max_length=2000)


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

    @model_validator(mode="before")
    @classmethod
    def _an_epoch_by_default(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not (value.get("local_epochs") is value.get("local_steps") is None):
            return value
        return value | {"local_epochs": 1}

    @model_validator(mode="after")
    def _counted_in_one_way(self) -> Self:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError(
                f"local_epochs ({self.local_epochs}) and local_steps ({self.local_steps}) are both given, "
                "exactly one is due"
            )
        return self

    @model_validator(mode="after")
    def _momentum_where_it_counts(self) -> Self:
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(
                f"momentum ({self.momentum:g}) is given with optimizer adam, which has moments of its own: "
                "leave momentum out, or take sgd"
            )
        return self
