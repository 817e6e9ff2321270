"""Where a region stands: whose rounds it follows, which front it and its devices connect to."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from regional_gateway.parent import Parent, ParentMoved
from regional_gateway.place import Place, TierAbove
from trellis.errors import ConfigError, Refused
from trellis.http.client import ServiceClient
from trellis.http.server import HttpServer

COUNTRY, CONTINENT = TierAbove(region="de", front="de:8000"), TierAbove(region="eu", front="eu:8000")
SIGNED = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("regional", "server", "hint", "source"),
    [
        ({"eu", "de", "site"}, "de:8000", "site:8000", "de"),
        ({"eu", "site"}, "eu:8000", "site:8000", "de"),  # the country passes the continent's rounds on
        ({"site"}, SIGNED, "site:8000", "de"),
        ({"eu"}, "eu:8000", "eu:8000", "de"),
        (set(), SIGNED, None, "de"),
    ],
)
def test_the_nearest_region_above_that_averages_is_the_tier_above(
    operator: Any, regional: set[str], server: str, hint: str | None, source: str
) -> None:
    regions = ["eu", "de", "site"]
    tiers = {one: {"tier": "regional" if one in regional else "central"} for one in regions}
    task = operator.descriptor(regions=regions, aggregation={"regions": tiers})
    place = Place("site", front="site:8000", above=(COUNTRY, CONTINENT))
    assert (place.server(task), place.hint(task), place.source(task)) == (server, hint, source)
    assert place.aggregates(task) == ("site" in regional)
    assert place.parent == "de"


@pytest.mark.parametrize(
    ("regions", "front", "above", "asked", "told"),
    [
        (["site"], None, (), SIGNED, None),
        (["site"], "site:8000", (), SIGNED, "site:8000"),
        (["site", "de"], "site:8000", (COUNTRY,), "de:8000", "site:8000"),
        (["site", "de"], None, (COUNTRY,), "de:8000", "de:8000"),
        (["site"], None, (COUNTRY,), SIGNED, None),  # the country has no such task
        (["site", "de", "eu"], None, (TierAbove(region="de"), CONTINENT), "eu:8000", "eu:8000"),
    ],
)
def test_artefacts_come_down_by_every_front_on_the_way(  # noqa: PLR0917 - a table's columns
    operator: Any,
    regions: list[str],
    front: str | None,
    above: tuple[TierAbove, ...],
    asked: str,
    told: str | None,
) -> None:
    task = operator.descriptor(regions=regions)
    place = Place("site", front=front, above=above)
    assert (place.artefacts(task), place.cache(task)) == (asked, told)


def test_a_parent_that_the_task_does_not_name_is_passed_over(operator: Any) -> None:
    task = operator.descriptor(regions=["site"], aggregation={"tier": "regional"})
    place = Place("site", front="site:8000", above=(COUNTRY,))
    assert (place.server(task), place.source(task)) == (SIGNED, "central")
    with pytest.raises(Refused, match="--front-port PORT"):
        Place("site").require_front(task)


def test_a_task_that_leaves_out_a_region_in_between_is_refused_unless_it_is_called_off(operator: Any) -> None:
    regions = ["eu", "site"]
    place = Place("site", above=(COUNTRY, CONTINENT))
    task = operator.descriptor(regions=regions, aggregation={"regions": {"eu": {"tier": "regional"}}})
    # Like the fleets of the tiers above, which hear nothing of `de`.
    assert (place.server(task), place.hint(task), place.source(task)) == (SIGNED, None, "central")
    with pytest.raises(Refused, match="not for 'de', which stands between them: add 'de'"):
        place.require_path(task)
    place.require_path(operator.descriptor(regions=regions, revision=2, desired="canceled"))
    for named in (["site"], ["de", "site"], ["eu", "de", "site"]):
        place.require_path(operator.descriptor(regions=named))


async def test_a_task_that_leaves_out_a_region_above_with_a_broker_of_its_own_is_refused(
    world: Any, operator: Any
) -> None:
    bridged = COUNTRY.model_copy(update={"bridged": True})
    for above in ((bridged,), (COUNTRY, bridged)):
        place = Place("site", above=above)
        with pytest.raises(
            Refused, match=r"'de' has a broker of its own.*: add 'de' to its regions"
        ) as refusal:
            place.require_path(operator.descriptor(regions=["site"]))
        assert refusal.value.code == "aggregation"
        place.require_path(operator.descriptor(regions=["site"], revision=2, desired="canceled"))
    Place("site", above=(bridged,)).require_path(operator.descriptor(regions=["site", "de"]))
    world.two = True
    async with world.gateway() as running:
        assert (await running.http.get("/healthz")).json()["bridged"] is True


async def test_what_is_above_is_remembered_and_a_move_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, said = FastAPI(), {"region": "de", "front": "de:8000"}
    asked: list[str] = []

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        asked.append(said["region"])
        above = None if len(asked) == 1 else [CONTINENT.model_dump()]  # at first it does not know itself
        return {**said, "above": above, "status": "ok"}

    monkeypatch.setattr("regional_gateway.parent._FIRST_S", 0.01)
    async with (
        HttpServer(app, host="127.0.0.1", port=0, tls=None) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        client = await stack.enter_async_context(ServiceClient(server.url, tls=None))
        parent = Parent(client, region="site", memory=tmp_path / "parent.json")
        assert await parent.learn() == (COUNTRY, CONTINENT)
        assert len(asked) == 2
        said["front"] = "elsewhere:8000"
        assert await parent.learn() == (COUNTRY, CONTINENT)  # as remembered
        async with asyncio.timeout(60):
            with pytest.raises(ParentMoved):
                await parent.follow((COUNTRY, CONTINENT))
        assert (await parent.learn())[0].front == "elsewhere:8000"
        said["region"] = "site"
        with pytest.raises(ConfigError, match="stands below region 'site' itself"):
            await parent.follow((COUNTRY, CONTINENT))


async def test_a_gateway_says_what_is_above_it_only_once_it_knows(world: Any) -> None:
    async with world.gateway(parent=world.server, serves=False) as running:  # its parent does not answer
        assert (await running.http.get("/healthz")).json()["above"] is None
    async with world.gateway() as running:
        assert (await running.http.get("/healthz")).json()["above"] == []
