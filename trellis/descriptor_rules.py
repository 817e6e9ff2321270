"""A part of a task descriptor: it tells every fault at once, of single fields and of fields together.

Pydantic looks at what fields say together only once each of them is right. Here the rules for it are asked
where others are faulty, too, as far as the fields that they need are right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from trellis.errors import Fault
from trellis.faults import MOST_FAULTS, RULE
from trellis.nearest import did_you_mean, nearest

_UNKNOWN = "extra_forbidden"
_WITHOUT_RULES = "without rules"
"""In the context where only the fields are looked at, each by itself."""


@dataclass(frozen=True)
class Rule:
    """What fields of one part must say together.

    Attributes:
        needs: The fields that it looks at; it is not asked while one of them is faulty by itself.
        deep: Of these, the ones whose every field counts, so that none inside may be misspelt either.
        check: Gives the faults of a part, with fields as seen from there.
    """

    needs: tuple[str, ...]
    check: Callable[[Any], Iterable[Fault]]
    deep: tuple[str, ...] = ()


class Section(BaseModel):
    """What all parts of a descriptor share."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def filled(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Return what came with the defaults that follow from it."""
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _every_fault(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Return the part.

        Args:
            value: Whatever came: only a mapping takes defaults, and the rest pydantic refuses.
            handler: Pydantic's own checks.
            info: Its context holds the rules of whoever reads the descriptor, by the part that they are for.
        """
        given = cls.filled(value) if isinstance(value, dict) else value
        context = info.context or {}
        try:
            part = handler(given)
        except ValidationError as error:
            if not isinstance(given, dict) or _WITHOUT_RULES in context:
                raise
            items = error.errors(include_url=False)
            said = [cls._again(item, given, suggests=place < MOST_FAULTS) for place, item in enumerate(items)]
            part, right, misspelt = cls._as_far_as_right(given, said)
        else:
            said, right, misspelt = [], set(cls.model_fields), set()
        rules = () if _WITHOUT_RULES in context else (*cls.rules, *context.get(cls, ()))
        asked = (rule for rule in rules if right.issuperset(rule.needs) and misspelt.isdisjoint(rule.deep))
        # A fault that several regions have is told once.
        said += [
            _as_detail(fault, given)
            for fault in dict.fromkeys(chain.from_iterable(rule.check(part) for rule in asked))
        ]
        if said:
            raise ValidationError.from_exception_data(cls.__name__, said)
        return part

    @classmethod
    def _again(cls, item: ErrorDetails, given: dict[str, Any], *, suggests: bool) -> InitErrorDetails:
        """Return a fault that pydantic found; of an unknown field with the known one that is like it.

        To look for that one takes a while, and nobody is told more than so many faults.
        """
        found = item.get("ctx", {})
        context = {key: found[key] for key in ("remedy", "meant") if key in found}
        loc, kind = item["loc"], item["type"]
        if suggests and kind == _UNKNOWN and len(loc) == 1:
            context["remedy"] = did_you_mean(str(loc[0]), cls.model_fields)
            known = nearest(str(loc[0]), cls.model_fields)
            context |= {} if known is None or known in given else {"meant": known}
        error = PydanticCustomError(kind, _literal(item["msg"]), context)  # type: ignore[arg-type]
        return InitErrorDetails(type=error, loc=loc, input=item["input"])

    @classmethod
    def _as_far_as_right(
        cls, given: dict[str, Any], said: Sequence[InitErrorDetails]
    ) -> tuple[Self, set[str], set[int | str]]:
        """Return a part of the fields that are right, their names, and which of them hold misspelt ones."""
        unknown: list[tuple[int | str, ...]] = []
        faulty: set[int | str] = set()
        misspelt: set[int | str] = set()
        for detail in said:
            error, loc = detail["type"], detail["loc"]
            context = getattr(error, "context", None) or {}
            kind = getattr(error, "type", error)
            if kind == _UNKNOWN:
                unknown.append(loc)
            if "meant" in context and len(loc) == 1:
                # Nobody knows what was meant to stand in a field whose name is misspelt.
                faulty.add(context["meant"])
            elif "meant" in context:
                misspelt.add(loc[0])
            elif kind not in {_UNKNOWN, RULE} and loc:
                faulty.add(loc[0])
        right = cls.model_fields.keys() - faulty
        rest = {name: value for name, value in _without(given, unknown).items() if name in right}
        fields: dict[str, Any] = {
            name: (field.annotation, field) for name, field in cls.model_fields.items() if name in right
        }
        found = create_model(cls.__name__, **fields).model_validate(rest, context={_WITHOUT_RULES: True})
        return cls.model_construct(**{name: getattr(found, name) for name in right}), right, misspelt


def _literal(text: str) -> str:
    """Return a message that pydantic leaves as it is: what stands in braces it would fill in."""
    return text.replace("{remedy}", "{ remedy }")


def _as_detail(fault: Fault, value: object) -> InitErrorDetails:
    message = PydanticCustomError(RULE, _literal(fault.problem), {"remedy": fault.remedy})
    return InitErrorDetails(type=message, loc=tuple(fault.field.split(".")), input=value)


def _without(value: Mapping[str, Any], paths: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """Return `value` without what lies at these paths."""
    deeper = defaultdict(list)
    for path in paths:
        if len(path) > 1:
            deeper[path[0]].append(path[1:])
    gone = {path[0] for path in paths if len(path) == 1}
    return {
        key: _without(part, deeper[key]) if key in deeper and isinstance(part, dict) else part
        for key, part in value.items()
        if key not in gone
    }
