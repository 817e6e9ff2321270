"""docs/task.md against the descriptor's JSON Schema and the table of strategies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import block, codes, read, table

from trellis.descriptor import MAX_DESCRIPTOR_BYTES, json_schema, load
from trellis.descriptor_fields import DEFAULT_LIFETIME
from trellis.identifiers import PATTERN
from trellis.tier.strategies import STRATEGIES, check_strategy

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


def test_the_limits_in_the_text_are_the_codes() -> None:
    assert f"at most {MAX_DESCRIPTOR_BYTES // 1024} KiB" in PAGE
    assert f"{2**31 - 1:,}" in PAGE
