"""What devices reach of a tier's SuperLink, whichever process that is at present."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from trellis.flower.front import FleetFront


class Front:
    """The front of the present SuperLink; while there is none, devices are asked to try again."""

    def __init__(self) -> None:
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
        await (self._front or self._waiting)(scope, receive, send)

    async def aclose(self) -> None:
        """Close the connections to the SuperLink."""
        for front in (*self._earlier, self._front):
            if front is not None:
                await front.aclose()
