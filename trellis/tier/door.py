"""What devices reach of a tier: its SuperLink, whichever process that is at present, and its artefacts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from trellis.artefacts.offer import PATHS
from trellis.errors import Refused
from trellis.faults import shown
from trellis.flower.front import FleetFront
from trellis.http.errors import to_json
from trellis.http.readers import principal_of
from trellis.keys.principals import Principal

logger = logging.getLogger(__name__)


class Front:
    """The front of the present SuperLink; while there is none, devices are asked to try again.

    Args:
        artefacts: Serves what the tier's tasks train from, where devices have no PyTorch.
        admits: Whose certificate opens it; by default everybody's of the fleet. Without TLS nobody is asked.
    """

    def __init__(
        self, artefacts: ASGIApp, admits: Callable[[Principal | None], bool] = lambda _: True
    ) -> None:
        self._artefacts, self._admits = artefacts, admits
        self._waiting = PlainTextResponse(
            "the SuperLink is starting", status_code=503, headers={"retry-after": "1"}
        )
        self._front: FleetFront | None = None
        self._earlier: list[FleetFront] = []

    def point_to(self, address: str | None) -> None:
        """Stand before the SuperLink at `address` from now on; before none, if that is None."""
        if self._front is not None:
            self._earlier.append(self._front)
        self._front = None if address is None else FleetFront(address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while self._earlier:
            await self._earlier.pop().aclose()
        # A KeyError, were there no such key: who cannot be told is not let in.
        name = scope["state"]["principal"] if scope["type"] == "http" else None
        if name is not None and not self._admits(principal_of(name)):
            logger.warning("front: %s is not let in: its region is not averaged here", shown(name))
            said = f"this front is for other regions than that of {shown(name)}: give --server its own"
            refusal = to_json(Refused("region", said))
            # Flower's client shows the text that it gets, ours knows its own errors.
            ours = _is_for_artefacts(scope)
            response = JSONResponse(refusal, 403) if ours else PlainTextResponse(said, 403)
            await response(scope, receive, send)
        elif _is_for_artefacts(scope):
            await self._artefacts(scope, receive, send)
        else:
            await (self._front or self._waiting)(scope, receive, send)

    async def aclose(self) -> None:
        """Close the connections to the SuperLink."""
        for front in (*self._earlier, self._front):
            if front is not None:
                await front.aclose()


def _is_for_artefacts(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return False
    # The raw path as it came, before any decoding: there is no second way to write one of these.
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return PATHS.fullmatch(path) is not None
