"""What a tier's apps run on: their channel to the service, a SuperLink, and the front before that.

TierHost.open
└── ConfigError   the front's port is taken
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from starlette.types import ASGIApp

from trellis.flower.backchannel import TOKEN_VARIABLE, URL_VARIABLE
from trellis.flower.superlink import SuperLink
from trellis.http.server import HttpServer, advertised
from trellis.keys.principals import Principal
from trellis.tier.backchannel_api import create_backchannel
from trellis.tier.door import Front
from trellis.tier.running import AppTask, MemberTask
from trellis.tier.supervision import RunningSuperLink, RunTiming, SuperLinkKeeper, Supervisor
from trellis.tls import TlsFiles

OpenSuperLink = Callable[[Mapping[str, str]], AbstractAsyncContextManager[RunningSuperLink]]
"""Starts a SuperLink whose apps inherit an environment; trials start one whose apps play a part."""


def superlinks(folder: Path, app_module: str) -> OpenSuperLink:
    """Return what starts real ones, with their state in `folder`, and the app's module imported early."""

    def open_superlink(environment: Mapping[str, str]) -> AbstractAsyncContextManager[RunningSuperLink]:
        return SuperLink(folder=folder.resolve(), environment=environment, preload=(app_module,))

    return open_superlink


class TierHost:
    """The parts that the centre and a region run their apps with.

    Args:
        open_superlink: Starts a SuperLink.
        app: The Flower app.
        timing: How long app and SuperLink are waited for.
        find: Returns the task of a name to its app, or raises `Refused`.
        find_member: At a gateway, as `find`: its apps are members of the tier above.
        artefacts: Serves what the tier's tasks train from, where devices have no PyTorch.
        admits: Whose certificate opens the front; by default everybody's of the fleet.

    Attributes:
        front: Stands before the SuperLink of now.
        keeper: Has one running.
        supervisor: Has an app on every task.
    """

    def __init__(
        self,
        open_superlink: OpenSuperLink,
        *,
        app: Path,
        timing: RunTiming,
        find: Callable[[str], AppTask],
        find_member: Callable[[str], MemberTask] | None = None,
        artefacts: ASGIApp,
        admits: Callable[[Principal | None], bool] = lambda _: True,
    ) -> None:
        self._token = secrets.token_urlsafe(32)
        self._environment: dict[str, str] = {}
        self.front = Front(artefacts, admits)
        self.keeper = SuperLinkKeeper(lambda: open_superlink(self._environment), self.front.point_to)
        self.supervisor = Supervisor(self.keeper, app, timing)
        outlives: Callable[[float], Awaitable[bool]] = self.keeper.outlives
        self._backchannel = create_backchannel(
            find, token=self._token, outlives=outlives, find_member=find_member
        )

    async def open(self, stack: AsyncExitStack, *, host: str, port: int, tls: TlsFiles | None) -> str:
        """Open front and channel until `stack` is left; return the front's URL as devices reach it."""
        inner = HttpServer(self._backchannel, host="127.0.0.1", port=0, tls=None)
        inner = await stack.enter_async_context(inner)
        self._environment = {URL_VARIABLE: inner.url, TOKEN_VARIABLE: self._token}
        stack.push_async_callback(self.front.aclose)
        front = HttpServer(self.front, host=host, port=port, tls=tls)
        return advertised((await stack.enter_async_context(front)).url)
