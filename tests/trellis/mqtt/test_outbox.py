"""The queue of publications, without any broker."""

from __future__ import annotations

from trellis.mqtt import Publication
from trellis.mqtt.outbox import Outbox


def plain(name: str) -> Publication:
    return Publication(name, b"1")


def kept(name: str, payload: bytes = b"1") -> Publication:
    return Publication(name, payload, retain=True)


def names(outbox: Outbox) -> list[str]:
    return [entry.publication.topic for entry in outbox.unsent()]


def test_what_was_sent_and_not_acknowledged_is_sent_again_in_its_old_place() -> None:
    outbox = Outbox(10)
    entries = [outbox.put(plain(name))[0] for name in ("a", "b", "c")]
    for entry in entries[:2]:
        assert outbox.mark_sent(entry)
    outbox.acknowledge(entries[0])
    outbox.put(plain("d"))
    assert names(outbox) == ["c", "d"]
    outbox.disconnected()
    assert names(outbox) == ["b", "c", "d"]


def test_a_lost_connection_lets_go_whoever_waits() -> None:
    outbox = Outbox(10)
    entry, _ = outbox.put(plain("a"))
    outbox.mark_sent(entry)
    outbox.disconnected()
    assert entry.settled.is_set()
    assert len(outbox.unsettled()) == 1


def test_a_retained_one_on_its_way_yields_to_a_later_one_after_a_lost_connection() -> None:
    outbox = Outbox(10)
    first, _ = outbox.put(kept("state", b"old"))
    outbox.mark_sent(first)
    outbox.put(kept("state", b"new"))
    assert len(outbox) == 2
    outbox.disconnected()
    assert [entry.publication.payload for entry in outbox.unsent()] == [b"new"]


def test_a_replaced_entry_is_not_sent_any_more() -> None:
    outbox = Outbox(10)
    first, _ = outbox.put(kept("state", b"old"))
    outbox.put(kept("state", b"new"))
    assert first.settled.is_set()
    assert not outbox.mark_sent(first)


def test_a_full_queue_spares_the_retained_as_long_as_it_can() -> None:
    outbox = Outbox(2)
    outbox.put(kept("x"))
    outbox.put(plain("a"))
    assert outbox.put(kept("y"))[1] == plain("a")
    assert outbox.put(kept("z"))[1] == kept("x")
    assert outbox.dropped == 2
    assert names(outbox) == ["y", "z"]
