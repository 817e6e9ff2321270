"""A region's gateway at work: its brokers, its HTTP API, and the tasks between them.

HTTP  POST /v1/tasks ──▶ relay ──▶ ledger (SQLite) ──▶ announcer ──▶ region's broker
parent's broker  <parent>/tasks/…/descriptor ──▶ relay, where a gateway stands above
parent's broker  central/…/round, state ──▶ centre ──▶ announcer (and by HTTP while it is away)
region's broker  devices/… ──▶ fleet ──▶ roster ──▶ status;  and up to the parent's, where it is another
region's broker  regions below ──▶ nested ──▶ up to the parent's, where it is another
region's broker  …/log ──▶ log_carrying ──▶ up to the parent's, where it is another
ledger ──▶ tier ──▶ SuperLink and apps, for the tasks that the region averages itself
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from regional_gateway.announcer import Announcer
from regional_gateway.board import Board
from regional_gateway.brokers import Connect, are_one, wait_for
from regional_gateway.centre import Centre
from regional_gateway.fleet import Fleet
from regional_gateway.handed_down import HandedDown
from regional_gateway.ledger import Ledger
from regional_gateway.log_carrying import LogCarrier
from regional_gateway.nested import Nested
from regional_gateway.outlet import Outlet
from regional_gateway.own_log import OwnLog
from regional_gateway.parent import Parent, ParentMoved
from regional_gateway.place import Place, is_regional
from regional_gateway.presence import OwnPresence, say_farewell, watch_own
from regional_gateway.relay import Admission, Relay
from regional_gateway.settings import GatewaySettings
from regional_gateway.store import Store
from regional_gateway.sweeper import sweep
from regional_gateway.tier import RegionalTier
from regional_gateway.upward import Upward
from trellis.envelope import Keyring
from trellis.errors import Unavailable
from trellis.http.client import ServiceClient
from trellis.identifiers import CENTRAL
from trellis.mqtt import Bus, Publication
from trellis.tls import TlsFiles
from trellis.topics import Address, Kind, Topics

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """Ends the task group when the service is told to stop."""


class Gateway:
    """One gateway between `run`'s beginning and its end.

    Args:
        settings: Its settings.
        store: Its open store.
        keyring: The operators whose tasks it passes on.
        tls: Its certificate, or `None` on loopback.
        connect: Makes the bus to a broker.
        tier: Runs the region's own rounds; None where it only relays.

    Attributes:
        place: What is above the region.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        store: Store,
        *,
        keyring: Keyring,
        tls: TlsFiles | None,
        connect: Connect,
        tier: RegionalTier | None = None,
    ) -> None:
        self.settings, self.topics = settings, Topics(settings.base)
        self._store, self._keyring, self._tls, self._connect = store, keyring, tls, connect
        self.tier = tier
        self.place = Place(
            settings.region,
            front=tier.front if tier is not None else None,
            above=() if settings.parent is None else None,
        )
        self._region_connects, self._parent_connects = asyncio.Event(), asyncio.Event()
        self._announcer: Announcer | None = None
        self._centre: Centre | None = None
        self._buses: tuple[Bus, Bus] | None = None

    async def load(self) -> None:
        """Take up what the store holds."""
        self.ledger = await Ledger.load(self._store)
        ledger, place = self.ledger, self.place
        region = self.settings.region
        place.bridged = not await are_one(self.settings.broker, self.settings.parent_broker)
        self.nested = Nested(self.topics, region, ledger)
        self._upward = Upward(self.topics, self._keeps)
        self._logs = LogCarrier(self.topics, region, ledger, self.nested)
        self._own_log = OwnLog(self.topics, region, self._logs)
        self.fleet = Fleet(
            self.topics, region, self._store, lambda task: ledger.get(task) is not None, self._upward
        )
        await self.fleet.load()
        self.board = Board(self.topics, place, ledger, self.fleet.roster)
        self._relay = Relay(ledger, self, keyring=self._keyring, place=place)
        self._handed_down = HandedDown(self.topics, place, ledger, self.post)
        if self.tier is not None:
            self.tier.load(ledger, place, self.nested)

    def _keeps(self, execution: Address) -> bool:
        """Whether a region on the way up, this one at last, averages the task: nobody above asks then."""
        record = self.ledger.get(execution.task)
        if record is None:
            return False
        *below, _ = self.nested.path(execution.region) or [""]
        return any(is_regional(record.descriptor, one) for one in below) or self.board.is_own(record.task)

    def has_begun(self, task: str, revision: int) -> bool:
        """Whether a device of the region is at work on this revision."""
        return self.fleet.roster.has_begun(task, revision)

    def central_revision(self, task: str) -> int:
        """Return the revision that the server has of a task, 0 if it was not heard."""
        return self._centre.revision(task) if self._centre is not None else 0

    @property
    def connections(self) -> tuple[bool, bool]:
        """Whether the region's and the parent's broker are connected."""
        return (False, False) if self._buses is None else (self._buses[0].connected, self._buses[1].connected)

    @property
    def serving(self) -> bool:
        """Whether it is connected and takes tasks."""
        return self._announcer is not None

    async def post(self, data: bytes) -> Admission:
        """Take a signed task in, and publish it; see `Relay.admit`.

        Raises:
            Unavailable: The gateway is just starting or ending.
        """
        announcer, centre = self._announcer, self._centre
        if announcer is None or centre is None:
            raise Unavailable(f"gateway of region {self.settings.region!r} is starting or ending: try again")
        try:
            admission = await self._relay.admit(data)
        finally:
            # A refusal changes the status of the task that it concerns.
            for record in self.ledger.live():
                announcer.touch(record.task)
        if admission.changed:
            await announcer.descriptor(admission.record)
            await centre.catch_up(admission.record.task)
        return admission

    async def run(self, api_url: str, stop: asyncio.Event) -> None:
        """Serve the region until `stop` is set.

        Raises:
            ConfigError: The region's broker does not answer.
            Displaced: A younger gateway has taken over.
        """
        topic = self.topics.path(Kind.GATEWAY_STATE, region=self.settings.region)
        async with AsyncExitStack() as stack:
            parent = await self._parent(stack)
            while not stop.is_set():
                if parent is not None and not await self._learn(parent, stop):
                    return
                own = OwnPresence(topic, api_url, self.place.parent)
                try:
                    await self._run_once(own, parent, stop)
                except* ParentMoved:
                    logger.info("the tiers above are others than before: the gateway begins anew")

    async def _parent(self, stack: AsyncExitStack) -> Parent | None:
        if self.settings.parent is None:
            return None
        client = ServiceClient(self.settings.parent, tls=self._tls)
        await stack.enter_async_context(client)
        return Parent(client, region=self.settings.region, memory=self.settings.state / "parent.json")

    async def _learn(self, parent: Parent, stop: asyncio.Event) -> bool:
        """Return once it is known what is above; False if the gateway is to end."""
        learning, ending = asyncio.create_task(parent.learn()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({learning, ending}, return_when=asyncio.FIRST_COMPLETED)
            if learning.done():
                self.place.learn(learning.result())
            return learning.done()
        finally:
            learning.cancel()
            ending.cancel()

    async def _run_once(self, own: OwnPresence, above: Parent | None, stop: asyncio.Event) -> None:
        async with self._open(own) as (region, parent):
            self._buses = (region, parent)
            await wait_for(region)
            if parent is not region and not parent.connected:
                logger.info("parent's broker is not connected yet broker=%s", self.settings.parent_broker)
            try:
                async with self._own_log.speaking(region, carries=parent is not region):
                    await self._serve(own, region, parent, above, stop)
            finally:
                self._announcer = self._centre = None
                await say_farewell(own, [region] if region is parent else [region, parent])
                await self.fleet.save()

    @contextlib.asynccontextmanager
    async def _open(self, own: OwnPresence) -> AsyncIterator[tuple[Bus, Bus]]:
        settings = self.settings
        # Its own id for each process: so a second gateway of a region is seen, instead of the two
        # throwing each other off the broker for ever. Nor can it be read anywhere: whoever knows a client id
        # may take it over, and have its owner cut off.
        client_id = f"{settings.region}/gateway/{secrets.token_hex(8)}"

        def region_birth() -> Sequence[Publication]:
            # What it retains comes again now, or else the devices themselves do.
            self.fleet.roster.forget_presence()
            self._upward.forget_presence()
            self._region_connects.set()
            return [own.birth(), *self.board.for_region(), *self._standing()]

        async with contextlib.AsyncExitStack() as stack:
            bus = self._connect(settings.broker, client_id, will=own.will(), birth=region_birth)
            region = await stack.enter_async_context(bus)
            if not self.place.bridged:
                yield region, region
                return

            def parent_birth() -> Sequence[Publication]:
                self._parent_connects.set()
                self._logs.parent_connects()
                return [own.birth(), *self.board.for_parent(), *self._standing()]

            bus = self._connect(
                settings.parent_broker, f"{client_id}/up", will=own.will(), birth=parent_birth
            )
            parent = await stack.enter_async_context(bus)
            yield region, parent

    def _standing(self) -> Sequence[Publication]:
        return [] if self.tier is None else list(self.tier.standing())

    async def _serve(
        self, own: OwnPresence, region: Bus, parent: Bus, above: Parent | None, stop: asyncio.Event
    ) -> None:
        settings = self.settings
        is_two = parent is not region
        async with ServiceClient(settings.server, tls=self._tls) as client, _group() as group:
            down = Outlet(region, group)
            up = Outlet(parent, group) if is_two else None
            announcer = Announcer(self.board, self.ledger, down, up)
            centre = Centre(self.topics, self.ledger, announcer, self.place, self.tier)
            start = group.create_task
            start(announcer.run(), name="statuses")
            start(centre.copy_rounds(parent), name="copy rounds")
            start(centre.mirror_states(parent), name="mirror states")
            start(self.fleet.listen(region, announcer, up), name="devices")
            start(self.fleet.keep_saving(), name="save observations")
            start(self.nested.learn(region), name="regions below")
            start(watch_own(own, region, down), name="own state")
            start(sweep(self.ledger, announcer, keep_s=settings.keep_hours * 3600), name="sweep")
            if up is not None:
                start(self._upward.repeat(up, self._parent_connects), name="repeat to parent")
                start(self._upward.clear_lost(up, self._region_connects), name="clear the lost")
                start(self.nested.carry(region, self._upward, up), name="carry up")
                start(self._logs.carry(region, parent), name="carry logs up")
                start(watch_own(own, parent, up), name="own state at parent")
                clients = {CENTRAL: client}
                if above is not None:
                    clients[self.place.parent] = above.client
                start(centre.poll(clients, lambda: region.connected and not parent.connected), name="poll")
            self._announcer, self._centre = announcer, centre
            if self.tier is not None:
                start(self.tier.run(region, announcer), name="own rounds")
            if above is not None:
                start(above.follow(self.place.above), name="follow parent")
                start(self._handed_down.take_over(parent), name="take over")
            logger.info("gateway serves region=%s tasks=%d", settings.region, len(self.ledger.live()))
            start(_until(stop), name="stop")


@contextlib.asynccontextmanager
async def _group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose stop is no error."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except* _Stopped:
        pass


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _Stopped
