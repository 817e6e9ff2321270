"""Log lines of a region with a broker of its own go up to the one above, paced and bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from held_clock import HeldClock

from regional_gateway import log_carrying
from regional_gateway.log_carrying import LogCarrier
from trellis.errors import Refused
from trellis.mqtt import MemoryBroker, Publication
from trellis.payloads import ExecutionState, Log, Presence, State
from trellis.topics import Kind, Topics

SITE = "site"
CAM = "eu-1/devices/cam-7/tasks/digits"
TOPICS = Topics()
GATEWAY_LOG = TOPICS.path(Kind.GATEWAY_LOG, region="eu-1", task="digits")
NOTHING = cast("Any", None)
REGIONS = {"regions": ["eu-1", SITE]}


def line(message: str) -> bytes:
    return Log(level="INFO", logger="device_agent", message=message).to_bytes()


def logged(watcher: Any) -> list[str]:
    return [topic for topic, _ in watcher.heard if topic.endswith("/log")]


@pytest.fixture
def world(world: Any) -> Any:
    world.two = True
    return world


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    """The carrier's."""
    return HeldClock.of(log_carrying, monkeypatch, now=0.0)


@pytest.fixture
def small_queue(monkeypatch: Any) -> None:
    monkeypatch.setattr(log_carrying, "WAITING_BYTES", 100_000)


async def test_lines_of_devices_and_of_gateways_below_go_up_and_those_of_strangers_do_not(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    parent = State(state=Presence.ONLINE, boot_id="b", since=3, parent="eu-1").to_bytes()
    due = [f"{CAM}/log", "site/devices/cam-1/tasks/digits/log", "site/gateway/tasks/digits/log"]
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope(**REGIONS))
        await low.publish("site/gateway/state", parent)
        await wait_until(lambda: running.gateway.nested.path(SITE))
        strangers = ("eu-1/devices/cam-7/tasks/unknown/log", "us-1/devices/cam-1/tasks/digits/log")
        for topic in (*strangers, "us-1/gateway/tasks/digits/log", *due):
            await low.bus.publish(f"trellis/v1/{topic}", line(topic), qos=0)
        await wait_until(lambda: logged(high)[-3:] == due)
        assert [topic for topic in logged(high) if topic not in due] == []
        assert high.retained[f"{CAM}/log"] == line_of(high, f"{CAM}/log")


def line_of(watcher: Any, topic: str) -> bytes:
    (payload,) = [payload for one, payload in watcher.heard if one == topic]
    assert Log.parse(payload).message == topic
    return payload


async def test_lines_said_while_the_parents_broker_is_away_wait_until_whoever_listens_is_back_as_well(
    world: Any, watching: Any, wait_until: Any, operator: Any, clock: HeldClock
) -> None:
    async with world.gateway() as running, watching(world.region) as low:
        await running.post(operator.envelope())
        world.parent.stop()
        await wait_until(lambda: not running.gateway.connections[1])
        await low.bus.publish(f"trellis/v1/{CAM}/log", line("meanwhile"), qos=0)
        await wait_until(lambda: running.gateway._logs._waiting)
        world.parent.start()
        await wait_until(lambda: running.gateway.connections[1])
        await asyncio.sleep(2 * log_carrying._LOOK_S)
        async with watching(world.parent) as high:
            clock.now = 5.5  # three seconds until all have tried again, and two for their connects
            await wait_until(lambda: logged(high) == [f"{CAM}/log"])


@pytest.mark.usefixtures("small_queue")
async def test_a_flood_holds_up_no_execution_and_what_it_costs_is_said(  # noqa: PLR0917 - fixtures
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any, caplog: Any, clock: HeldClock
) -> None:
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope())
        running.gateway._logs._ready = 1.0  # so that as much is left out however long the flood takes
        for number in range(100):
            await low.bus.publish(f"trellis/v1/{CAM}/log", line(f"{number:08000}"), qos=0)
        clock.now = 1.0
        await wait_until(lambda: logged(high))
        await low.publish(f"{CAM}/execution", say.execution(ExecutionState.QUEUED))
        await wait_until(lambda: f"{CAM}/execution" in high.retained)
        await wait_until(lambda: "log lines are left out above" in caplog.text)
        (said,) = [one for one in caplog.messages if "left out above" in one]
        left_out = int(said.removeprefix("task=digits: ").split()[0])
        assert logged(high).count(f"{CAM}/log") == 100 - left_out
        assert 80 < left_out < 100
        # The lines came at 256 KiB/s, and the execution did not wait for the last of them.
        assert [topic for topic, _ in high.heard if topic.startswith(CAM)][-1] == f"{CAM}/log"
        # The gateway's own line of it goes up like the others.
        await wait_until(lambda: logged(high)[-1] == "eu-1/gateway/tasks/digits/log")


