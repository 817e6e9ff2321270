"""docs/task.md against the descriptor's JSON Schema and the table of strategies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import block, codes, read, table

from trellis import plain_yaml
from trellis.descriptor import MAX_DESCRIPTOR_BYTES, TaskDescriptor, json_schema, load, parse_mapping
from trellis.descriptor_fields import DEFAULT_LIFETIME
from trellis.errors import DescriptorError
from trellis.identifiers import PATTERN
from trellis.tier.strategies import check_strategy, strategy_of
from trellis.tier.strategy_table import STRATEGIES

PAGE = read("docs/task.md")
SCHEMA = json_schema()
Part = dict[str, Any]


def resolved(part: Part) -> Part:
    return SCHEMA["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part


def present(part: Part) -> Part:
    """What a field is where it is not null."""
    rest = [one for one in part.get("anyOf", ()) if one != {"type": "null"}]
    return rest[0] if len(rest) == 1 else part


def bounds(part: Part) -> str:
    low, high = part.get("minimum"), part.get("maximum")
    if high == 2**31 - 1:
        high = None  # the page says this limit once for all
    if low is not None and high is not None:
        return f", {low:,} to {high:,}"
    said = [f"from {low:,}"] if low is not None else []
    said += [f"above {part['exclusiveMinimum']:,}"] if "exclusiveMinimum" in part else []
    said += [f"up to {high:,}"] if high is not None else []
    said += [f"below {part['exclusiveMaximum']:,}"] if "exclusiveMaximum" in part else []
    return f", {' '.join(said)}" if said else ""


def kind(part: Part) -> str:
    part = resolved(part)
    if "const" in part or "enum" in part:
        return " or ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    match part["type"]:
        case "integer" | "number":
            return str(part["type"]) + bounds(part)
        case "boolean":
            return "`true` or `false`"
        case "array":
            most = f" of {part['minItems']} to {part['maxItems']:,}" if "maxItems" in part else ""
            return f"list{most}: {kind(part['items'])}"
        case "object":
            return "mapping"
    return text_kind(part)


def text_kind(part: Part) -> str:
    pattern = part.get("pattern", "")
    if part.get("format") == "date-time":
        return "time with zone"
    if pattern == f"^{PATTERN}$":
        return "identifier"
    if pattern:
        return "`HOST:PORT`" if "):" in pattern else "name"
    return f"text, at most {part['maxLength']:,} characters"


def default(name: str, part: Part, owner: Part) -> str:
    if name in {"issued_at", "expires_at"}:
        # Filled in before the schema is asked.
        return "now" if name == "issued_at" else f"{DEFAULT_LIFETIME.days} days after `issued_at`"
    if name in owner.get("required", ()):
        return "required"
    value = part.get("default")
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"`[{', '.join(value)}]`"
    return f"`{str(value).lower()}`" if value != "" else "empty"


def fields(owner: Part, above: str = "") -> Iterator[list[str]]:
    for name, part in owner["properties"].items():
        inner = resolved(present(part))
        if "properties" in inner:
            yield from fields(inner, f"{above}{name}.")
        else:
            yield [f"`{above}{name}`", kind(present(part)), default(name, part, owner)]


def test_the_table_of_fields_is_the_schemas() -> None:
    assert [row[:3] for row in table(PAGE, "fields")] == list(fields(SCHEMA))


def test_every_field_has_a_meaning() -> None:
    assert [row[0] for row in table(PAGE, "fields") if not row[3]] == []


def test_the_example_is_a_task(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(block(PAGE, "example"), encoding="utf-8")
    descriptor = load(file)
    assert check_strategy(descriptor).flower_class == "FedProx"


def test_the_table_of_strategies_is_the_servers() -> None:
    listed = [(codes(row[0])[0], codes(row[1])[0], row[2], row[3]) for row in table(PAGE, "strategies")]
    assert listed == [
        (
            name,
            entry.flower_class,
            ", ".join(f"`{key}` {value}" for key, value in entry.params.items()) or "none",
            entry.paper,
        )
        for name, entry in STRATEGIES.items()
    ]


def test_the_table_of_the_updates_that_a_strategy_needs_is_the_servers() -> None:
    assert [(codes(row[0])[0], row[1], int(row[2])) for row in table(PAGE, "fewest")] == [
        (name, entry.fewest_rule, entry.fewest(entry.params))
        for name, entry in STRATEGIES.items()
        if entry.fewest(entry.params) > 1
    ]


def across_tiers(name: str) -> TaskDescriptor:
    above = {"participants": {"minimum": 99}}
    example: Any = plain_yaml.load(block(PAGE, "example").encode(), what="example")
    return parse_mapping(
        example
        | {"strategy": {"name": name}, "participants": above["participants"]}
        | {"aggregation": {"tier": "regional", **above}}
    )


@pytest.mark.parametrize("row", table(PAGE, "tiers"), ids=lambda row: row[0])
def test_across_tiers_each_strategy_does_what_the_page_says(row: list[str]) -> None:
    task = across_tiers(codes(row[0])[0])
    assert row[2] == f"`{task.strategy.name}`"
    if row[3].startswith("refused"):
        assert row[1] == "what the task names"
        with pytest.raises(DescriptorError, match="over regional means it is not"):
            check_strategy(task)
        return
    entry = check_strategy(task)
    assert row[1] == f"`{strategy_of(task, regional=True).name}`"
    assert row[3] == {"sums": "exact", "robust": "robust over robust"}[entry.kind]


def test_every_strategy_stands_in_the_table_of_tiers() -> None:
    assert [codes(row[0])[0] for row in table(PAGE, "tiers")] == list(STRATEGIES)


def test_the_limits_in_the_text_are_the_codes() -> None:
    assert f"at most {MAX_DESCRIPTOR_BYTES // 1024} KiB" in PAGE
    assert f"{2**31 - 1:,}" in PAGE
