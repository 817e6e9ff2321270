"""What devices reach of a tier: its SuperLink, whichever process that is at present, and its artefacts."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from trellis.artefacts.offer import PATHS
from trellis.flower.front import FleetFront


class Front:
    """The front of the present SuperLink; while there is none, devices are asked to try again.

    Args:
        artefacts: Serves what the tier's tasks train from, where devices have no PyTorch.
    """

    def __init__(self, artefacts: ASGIApp) -> None:
        self._artefacts = artefacts
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
        if _is_for_artefacts(scope):
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