async def test_a_line_goes_up_once_where_both_urls_lead_to_one_broker(
    world: Any, watching: Any, wait_until: Any, operator: Any, caplog: Any
) -> None:
    world.upper = world.region
    async with world.gateway() as running, watching(world.region) as seen:
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope())
        messages = [f"{number:02}" for number in range(12)]
        for message in messages:
            await seen.bus.publish(f"trellis/v1/{CAM}/log", line(message), qos=0)
        await wait_until(lambda: said(seen).count("11") == 2)
        await seen.publish("eu-1/marker", b"1")
        await wait_until(lambda: "eu-1/marker" in seen.retained)
        assert sorted(said(seen)) == sorted(2 * messages)
    (warning,) = [one for one in caplog.messages if "come back on the region's" in one]
    assert "give --broker and --parent-broker the same URL" in warning


def said(watcher: Any) -> list[str]:
    return [Log.parse(payload).message for topic, payload in watcher.heard if topic == f"{CAM}/log"]


async def test_a_retained_line_is_not_brought_up_again_with_each_connect(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with watching(world.region) as low, watching(world.parent) as high:
        async with world.gateway() as running:
            await running.post(operator.envelope())
        await low.publish(f"{CAM}/log", line("of old"))
        async with world.gateway() as running:
            await wait_until(lambda: running.gateway.connections[1])
            # At QoS 0 what comes before the subscription is lost.
            await wait_until(
                lambda: any(TOPICS.filter(Kind.LOG) in one.filters for one in world.region._sessions.values())
            )
            await low.bus.publish(f"trellis/v1/{CAM}/log", line("of now"), qos=0)
            await wait_until(lambda: "of now" in said(high))
    assert said(high) == ["of now"]


async def test_what_is_no_line_or_longer_than_one_is_dropped_with_one_warning(
    world: Any, watching: Any, wait_until: Any, operator: Any, caplog: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope())
        longest = Log(level="INFO", logger="device_agent", message="\x01" * 8000).to_bytes()
        due = [longest, line("last")]
        for payload in (b"junk", b"junk", line("x" * 60_000), *due):
            await low.bus.publish(f"trellis/v1/{CAM}/log", payload, qos=0)
        await wait_until(lambda: "last" in said(high))
        assert [payload for topic, payload in high.heard if topic == f"{CAM}/log"] == due
    (warning,) = [one for one in caplog.messages if "dropped" in one]
    assert f"{CAM}/log: dropped, 1 since" in warning


async def test_after_a_blip_lines_wait_for_those_who_had_it_too_and_no_longer_however_quiet_it_was(
    clock: HeldClock,
) -> None:
    broker, births = MemoryBroker(), asyncio.Queue[None]()
    carrier, topic = LogCarrier(TOPICS, "eu-1", NOTHING, NOTHING), GATEWAY_LOG

    def birth() -> list[Publication]:
        carrier.parent_connects()
        births.put_nowait(None)
        return []

    up = broker.bus("up", birth=birth)
    async with up as parent, broker.bus("seen") as watcher, watcher.subscribe(topic) as heard:
        carrying = asyncio.create_task(carrier.carry(cast("Any", Denying()), parent))
        await asyncio.wait_for(births.get(), 60)
        carrier.put(TOPICS.parse(topic), Publication(topic, line("at once"), qos=0))
        assert Log.parse((await asyncio.wait_for(anext(heard), 60)).payload).message == "at once"
        clock.now = 3600.0
        await asyncio.sleep(2 * log_carrying._LOOK_S)  # it looks that often whether the broker is there
        broker.cut("up")
        await asyncio.wait_for(births.get(), 60)
        carrier.put(TOPICS.parse(topic), Publication(topic, line("after the blip"), qos=0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(heard), 3 * log_carrying._LOOK_S)
        clock.now += 5.5  # three seconds until all have tried again, and two for their connects
        assert Log.parse((await asyncio.wait_for(anext(heard), 60)).payload).message == "after the blip"
        carrying.cancel()


class Denying:
    """A bus on whose broker nobody may hear log lines."""

    @contextlib.asynccontextmanager
    async def subscribe(self, *filters: str) -> AsyncIterator[Any]:
        raise Refused("broker", f"may not subscribe to {', '.join(filters)}")
        yield


async def test_a_broker_that_denies_log_lines_ends_nothing_and_the_gateways_own_go_up(
    caplog: Any,
) -> None:
    broker, topic = MemoryBroker(), GATEWAY_LOG
    carrier = LogCarrier(TOPICS, "eu-1", NOTHING, NOTHING)
    async with broker.bus("up") as parent, broker.bus("seen") as watcher, watcher.subscribe("#") as heard:
        await parent.wait_connected(60)
        carrying = asyncio.create_task(carrier.carry(cast("Any", Denying()), parent))
        carrier.put(TOPICS.parse(topic), Publication(topic, line("own"), qos=0))
        assert (await asyncio.wait_for(anext(heard), 60)).topic == topic
        assert not carrying.done()
        carrying.cancel()
    (warning,) = [one for one in caplog.messages if "are not brought up" in one]
    assert "trellis keys acl" in warning
