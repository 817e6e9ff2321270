"""Descriptors from nowhere: only a `DescriptorError` comes out, soon, and short enough to be read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_descriptor import SMALL

from trellis.descriptor import MAX_DESCRIPTOR_BYTES, TaskDescriptor, load, parse_json, parse_mapping
from trellis.errors import DescriptorError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PIECES = [
    *[
        "task",
        "on",
        ":",
        "-",
        "{",
        "}",
        "[",
        "]",
        "&a",
        "*a",
        "<<",
        "''",
        '"\\ud800"',
        "?",
        "|",
        "%",
        "~",
        ",",
    ],
    *["!!", "!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!set", "!!omap", "0x", "1:30", ".inf"],
]
YAML_PIECES = st.lists(st.sampled_from([*PIECES, ": ", "- ", "\n", "  "]), max_size=14).map(" ".join)
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 8)}]\n"
    for last, this in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{this}: &{this} {{<<: [{', '.join([f'*{last}'] * 8)}]}}\n"
    for last, this in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def refused(path: Path, content: str | bytes) -> str:
    """Return what a file is refused with."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    started = time.monotonic()
    with pytest.raises(DescriptorError) as caught:
        load(path)
    # The slowest, 128 KB of brackets, takes under 2 s on the slowest machine we know.
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert len(message.encode()) < 60_000
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "task.yaml"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptorError, match=r"nowhere.yaml': cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(DescriptorError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_ten_megabytes_of_garbage_are_refused_by_their_size(path: Path) -> None:
    assert refused(path, b"\x00garbage" * 1_310_720).endswith("has 10485760 bytes, at most 131072")
    with pytest.raises(DescriptorError, match="is 10485760 long, at most 131072"):
        parse_json("garbage " * 1_310_720)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"task: \xff", "is not UTF-8: invalid start byte at byte 6"),
        (b"\xff\xfet\0a\0", "is not UTF-8"),
        (b"", "must be a mapping of fields, got NoneType"),
        (b"task", "must be a mapping of fields, got str"),
        (b"[1]", "must be a mapping of fields, got list"),
        (b"a: b: c", "is not YAML: mapping values are not allowed here"),
        (b"a: 1\n---\nb: 2", "is not YAML: expected a single document"),
        (b"task: \0", "is not YAML: unacceptable character"),
        (b"task: !!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
        (b"task: !!bool foo", "is not YAML: KeyError: 'foo'"),
        (b"task: !!int ''", "is not YAML: IndexError"),
        (b"task: !!float ''", "is not YAML: IndexError"),
        (b"task: !!timestamp foo", "is not YAML: AttributeError"),
        (b"task: " + b"9" * 100_000, "is not YAML: ValueError: Exceeds the limit"),
        (b"task: &a [*a]", "task: input should be a valid string, got "),
        (b"task: {? !!binary aGk= : 1}", "task: input should be a valid string, got <dict>"),
        (b'task: "\\ud800"', "task: input should be a valid string"),
        (b"1: 2", "1: keys should be strings, got 1"),
        (b"? [a]\n: b", "found unhashable key"),
        (b"task: a\nregions: [eu-1]\ntask: b\n", 'key "task" stands in line 1 and in line 3: remove one'),
        (
            b"data:\n  name: a\n  # two\n  'name': b\n",
            'key "name" stands in line 2 and in line 4: remove one',
        ),
        (b'{"train": {"rounds": 1, "rounds": 2}}', 'key "rounds" stands in line 1 and in line 1: remove one'),
        (b"1: a\n0x1: b\n", "key 1 stands in line 1 and in line 2: remove one"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"{" * 100_000, "is nested too deeply"),
        (b"- " * 60_000, "is nested too deeply"),
        (b"x" * 130_000, "must be a mapping of fields, got str"),
        ("\n".join(f"k{n}: 1" for n in range(9000)).encode(), "8906 faults more"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(path: Path, content: bytes, message: str) -> None:
    assert message in refused(path, content)


def test_a_bomb_of_aliases_does_not_go_off(path: Path) -> None:
    # 8 ** 12 words if anybody wrote them out.
    assert "task: input should be a valid string, got [[[[" in refused(path, BOMB + "task: *l\n")
    assert "strategy: input should be a valid dictionary" in refused(path, BOMB + "strategy: *l\n")


def test_a_bomb_of_merge_keys_does_not_go_off(path: Path) -> None:
    assert "task: input should be a valid string, got {" in refused(path, MERGES + "task: *l\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ud800", "unable to parse raw data as a unicode string"),
        (b"\xff", "Invalid JSON"),
        (b'{"task":"\xff"}', "Invalid JSON"),
        ('{"task":"\\ud800"}', "Invalid JSON: unexpected end of hex escape"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        ('{"revision":' + "9" * 10_000 + "}", "Invalid JSON: number out of range"),
        ("NaN", "input should be an object, got NaN"),
        ("{} {}", "Invalid JSON: trailing characters"),
        ("task: t", "Invalid JSON"),
    ],
)
def test_a_text_that_is_no_json_object_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(DescriptorError, match=message) as caught:
        parse_json(text)
    str(caught.value).encode()


def test_a_key_that_stands_twice_in_a_text_is_refused() -> None:
    text = json.dumps(SMALL)
    twice = text.replace('"rounds":', '"rounds":1, "rounds":')
    with pytest.raises(DescriptorError, match=r'^task descriptor: key "rounds" stands twice in one object'):
        parse_json(twice)
    with pytest.raises(DescriptorError, match='key "task" stands twice'):
        parse_json(text.replace("{", '{"task":"t",', 1).encode())
    parse_json(text)


def test_the_largest_text_that_is_read_is_128_kb() -> None:
    with pytest.raises(DescriptorError, match="Invalid JSON"):
        parse_json("x" * MAX_DESCRIPTOR_BYTES)
    with pytest.raises(DescriptorError, match="at most 131072"):
        parse_json("x" * (MAX_DESCRIPTOR_BYTES + 1))


def _sections() -> dict[str, list[str]]:
    found = {"": list(TaskDescriptor.model_fields)}
    for name, definition in TaskDescriptor.model_json_schema()["$defs"].items():
        found[name] = list(definition["properties"])
    return found


FIELDS = sorted({field for fields in _sections().values() for field in fields})
NEAR = st.recursive(
    JSON_VALUES
    | st.sampled_from(["eu-1", "digits", "127.0.0.1:1", "2026-05-01T00:00:00Z", [1, 8, 8], 1, 0.5]),
    lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), NEAR, max_size=16) | JSON_VALUES)
def test_only_descriptor_errors_come_out_of_any_json(value: Any) -> None:
    parsers: list[Callable[[], TaskDescriptor]] = [
        lambda: parse_json(json.dumps(value)),
        lambda: parse_mapping(value),
    ]
    for parse in parsers:
        try:
            task = parse()
        except DescriptorError as error:
            str(error).encode()
        else:
            assert parse_json(task.to_json()) == task


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=60)
    | YAML_PIECES.map(str.encode)
    | st.text(max_size=40).map(lambda t: t.encode())
)
def test_only_descriptor_errors_come_out_of_any_file(path: Path, content: bytes) -> None:
    refused(path, content)
