"""What a gateway knows of the gateway above it: asked over HTTP, and remembered in its state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from regional_gateway.place import TierAbove
from trellis.errors import ConfigError, TrellisError
from trellis.files import write_atomically
from trellis.http.client import ServiceClient

logger = logging.getLogger(__name__)

ASK_EVERY_S = 10.0
_FIRST_S = 1.0
"""Between two questions of a gateway that has never had an answer: it can do nothing before."""
_MOST_TIERS = 16


class ParentMoved(Exception):
    """The tiers above are others than this gateway has gone by: it must begin anew."""


class _Health(BaseModel):
    """What is read of a parent's `GET /healthz`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    region: str
    front: str | None = None
    bridged: bool = False
    above: tuple[TierAbove, ...] | None = ()


class _Memory(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    tiers: tuple[TierAbove, ...]


class Parent:
    """The gateway above.

    Args:
        client: Its HTTP API.
        region: The region that asks.
        memory: The file that its last answer is kept in.
    """

    def __init__(self, client: ServiceClient, *, region: str, memory: Path) -> None:
        self.client, self._region, self._memory = client, region, memory
        self._problem = ""

    async def learn(self) -> tuple[TierAbove, ...]:
        """Return the tiers above, the nearest first: as remembered, or else once the parent has answered.

        Raises:
            ConfigError: It is no parent for this region.
        """
        tiers = self._remembered()
        while tiers is None:
            tiers = await self._ask()
            if tiers is None:
                await asyncio.sleep(_FIRST_S)
        return tiers

    async def follow(self, known: Sequence[TierAbove]) -> None:
        """Ask again and again, until cancelled.

        Raises:
            ParentMoved: Its answer is another than `known`.
            ConfigError: It is no parent for this region.
        """
        while True:
            tiers = await self._ask()
            if tiers is not None and tiers != tuple(known):
                raise ParentMoved
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self) -> tuple[TierAbove, ...] | None:
        try:
            health = _Health.model_validate(await self.client.get("/healthz"))
        except ValidationError:
            raise ConfigError(
                f"--parent {self.client.url}", "is no gateway: name the HTTP API of the gateway above"
            ) from None
        except TrellisError as error:
            self._note(f"does not answer: {error}")
            return None
        if health.above is None:
            self._note("does not know yet what is above itself")
            return None
        self._problem = ""
        own = TierAbove(region=health.region, front=health.front, bridged=health.bridged)
        tiers = (own, *health.above)
        if self._region in {tier.region for tier in tiers} or len(tiers) > _MOST_TIERS:
            raise ConfigError(
                f"--parent {self.client.url}",
                f"stands below region {self._region!r} itself: a gateway's parent is above it",
            )
        try:
            memory = _Memory(url=self.client.url, tiers=tiers).model_dump_json().encode()
            await asyncio.to_thread(write_atomically, self._memory, memory)
        except OSError as error:
            logger.error("what the gateway above answers cannot be kept: %s", error)
        return tiers

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("the gateway above %s", problem)
        self._problem = problem

    def _remembered(self) -> tuple[TierAbove, ...] | None:
        try:
            memory = _Memory.model_validate_json(self._memory.read_bytes())
        except (OSError, ValidationError):
            return None
        return memory.tiers if memory.url == self.client.url else None
