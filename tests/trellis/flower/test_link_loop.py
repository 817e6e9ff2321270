"""How a link comes back to a server that was away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from flwr.app import Message

from trellis.errors import Unavailable
from trellis.flower.link_loop import Halt, LinkLoop, Pace


class AwayLink:
    """A link to a server that is not there."""

    in_hand: Collection[str] = ()

    def __init__(self) -> None:
        self.tried: list[float] = []
        self.news = threading.Condition()

    def connect(self) -> int:
        with self.news:
            self.tried.append(time.monotonic())
            self.news.notify_all()
        raise Unavailable("nobody is there")

    def pull(self, asked: Callable[[], None]) -> Message | None:
        return None

    def push(self, reply: Message) -> str:
        raise AssertionError(reply)

    def close(self, *, deactivate: bool) -> None:
        pass

    def until_tried(self, times: int, within_s: float) -> bool:
        with self.news:
            return self.news.wait_for(lambda: len(self.tried) >= times, within_s)


class HeldHalt(Halt):
    """Its fourth wait for news ends by news alone."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait_news(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)
        super().wait_news(600.0 if len(self.waits) == 4 else timeout_s)


class Unheard:
    def connecting(self, reason: str) -> None: ...

    def connected(self, node_id: int, in_hand: Collection[str]) -> None: ...

    def asked(self) -> None: ...

    def replying(self, message_id: str) -> None: ...

    def replied(self, message: Message, reply: Message) -> None: ...


def test_an_announcement_ends_the_wait_for_a_server_that_was_away() -> None:
    link, halt = AwayLink(), HeldHalt()
    pace = Pace(retry_s=0.2, retry_most_s=600.0)
    loop = LinkLoop(link, lambda message, _: message, events=Unheard(), halt=halt, pace=pace)
    thread = threading.Thread(target=loop.run)
    halt.wake()  # before anything failed: it must not count
    thread.start()
    try:
        # It waits 0.2, 0.4, 0.8, 1.6 s …, or a half of it, of which it hears nothing for the first 0.1 s.
        assert link.until_tried(4, 60)
        assert not link.until_tried(5, 0.5)
        halt.wake()
        assert link.until_tried(5, 60)
        assert 0.7 <= halt.waits[3] <= 1.4
        # And never sooner than after half of the first wait, however often something is announced.
        deadline = time.monotonic() + 60
        while not link.until_tried(6, 0.01):
            assert time.monotonic() < deadline, "it has not tried again"
            halt.wake()
        assert link.tried[5] - link.tried[4] >= 0.1
    finally:
        halt.call(task_ended=False)
        thread.join(20)
    assert not thread.is_alive()
