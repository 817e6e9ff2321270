"""Messages that travel whole, and what tells them from those whose objects must be pulled."""

from __future__ import annotations

import time

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from trellis.flower.inline import LARGEST_BYTES, identify, objects_of, posted, requests_of, whole


def content_of(size: int) -> RecordDict:
    return RecordDict({"parcel": ConfigRecord({"head": "[]", "arrays/arrays": b"\x07" * size})})


def reply(content: RecordDict | None = None, error: Error | None = None) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=5,
        dst_node_id=1,
        reply_to_message_id="a" * 64,
        group_id="",
        created_at=time.time(),
        ttl=60.0,
        message_type=MessageType.TRAIN,
    )
    message = make_message(metadata, content, error)
    identify(message)
    return message


def arrived(proto: ProtoMessage) -> ProtoMessage:
    return ProtoMessage.FromString(proto.SerializeToString())


@pytest.mark.parametrize(
    "message",
    [
        reply(content_of(100)),
        reply(RecordDict({"config": ConfigRecord({"a": 1, "b": [0.5, 1e-300], "c": "ü", "d": [True]})})),
        reply(RecordDict({"z": MetricRecord({"x": 1, "y": [2.0]}), "a": ConfigRecord({"k": b""})})),
        reply(error=Error(code=100, reason="the data are gone")),
    ],
    ids=["parcel", "config", "two records", "error"],
)
def test_what_goes_inline_arrives_whole_with_one_object_left_to_push(message: Message) -> None:
    post = posted(message, inline=True)
    assert (post.inline, [*post.objects], [*post.tree.children]) == (True, [message.metadata.message_id], [])
    found = whole(arrived(post.proto))
    assert found is not None
    assert (found.metadata.message_id, found.metadata.src_node_id) == (message.metadata.message_id, 5)
    assert found.has_error() == message.has_error()
    if message.has_content():
        assert found.content == message.content
    # What the inbox keeps of it makes the same message again.
    again = inflate_object_from_contents(message.metadata.message_id, objects_of(found))
    assert again.object_id == message.metadata.message_id


def test_what_was_altered_on_its_way_is_not_whole() -> None:
    proto = posted(reply(content_of(100)), inline=True).proto
    (item,) = proto.content.items
    item.config_record.items[1].value.bytes = b"\x08" * 100
    assert whole(proto) is None


def test_a_message_by_objects_is_not_whole() -> None:
    message = reply(content_of(100))
    post = posted(message, inline=False)
    assert not post.inline
    assert len(post.objects) == 3
    assert whole(arrived(post.proto)) is None


def test_a_large_message_goes_by_objects() -> None:
    assert not posted(reply(content_of(LARGEST_BYTES)), inline=True).inline
    assert posted(reply(content_of(LARGEST_BYTES - 1000)), inline=True).inline


def test_a_phase_of_many_messages_goes_inline_in_requests_of_eight_megabytes() -> None:
    assert requests_of([]) == []
    assert requests_of([10, 20]) == [[0, 1]]
    # A hundred messages of 221 kB: 37 of them, 8,177,000 bytes, are the most below 8 MiB.
    assert [len(request) for request in requests_of([221_000] * 100)] == [37, 37, 26]
    assert [position for request in requests_of([221_000] * 100) for position in request] == list(range(100))


def test_a_phase_that_is_too_large_or_has_one_message_that_is_goes_in_objects() -> None:
    assert len(requests_of([LARGEST_BYTES] * 32)) == 4
    assert requests_of([LARGEST_BYTES] * 33) == []
    assert requests_of([10, LARGEST_BYTES + 1]) == []
