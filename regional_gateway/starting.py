"""Puts a gateway together from its settings, and runs it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from regional_gateway import api
from regional_gateway.brokers import mqtt
from regional_gateway.service import Gateway
from regional_gateway.settings import GatewaySettings
from regional_gateway.store import Store
from regional_gateway.tier import RegionalTier
from trellis.envelope import Keyring
from trellis.http.server import HttpServer, advertised
from trellis.keys.expiry import reminding
from trellis.keys.identity import Identity, find_identity, load_keyring
from trellis.tier.hosting import superlinks
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run a gateway with real brokers and its HTTP API until `stop` is set."""
    tls, keyring = _credentials(settings)
    async with (
        reminding(tls),
        Store(settings.state / "gateway.sqlite") as store,
        AsyncExitStack() as stack,
    ):
        tier = None
        if settings.front_port is not None:
            opens = superlinks(settings.state / "superlink", "regional_gateway.region_app.app")
            tier = await stack.enter_async_context(RegionalTier(settings, tls, opens))
        gateway = Gateway(settings, store, keyring=keyring, tls=tls, connect=mqtt(tls), tier=tier)
        await gateway.load()
        app = api.create(gateway)
        async with HttpServer(app, host=settings.host, port=settings.api_port, tls=tls) as server:
            url = advertised(server.url)
            logger.info("gateway listens api=%s", url)
            await gateway.run(url, stop)


def _credentials(settings: GatewaySettings) -> tuple[TlsFiles | None, Keyring]:
    if settings.insecure:
        return None, load_keyring(settings.keys)
    identity = Identity.load(find_identity(settings.keys, "gateways", settings.region))
    identity.require(f"{settings.region}/gateway")
    return identity.tls, identity.keyring
