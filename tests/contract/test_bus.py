"""What every bus keeps, in memory, on mosquitto and on amqtt."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.bus_fixtures import WAIT_S, Rig, amqtt_folder, rig, take, take_until, until
from trellis.errors import PayloadError, Unavailable
from trellis.mqtt import BusMessage, Limits, Publication

__all__ = ["amqtt_folder", "rig"]  # fixtures

pytestmark = pytest.mark.timeout(180)  # the first test of amqtt makes its environment

END = b"the end"


async def topics(subscription: AsyncIterator[BusMessage]) -> list[str]:
    return [message.topic for message in await take_until(subscription, END)]


async def test_a_publication_reaches_a_subscriber_byte_by_byte(rig: Rig) -> None:
    payload = bytes(range(256)) * 40
    async with rig.open("a") as a, rig.open("b") as b, b.subscribe("t/one") as got:
        await a.publish("t/one", payload)
        assert await take(got) == [BusMessage("t/one", payload, retain=False)]


async def test_wildcards_pass_their_levels_and_nothing_else(rig: Rig) -> None:
    async with rig.open("a") as a, a.subscribe("t/+/state") as plus, a.subscribe("t/#") as hash_:
        for topic in ("t/x/state", "t/x/y/state", "u/x/state", "t/x", "t"):
            await a.publish(topic, b"1")
        await a.publish("t/end/state", END)
        assert set(await topics(plus)) == {"t/x/state"}
        assert set(await topics(hash_)) == {"t/x/state", "t/x/y/state", "t/x", "t"}


async def test_messages_keep_their_order(rig: Rig) -> None:
    async with rig.open("a") as a, rig.open("b") as b, b.subscribe("t") as got:
        for number in range(100):
            await a.publish("t", b"%d" % number)
        assert [message.payload for message in await take(got, 100)] == [b"%d" % n for n in range(100)]


async def test_a_subscriber_gets_what_was_retained_before(rig: Rig) -> None:
    async with rig.open("a") as a, rig.open("b") as b:
        await a.publish("t/kept", b"old", retain=True)
        await a.publish("t/kept", b"new", retain=True)
        await a.publish("t/lost", b"gone")
        async with b.subscribe("t/+") as got:
            assert await take(got) == [BusMessage("t/kept", b"new", retain=True)]


async def test_a_second_subscription_to_a_filter_gets_the_retained_too(rig: Rig) -> None:
    async with rig.open("a") as a, a.subscribe("t/+") as first:
        await a.publish("t/kept", b"1", retain=True)
        await take(first)
        async with a.subscribe("t/+") as second:
            assert await take(second) == [BusMessage("t/kept", b"1", retain=True)]


async def test_an_empty_payload_removes_what_is_retained(rig: Rig) -> None:
    async with rig.open("a") as a:
        await a.publish("t/kept", b"1", retain=True)
        async with a.subscribe("t/+") as got:
            await take(got)
            await a.publish("t/kept", b"", retain=True)
            assert (await take_until(got, b""))[1:] in ([], [BusMessage("t/kept", b"1", retain=True)])
    async with rig.open("b") as b, b.subscribe("t/+") as got:
        await b.publish("t/end", END)
        assert await topics(got) == []


async def test_overlapping_subscriptions_each_get_the_message(rig: Rig) -> None:
    async with rig.open("a") as a, a.subscribe("t/+", "t/#") as both, a.subscribe("t/x") as one:
        await a.publish("t/x", b"1")
        await a.publish("t/x", END)
        # MQTT 3.1.1 lets a broker send a copy for each filter (3.3.5), and amqtt does.
        copies = {1, 2, 3} if rig.kind == "amqtt" else {1}
        assert len(await topics(both)) in copies
        assert len(await topics(one)) in copies


async def test_what_only_another_client_subscribed_is_not_delivered(rig: Rig) -> None:
    async with rig.open("a") as a, rig.open("b") as b:
        await a.publish("other/kept", b"1", retain=True)
        async with b.subscribe("mine/#") as mine, a.subscribe("other/#") as other:
            await take(other)
            await a.publish("mine/end", END)
            assert await topics(mine) == []


async def test_leaving_a_subscription_leaves_the_others_theirs(rig: Rig) -> None:
    async with rig.open("a") as a, a.subscribe("t/#") as stays:
        async with a.subscribe("t/#", "u/#"):
            pass
        await a.publish("t/x", b"1")
        assert (await take(stays))[0].topic == "t/x"


async def test_the_will_is_published_when_a_client_is_cut_off(rig: Rig) -> None:
    will = Publication("t/state", b"offline", retain=True)
    async with rig.open("b") as b, b.subscribe("t/state") as got, rig.open("a", will=will):
        await rig.cut("a")
        assert (await take(got))[0].payload == b"offline"


async def test_who_leaves_while_it_says_its_birth_is_said_to_have_gone(rig: Rig) -> None:
    will = Publication("t/state", b"offline", retain=True)
    birth = [Publication("t/state", b"online")] * 300
    async with rig.open("b") as b, b.subscribe("t/state") as got:
        async with rig.open("a", wait=False, will=will, birth=birth) as a:
            await take(got)
            assert not a.connected
        await take_until(got, b"offline")


async def test_a_goodbye_keeps_the_will_from_being_published(rig: Rig) -> None:
    async with rig.open("b") as b, b.subscribe("t/state") as got:
        async with rig.open("a", will=Publication("t/state", b"offline", retain=True)):
            pass
        await b.publish("t/state", END)
        assert await topics(got) == []


async def test_after_a_cut_the_birth_follows_the_will_and_precedes_the_queue(rig: Rig) -> None:
    will = Publication("t/state", b"offline", retain=True)
    boots: list[int] = []

    def birth() -> list[Publication]:
        boots.append(1)
        return [Publication("t/state", b"online %d" % len(boots), retain=True)]

    async with rig.open("b") as b, b.subscribe("t/#") as got, rig.open("a", will=will, birth=birth) as a:
        await take_until(got, b"online 1")
        await rig.cut("a")
        await a.publish("t/work", b"queued")  # at once: it may be on its way into a dead connection
        before = [message.payload for message in await take_until(got, b"queued")]
        # amqtt sends the will after the client is back; a device then publishes its birth again.
        assert before == [b"offline", b"online 2"] if rig.kind != "amqtt" else b"online 2" in before


async def test_after_a_restart_of_the_broker_all_is_subscribed_again(rig: Rig) -> None:
    birth = [Publication("t/a", b"online", retain=True)]
    async with rig.open("a", birth=birth) as a, rig.open("b") as b, b.subscribe("t/+") as got:
        await take_until(got, b"online")
        await rig.kill()
        await until(lambda: not a.connected and not b.connected)
        await rig.restart()
        await a.wait_connected(WAIT_S)
        await b.wait_connected(WAIT_S)
        await take_until(got, b"online")
        await a.publish("t/x", b"1")
        await take_until(got, b"1")


async def test_what_was_retained_while_the_broker_was_away_is_there_after_it(rig: Rig) -> None:
    async with rig.open("a") as a, rig.open("b") as b:
        await rig.kill()
        await until(lambda: not a.connected and not b.connected)
        for state in (b"1", b"2", b"3"):
            await a.publish("t/state", state, retain=True)
        async with b.subscribe("t/#") as got:
            await rig.restart()
            assert (await take(got))[0].payload == b"3"


async def test_what_is_queued_before_the_connection_is_sent_in_order(rig: Rig) -> None:
    async with rig.open("b") as b, b.subscribe("t/#") as got, rig.open("a", wait=False) as a:
        for number in range(50):
            await a.publish(f"t/{number}", b"1")
        await a.publish("t/lossy", b"1", qos=0)
        await a.publish("t/end", END)
        assert not a.connected
        assert await topics(got) == [f"t/{number}" for number in range(50)]


async def test_of_retained_publications_only_the_last_of_a_topic_is_queued(rig: Rig) -> None:
    async with rig.open("b") as b, b.subscribe("t/#") as got, rig.open("a", wait=False) as a:
        for number in range(50):
            await a.publish("t/state", b"%d" % number, retain=True)
        await a.publish("t/end", END)
        assert [message.payload for message in await take_until(got, END)] == [b"49"]


async def test_a_full_queue_drops_its_oldest_that_is_not_retained(rig: Rig) -> None:
    limits = Limits(outgoing=4)
    async with rig.open("b") as b, b.subscribe("t/#") as got, rig.open("a", wait=False, limits=limits) as a:
        await a.publish("t/state", b"1", retain=True)
        for number in range(5):
            await a.publish(f"t/{number}", b"1")
        await a.publish("t/end", END)
        # Room for four: the state, 3, 4 and the end; 0, 1 and 2 went.
        assert a.dropped == 3
        assert await topics(got) == ["t/state", "t/3", "t/4"]


async def test_a_consumer_that_falls_behind_loses_the_oldest(rig: Rig) -> None:
    async with rig.open("a", limits=Limits(incoming=4)) as a, a.subscribe("t") as slow:
        async with a.subscribe("end") as end:
            for number in range(10):
                await a.publish("t", b"%d" % number)
            await a.publish("end", END)
            await take_until(end, END)
        assert [message.payload for message in await take(slow, 4)] == [b"6", b"7", b"8", b"9"]
        assert getattr(slow, "dropped") == 6  # noqa: B009 - of the iterator, whose type has it not


async def test_a_subscription_made_before_the_connection_is_made_with_it(rig: Rig) -> None:
    async with rig.open("a", wait=False) as a, a.subscribe("t") as got:
        assert not a.connected
        await a.publish("t", b"1")
        assert (await take(got))[0].payload == b"1"


async def test_leaving_the_bus_or_a_subscription_ends_the_iteration(rig: Rig) -> None:
    async with rig.open("b") as b, b.subscribe("t") as got:
        async with rig.open("a") as a, a.subscribe("t") as own:
            await a.publish("t", b"1")
            await take(got)
        assert [message.payload async for message in own] in ([], [b"1"])
        with pytest.raises(Unavailable, match="not open"):
            await a.publish("t", b"2")


async def test_a_topic_with_a_wildcard_is_refused_before_it_is_sent(rig: Rig) -> None:
    async with rig.open("a") as a:
        with pytest.raises(PayloadError, match="must have no"):
            await a.publish("t/#", b"1")
        with pytest.raises(PayloadError, match="whole level"):
            await a.subscribe("t/x#").__aenter__()
        assert a.connected
