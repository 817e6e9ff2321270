"""The task descriptor: what is trained, on which data, by whom and how.

A frozen model that forbids unknown fields; on disk YAML or JSON, on the wire the JSON text inside a signed
envelope (`trellis.envelope`). Its JSON Schema is published by `trellis task schema`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, ValidationError, field_validator

from trellis import descriptor_fields
from trellis.descriptor_fields import Finite, Moment, Name, Positive
from trellis.descriptor_rules import Rule, Section
from trellis.descriptor_tiers import LONGEST_DEADLINE_S, Aggregation, Participants, Strategy, Tier
from trellis.descriptor_work import DataDemands, Train
from trellis.errors import DescriptorError, Fault, InvalidInput
from trellis.faults import faults_of
from trellis.identifiers import Identifier, RegionName
from trellis.plain_json import unique_keys

MAX_DESCRIPTOR_BYTES = 128 * 1024
_WHAT = "task descriptor"


class ServerAddress(Section):
    """The central Flower server, as devices reach it."""

    address: str = Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$", max_length=300)
    tls: StrictBool = True

    @field_validator("address")
    @classmethod
    def _port(cls, value: str) -> str:
        if not 1 <= int(value.rsplit(":", 1)[1]) <= 65535:
            raise ValueError("the port must be 1 to 65535")
        return value


class Model(Section):
    """A model of the local registry, by its name."""

    name: Name


class Evaluate(Section):
    """Where the global model is evaluated, and every how many rounds (0: only at the end)."""

    on: tuple[Literal["server", "devices"], ...] = ("devices",)
    every: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 1

    @field_validator("on")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a place twice")
        return value


class Stop(Section):
    """Ends a task before its last round: at a target, or after `patience` evaluations without progress."""

    metric: Literal["accuracy", "loss"] = "accuracy"
    target: Finite | None = None
    patience: Positive | None = None


def _window(task: TaskDescriptor) -> Iterator[Fault]:
    if task.expires_at <= task.issued_at:
        yield Fault(
            "expires_at",
            f"must be after issued_at ({task.issued_at.isoformat()}), got {task.expires_at.isoformat()}",
            f"give a later time, or leave it out for {descriptor_fields.DEFAULT_LIFETIME.days} days",
        )


def _stops_at_an_evaluation(task: TaskDescriptor) -> Iterator[Fault]:
    if task.stop is not None and not (task.evaluate.on and task.evaluate.every):
        lacks = f"evaluate.every is {task.evaluate.every}" if task.evaluate.on else "evaluate.on is empty"
        yield Fault(
            "stop",
            f"needs an evaluation, and {lacks}",
            "give evaluate.on, and evaluate.every of at least 1, or remove stop",
        )


def _regions_of_the_task(task: TaskDescriptor) -> Iterator[Fault]:
    for name in task.aggregation.regions:
        if name not in task.regions:
            yield Fault(
                f"aggregation.regions.{name}",
                f"is none of the task's regions: {', '.join(task.regions[:20])}",
                "remove it, or name it in regions",
            )


def _only_above_regions(task: TaskDescriptor) -> Iterator[Fault]:
    for name in ("participants", "strategy"):
        if getattr(task.aggregation, name) is not None and not task.has_regions:
            yield Fault(
                f"aggregation.{name}",
                "is for regions that aggregate, and none does",
                "remove it, or set aggregation.tier to regional",
            )


class TaskDescriptor(Section):
    """One task. Everything a gateway, a device and the server must know, and nothing secret."""

    version: Literal[1] = 1
    task: Identifier
    revision: Positive = 1
    desired: Literal["run", "canceled"] = "run"
    regions: tuple[RegionName, ...] = Field(min_length=1, max_length=1000)
    server: ServerAddress
    model: Model
    data: DataDemands
    train: Train
    strategy: Strategy = Strategy()
    participants: Participants = Participants()
    aggregation: Aggregation = Aggregation()
    evaluate: Evaluate = Evaluate()
    stop: Stop | None = None
    issued_at: Moment
    expires_at: Moment

    rules: ClassVar = (
        Rule(("issued_at", "expires_at"), _window),
        Rule(("stop", "evaluate"), _stops_at_an_evaluation),
        Rule(("regions", "aggregation"), _regions_of_the_task),
        Rule(("regions", "aggregation"), _only_above_regions),
    )

    @classmethod
    def filled(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Return what came with a window."""
        filled = dict(value)
        filled.setdefault("issued_at", datetime.now(UTC).replace(microsecond=0).isoformat())
        if "expires_at" not in filled:
            filled["expires_at"] = descriptor_fields.expiry(filled["issued_at"])
        return filled

    @field_validator("regions")
    @classmethod
    def _regions_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a region twice")
        return value

    def to_json(self) -> str:
        """Return the JSON text that is signed. Equal descriptors give equal texts."""
        return self.model_dump_json(exclude_none=True)

    def same_work(self, other: TaskDescriptor) -> bool:
        """Whether both say the same, apart from when they were issued and expire."""
        window = {"issued_at", "expires_at"}
        return self.model_dump(exclude=window) == other.model_dump(exclude=window)

    def digest(self) -> str:
        """Return the SHA-256 of what the task says apart from its window, as `same_work` compares it."""
        work = self.model_dump_json(exclude_none=True, exclude={"issued_at", "expires_at"})
        return hashlib.sha256(work.encode()).hexdigest()

    def tier_of(self, region: str) -> Tier:
        """Where the updates of `region` are averaged."""
        apart = self.aggregation.regions.get(region)
        return apart.tier if apart else self.aggregation.tier

    @property
    def has_regions(self) -> bool:
        """Whether any region aggregates."""
        return any(self.tier_of(region) == "regional" for region in self.regions)

    def regional_rounds_of(self, region: str) -> int:
        """How many rounds `region` runs to one of the tier above."""
        apart = self.aggregation.regions.get(region)
        own = apart.regional_rounds if apart else None
        return self.aggregation.regional_rounds if own is None else own

    def participants_at(self, tier: str) -> Participants:
        """Who takes part at `tier`: "central", or a region's name."""
        if tier != "central":
            apart = self.aggregation.regions.get(tier)
            return (apart.participants if apart else None) or self.participants
        if not self.has_regions:
            return self.participants
        return self.aggregation.participants or self._participants_above_regions()

    def _participants_above_regions(self) -> Participants:
        # One round above is all of a region's own rounds, and as long again for what goes up and down.
        deadline_s = max(
            self.participants_at(region).deadline_s * (self.regional_rounds_of(region) + 1)
            for region in self.regions
            if self.tier_of(region) == "regional"
        )
        return Participants(
            minimum=min(2, len(self.regions), self.participants.maximum),
            maximum=self.participants.maximum,
            fraction=self.participants.fraction,
            quorum=self.participants.quorum,
            deadline_s=min(deadline_s, LONGEST_DEADLINE_S),
        )

    def canceled(self) -> TaskDescriptor:
        """Return the next revision, which calls the task off; it holds from now on, also after the expiry."""
        now = datetime.now(UTC).replace(microsecond=0)
        issued_at = max(now, self.issued_at)
        return self.model_copy(
            update={
                "revision": self.revision + 1,
                "desired": "canceled",
                "issued_at": issued_at,
                "expires_at": max(self.expires_at, issued_at + descriptor_fields.DEFAULT_LIFETIME),
            }
        )


