"""How long a client that has lost its broker waits between its tries, and what makes the waits long."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

import pytest

from trellis.mqtt import BrokerSettings, MemoryBroker
from trellis.mqtt.backoff import Backoff
from trellis.mqtt.connection import MqttDialer
from trellis.mqtt.reconnecting import ReconnectingBus


def comes_back_s(away_s: float, backoff: Backoff) -> float:
    """Return how long after the broker's return a client is back, where every try before it fails at once."""
    now = wait = 0.0
    while now <= away_s:
        wait = backoff.wait_s(wait, now)
        now += wait
    return now - away_s


@pytest.mark.parametrize(
    ("away_s", "most_s"),
    [(0.5, 1.5), (2.0, 3.0), (59.0, 3.0), (120.0, 6.3), (600.0, 30.0), (3600.0, 30.0)],
)
def test_a_client_is_back_soon_after_its_broker_and_a_fleet_is_spread(away_s: float, most_s: float) -> None:
    late = sorted(comes_back_s(away_s, Backoff()) for _ in range(400))
    assert late[-1] <= most_s
    # No tenth of the fleet, wherever it lies, comes within a hundredth of the time that all may take.
    tenth = len(late) // 10
    assert min(b - a for a, b in zip(late, late[tenth:], strict=False)) > most_s / 100


def test_the_first_waits_are_short_whatever_the_outage() -> None:
    backoff = Backoff()
    assert all(
        0.2 <= backoff.wait_s(0.0, away_s) <= 0.6 for away_s in (0.0, 30.0, 3600.0) for _ in range(100)
    )


def test_the_longest_wait_is_a_twentieth_of_a_long_outage() -> None:
    most = [Backoff().most_s(away_s) for away_s in (0.0, 60.0, 100.0, 600.0, 6000.0)]
    assert most == [3.0, 3.0, 5.0, 30.0, 30.0]


@dataclass(frozen=True)
class Noted(Backoff):
    """Notes what it was asked."""

    asked: list[tuple[float, float]] = field(default_factory=list)

    def wait_s(self, last_s: float, away_s: float) -> float:
        self.asked.append((last_s, away_s))
        return super().wait_s(last_s, away_s)


async def asked(backoff: Noted, count: int) -> None:
    async with asyncio.timeout(30):
        while len(backoff.asked) < count:  # noqa: ASYNC110 - the backoff has no event of its own
            await asyncio.sleep(0.005)


async def test_every_try_in_vain_counts_as_time_away() -> None:
    backoff = Noted(first_s=0.01, soon_s=0.05)
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        settings = BrokerSettings(f"mqtt://127.0.0.1:{taken.getsockname()[1]}", "a")
        async with ReconnectingBus(MqttDialer(settings, None), backoff=backoff):
            await asked(backoff, 6)
    lasts, aways = zip(*backoff.asked, strict=True)
    assert lasts[0] == 0.0
    assert min(lasts[1:]) >= 0.01
    assert list(aways) == sorted(aways)
    assert aways[5] >= sum(lasts[:6])


async def test_only_a_connection_that_held_makes_the_waits_short_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trellis.mqtt.reconnecting.STABLE_S", 3.0)
    broker, backoff = MemoryBroker(), Noted(first_s=0.01, soon_s=0.05)
    async with broker.bus("a", backoff=backoff) as bus:
        for count, held_s in enumerate((0.0, 0.0, 3.2, 0.0), start=1):
            await bus.wait_connected(30)
            await asyncio.sleep(held_s)
            broker.cut("a")
            await asked(backoff, count)
    lasts, aways = zip(*backoff.asked, strict=True)
    assert [last > 0 for last in lasts] == [False, True, False, True]
    assert aways[2] < 3.0, "counted from the end of the connection that held"
