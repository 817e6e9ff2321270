"""A Flower app's end of the backchannel: it reports to its service, and keeps a view of the fleet.

One thread long-polls the service; `Fleet.wait` wakes as soon as a device connects, goes, or has uploaded.
Another says what is announced and recorded, in order, while the app goes on; what failed is raised by
whatever is said next. When the service is gone the app has nobody to work for: `wait` raises `Unavailable`
and the app ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import httpx
from pydantic import BaseModel, ValidationError

from trellis.errors import ConfigError, Unavailable
from trellis.flower.backchannel import (
    TOKEN_VARIABLE,
    URL_VARIABLE,
    Brief,
    FleetView,
    Hello,
    RoundRecord,
    StateReport,
    Uplink,
)
from trellis.payloads import Log, Payload, Round

logger = logging.getLogger(__name__)

_POLL_S = 10.0
_REST_S = 50e-6
"""Between two views of the fleet, for each device in it."""
_LAST_LINES_S = 2.0
"""An app that fails logs why just before it ends: so long may those lines take."""
_GONE_AFTER_S = 15.0
"""A service that is started again takes a few seconds, and then starts a new run: this app may go."""


class Fleet(Protocol):
    """What a grid must know of the devices."""

    def wait(self, after: int, timeout_s: float) -> FleetView:
        """Return the view once its version is above `after`, or the present one after `timeout_s`."""
        ...

    def announce(self, standing: Round) -> None:
        """Say on MQTT where the round stands, so that devices pull."""
        ...


class ServiceChannel:
    """The backchannel from `__enter__` to `__exit__`."""

    def __init__(self, task: str, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        try:
            url, token = environment[URL_VARIABLE], environment[TOKEN_VARIABLE]
        except KeyError as error:
            raise ConfigError(
                "Flower app of Trellis",
                f"needs {error.args[0]}, which its service sets: run `trellis server`",
            ) from None
        self._path = f"/app/{task}"
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=20.0, trust_env=False)
        self._changed = threading.Condition()
        self._view = FleetView(version=0)
        self._lost: str | None = None
        self._reported: StateReport | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="fleet-view", daemon=True)
        self._speaker = ThreadPoolExecutor(1, "speaker")
        self._unsaid: deque[Future[httpx.Response]] = deque()
        self._lines: deque[Future[httpx.Response]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ended.set()
        futures.wait(self._lines, _LAST_LINES_S)
        self._speaker.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def hello(self, run_id: int) -> Brief:
        """Say who we are, learn what to do, and begin to follow the fleet."""
        answer = self._post("hello", Hello(pid=os.getpid(), run_id=run_id))
        brief = Brief.model_validate_json(answer.content)
        self._thread.start()
        return brief

    def announce(self, standing: Round) -> None:
        """Have the service publish where the round stands, soon."""
        self._say("round", standing)

    def record(self, record: RoundRecord) -> None:
        """Hand over a finished round, soon: `flush` before what makes the record be forgotten here."""
        self._say("record", record)

    def report(self, report: StateReport) -> None:
        """Hand over the task's state, after all that was said before; the same word twice is said once."""
        if report != self._reported:
            self.flush()
            self._post("state", report)
            self._reported = report

    def uplink(self, news: Uplink) -> None:
        """Hand over how a region fares as a member of the tier above; it has been said when this returns."""
        self.flush()
        self._post("uplink", news)

    def log(self, line: Log) -> None:
        """Hand over a log line, soon; nobody hears of one that is lost."""
        while self._lines and self._lines[0].done():
            self._lines.popleft()
        with contextlib.suppress(RuntimeError):  # the channel is closed
            self._lines.append(self._speaker.submit(self._post, "log", line))

    def flush(self) -> None:
        """Return when all that was said has been heard.

        Raises:
            Unavailable: The service is gone.
        """
        while self._unsaid:
            self._unsaid.popleft().result()

    def wait(self, after: int, timeout_s: float) -> FleetView:
        """Return the view once its version is above `after`, or the present one after `timeout_s`.

        Raises:
            Unavailable: The service is gone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._view.version > after or self._lost is not None, timeout_s)
            if self._lost is not None:
                raise Unavailable(self._lost)
            return self._view

    def _say(self, what: str, body: BaseModel) -> None:
        while self._unsaid and self._unsaid[0].done():
            self._unsaid.popleft().result()
        self._unsaid.append(self._speaker.submit(self._post, what, body))

    def _post(self, what: str, body: BaseModel) -> httpx.Response:
        content = body.to_bytes() if isinstance(body, Payload) else body.model_dump_json().encode()
        try:
            response = self._http.post(
                f"{self._path}/{what}", content=content, headers={"content-type": "application/json"}
            )
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the service that started this app does not answer {what!r}: {error}"
            ) from error
        return response

    def _follow(self) -> None:
        answered = time.monotonic()
        while not self._ended.is_set():
            try:
                response = self._http.get(
                    f"{self._path}/fleet", params={"after": self._view.version, "wait_s": _POLL_S}
                )
                response.raise_for_status()
                view = FleetView.model_validate_json(response.content)
            except (httpx.HTTPError, ValidationError, RuntimeError) as error:
                # RuntimeError: the client was closed beneath a poll that was under way.
                if self._ended.is_set():
                    return
                if time.monotonic() - answered > _GONE_AFTER_S:
                    self._give_up(str(error))
                    return
                self._ended.wait(0.5)
                continue
            answered = time.monotonic()
            with self._changed:
                self._view = view
                self._changed.notify_all()
            # A view is of all devices, and each makes new ones: hundreds would keep us at nothing else.
            self._ended.wait(len(view.devices) * _REST_S)

    def _give_up(self, why: str) -> None:
        with self._changed:
            self._lost = f"the service that started this app is gone: {why}"
            self._changed.notify_all()
