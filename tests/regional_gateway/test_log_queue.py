"""Lines that wait to go up: bounded, and fair to those who say little."""

from __future__ import annotations

from regional_gateway.log_queue import LogQueue
from trellis.mqtt import Publication
from trellis.topics import Kind, Topics

TOPICS = Topics()


def put(queue: LogQueue, device: str, payload: bytes) -> None:
    topic = TOPICS.path(Kind.LOG, region="eu-1", device=device, task="digits")
    queue.put(TOPICS.parse(topic), Publication(topic, payload, qos=0))


def everything(queue: LogQueue) -> list[bytes]:
    lines = []
    while queue:
        lines.append(queue.take().payload)
    return lines


def test_senders_have_their_turn_one_after_the_other_and_each_ones_lines_stay_in_order() -> None:
    queue = LogQueue(1_000_000)
    for payload in (b"1", b"2", b"3"):
        put(queue, "loud", payload)
    put(queue, "calm", b"a")
    put(queue, "calm", b"b")
    assert everything(queue) == [b"1", b"a", b"2", b"b", b"3"]


def test_who_has_most_waiting_makes_room_with_the_oldest_of_its_own() -> None:
    queue = LogQueue(10_000)
    put(queue, "calm", b"of the calm")
    for number in range(20):
        put(queue, "loud", bytes([number]) * 1000)
    put(queue, "late", b"of the late")
    waiting = everything(queue)
    assert b"of the calm" in waiting
    assert b"of the late" in waiting
    # 9 lines of 1000 bytes and their topics, of some 50, are less than 10 000; 10 are more.
    assert [line[0] for line in waiting if len(line) == 1000] == list(range(11, 20))
    assert queue.left_out == {"digits": 11}