def parse_json(text: str | bytes, *, rules: Iterable[Rule] = (), what: str = _WHAT) -> TaskDescriptor:
    """Return the descriptor in a JSON text.

    Args:
        text: What came.
        rules: The reader's own, told together with the descriptor's.
        what: What it is called in an error.

    Raises:
        DescriptorError: Too large, not JSON, a key stands twice in it, or against the schema; every fault is
            named with its field.
    """
    if len(text) > MAX_DESCRIPTOR_BYTES:
        raise DescriptorError(what, f"is {len(text)} long, at most {MAX_DESCRIPTOR_BYTES}")
    try:
        task = TaskDescriptor.model_validate_json(text, context={TaskDescriptor: tuple(rules)})
        json.loads(text, object_pairs_hook=unique_keys)  # of equal keys pydantic takes the last
    except ValidationError as error:
        raise DescriptorError(what, faults_of(error)) from None
    except ValueError as error:
        raise DescriptorError(what, str(error)) from None
    return task


def parse_mapping(value: object, *, rules: Iterable[Rule] = (), what: str = _WHAT) -> TaskDescriptor:
    """Return the descriptor in a mapping, as YAML gives it; `rules` as for `parse_json`.

    Raises:
        DescriptorError: Against the schema; every fault of `what` is named with its field.
    """
    if not isinstance(value, dict):
        raise DescriptorError(what, f"must be a mapping of fields, got {type(value).__name__}")
    try:
        return TaskDescriptor.model_validate(value, context={TaskDescriptor: tuple(rules)})
    except ValidationError as error:
        raise DescriptorError(what, faults_of(error)) from None


def load(path: Path, *, rules: Iterable[Rule] = ()) -> TaskDescriptor:
    """Return the descriptor in a YAML or JSON file (JSON is YAML); `rules` as for `parse_json`.

    Raises:
        DescriptorError: The file cannot be read, or what it says is against the schema.
    """
    what = f"task file {str(path)!r}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DescriptorError(what, f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_DESCRIPTOR_BYTES:
        raise DescriptorError(what, f"has {len(raw)} bytes, at most {MAX_DESCRIPTOR_BYTES}")
    from trellis import plain_yaml  # noqa: PLC0415 - a device reads signed JSON, and YAML takes 1.5 MB

    try:
        value = plain_yaml.load(raw, what=what)
    except InvalidInput as error:
        raise DescriptorError(error.what, error.faults) from None
    return parse_mapping(value, rules=rules, what=what)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a descriptor."""
    schema = TaskDescriptor.model_json_schema()
    # These are filled in before anything is checked, which pydantic's schema does not know.
    schema["required"] = [name for name in schema["required"] if name not in {"issued_at", "expires_at"}]
    return schema
