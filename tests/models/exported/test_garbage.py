"""Bytes of any kind in place of an exported model: an `ArtefactError` within bounds, and nothing else."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from graph_files import write_onnx, write_tflite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.exported import read_artefact
from models.exported.graph_file import MalformedFile
from models.exported.protobuf import Budget, Message
from models.exported.tflite_file import read_tflite
from trellis.errors import ArtefactError

RUNTIMES = ("onnx", "tflite")
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    return {
        "onnx": write_onnx(folder / "tiny.onnx").read_bytes(),
        "tflite": write_tflite(folder / "tiny.tflite").read_bytes(),
    }


def read(folder: Path, content: bytes, runtime: Any) -> None:
    path = folder / "garbage"
    path.write_bytes(content)
    try:
        read_artefact(path, runtime=runtime, purpose="training")
    except ArtefactError as error:
        assert str(error).startswith("artefact 'garbage'")  # noqa: PT017 - any other error fails the test


@QUICK
@given(st.binary(max_size=400), st.sampled_from(RUNTIMES))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, runtime: str) -> None:
    read(tmp_path_factory.getbasetemp(), content, runtime)
    read(tmp_path_factory.getbasetemp(), content[:4] + b"TFL3" + content[4:], "tflite")


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, bytes, int]]:
    """Where (as a share of the file), what is put there, and how many bytes it replaces."""
    edit = st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8))
    return draw(st.lists(edit, min_size=1, max_size=6))


def edited(content: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    for share, put, gone in changes:
        at = int(share * len(content))
        content = content[:at] + put + content[at + gone :]
    return content


@QUICK
@given(edits(), st.sampled_from(RUNTIMES))
def test_a_sound_file_with_bytes_changed(
    tmp_path_factory: pytest.TempPathFactory,
    sound: dict[str, bytes],
    changes: list[tuple[float, bytes, int]],
    runtime: str,
) -> None:
    read(tmp_path_factory.getbasetemp(), edited(sound[runtime], changes), runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_single_byte_set_to_its_ends(runtime: str, sound: dict[str, bytes], tmp_path: Path) -> None:
    whole = sound[runtime]
    for at in range(len(whole)):
        # One byte is never the end of a number here that the next one is not.
        value = (0x00, 0x7F, 0xFF)[at % 3]
        read(tmp_path, whole[:at] + bytes([value]) + whole[at + 1 :], runtime)


def varint(value: int) -> bytes:
    parts = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def _graphs(depth: int) -> bytes:
    """A model whose node has a graph whose node has a graph, and so on."""
    content = b""
    for _ in range(depth):
        # graph: 1 nodes; node: 5 attributes; attribute: 6 graph
        for field in (6, 5, 1):
            content = varint(field << 3 | 2) + varint(len(content)) + content
    return varint(7 << 3 | 2) + varint(len(content)) + content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_graphs(60), "it is nested deeper than 64 messages"),
        (b"\x3a\x00" + b"\xf8\x07\x01" * 510_000, "it has more fields than any model needs"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends .* bytes beyond the end: cut short"),
        (b"\xff" * 11, "a number is longer than 10 bytes"),
        (b"\x00\x01", "a field has the number 0"),
        (b"\x3b\x00", "field 7 is of kind 3, which is not in use"),
        (b"\x38\x01", "field 7 is a number, bytes are due"),
        (b"\x08\x01", "there is no graph in it"),
        (b"\x3a\x00\x72\x04\x0a\x02\xff\xfe", "field 1 is no UTF-8 text"),
        (b"\x3a\x03\x5a\x01\x08", "a number ends beyond the end: cut short"),
    ],
)
def test_a_hostile_protobuf_ends_in_bounds(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.onnx"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ArtefactError, match=problem):
        read_artefact(path, runtime="onnx", purpose="training")
    assert time.monotonic() - began < 30


def test_a_hostile_flatbuffer_ends_in_bounds(tmp_path: Path) -> None:
    # Of 340,000 tables, each the same, three numbers are read of each.
    count = 340_000
    vtable = struct.pack("<4H", 8, 8, 0, 4)
    # Its root stands behind it; its field 1, the operators, is the vector behind that.
    model = struct.pack("<iI", 8, 4)
    last = 28 + 4 * count + len(vtable)
    entries = b"".join(struct.pack("<I", last - at) for at in range(28, 28 + 4 * count, 4))
    content = struct.pack("<I4s", 16, b"TFL3") + vtable + model + struct.pack("<I", count) + entries
    path = tmp_path / "hostile.tflite"
    path.write_bytes(content + vtable + struct.pack("<iI", 8, 0))
    with pytest.raises(ArtefactError, match="it has more parts than any model needs"):
        read_artefact(path, runtime="tflite", purpose="training")


def test_a_message_reads_each_kind_of_field() -> None:
    content = b"\x08\x96\x01" + b"\x12\x02hi" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + b"\0" * 8 + b"\x12\x01!"
    message = Message(memoryview(content), Budget())
    assert message.number(1) == 150
    assert message.content(3) == b"\x00\x00\x80\x3f"
    assert 4 in message
    assert 5 not in message
    with pytest.raises(MalformedFile, match="field 2 stands 2 times"):
        message.text(2)


def shared_name(entries: int, size: int) -> bytes:
    """A TFLite file all of whose metadata entries are one table, whose name is long."""
    model, vector = 28, 36
    entry_fields = vector + 4 + 4 * entries
    entry, name = entry_fields + 8, entry_fields + 16
    content = struct.pack("<I4s", model, b"TFL3") + struct.pack("<9H", 18, 8, *[0] * 6, 4) + bytes(2)
    content += struct.pack("<iI", model - 8, 4) + struct.pack("<I", entries)
    content += b"".join(struct.pack("<I", entry - (vector + 4 + 4 * index)) for index in range(entries))
    content += struct.pack("<3H2x", 6, 8, 4) + struct.pack("<iI", entry - entry_fields, 4)
    assert len(content) == name
    return content + struct.pack("<I", size) + b"a" * size


def test_a_part_that_many_share_is_not_read_without_end() -> None:
    assert read_tflite(shared_name(1, 100), metadata_key="trellis").manifest is None
    with pytest.raises(MalformedFile, match="share what they hold more often"):
        read_tflite(shared_name(1000, 1_000_000), metadata_key="trellis")
