"""What the contract tests of a link share: one SuperLink behind the front, with an app on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from flower_parts import Federation, scripted_app

from trellis.flower.front import FleetFront
from trellis.flower.superlink import SuperLink
from trellis.http.server import HttpServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def federation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    async with (
        SuperLink(folder=folder / "superlink") as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        scripted_app(superlink, folder) as app,
    ):
        yield Federation(superlink, f"127.0.0.1:{front.port}", app)
