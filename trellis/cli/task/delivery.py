"""Carries signed tasks to the server and the gateways; nothing here prints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trellis import descriptor
from trellis.cli.options import gateway_client, server_client
from trellis.descriptor import MAX_DESCRIPTOR_BYTES, TaskDescriptor
from trellis.descriptor_rules import Rule
from trellis.envelope import MAX_ENVELOPE_BYTES, Envelope, sign
from trellis.errors import ConfigError, TrellisError, Unavailable
from trellis.keys.identity import load_signing_key
from trellis.tier.strategies import STRATEGY_RULES

GATEWAYS_S = 15.0
_POLL_S = 0.5


@dataclass(frozen=True)
class SignedTask:
    """A descriptor, and the envelope that proves who wants it."""

    descriptor: TaskDescriptor
    envelope: Envelope


@dataclass(frozen=True)
class Delivered:
    """Who took a task, and what it answered."""

    to: str
    url: str
    answer: Mapping[str, Any]


def signed(task: TaskDescriptor, keys: Path) -> SignedTask:
    """Return `task` signed with the operator's key."""
    return SignedTask(task, sign(task.to_json(), load_signing_key(keys)))


def read_signed(path: Path, keys: Path) -> SignedTask:
    """Return the task in `path`: a signed envelope as it is, a descriptor signed with the operator's key."""
    task, envelope = read(path, rules=STRATEGY_RULES)
    return signed(task, keys) if envelope is None else SignedTask(task, envelope)


def read(path: Path, *, rules: Iterable[Rule] = ()) -> tuple[TaskDescriptor, Envelope | None]:
    """Return the descriptor in `path`, and the envelope around it if it is signed; nobody's key is asked for.

    Raises:
        InvalidInput: It is neither; every fault is named with its field, and those that `rules` find.
    """
    envelope = _envelope_in(path)
    if envelope is None:
        return descriptor.load(path, rules=rules), None
    return descriptor.parse_json(envelope.payload, rules=rules, what=f"task file {str(path)!r}"), envelope


async def deliver(task: SignedTask, server: str, gateways: Mapping[str, str], keys: Path) -> list[Delivered]:
    """Post a task to the server, and then to the gateway of each of its regions.

    Args:
        gateways: Regions' gateways (region → URL); for the others the server is asked.

    Raises:
        TrellisError: The server does not take it, or sees no gateway of a region: no gateway got it then; or
            a gateway does not take it.
    """
    missing = [region for region in task.descriptor.regions if region not in gateways]
    at_server = await post_to_server(task, server, keys)
    found = await discover(server, missing, keys, wait_s=GATEWAYS_S) if missing else {}
    return [at_server, *await post_to_gateways(task, {**gateways, **found}, keys)]


async def post_to_server(task: SignedTask, url: str, keys: Path) -> Delivered:
    """Post a task to the central server."""
    async with server_client(url, keys) as client:
        answer = await client.post("/v1/tasks", task.envelope.to_bytes())
    return Delivered("server", url, answer)


async def cancel_at_server(task: SignedTask, url: str, keys: Path) -> Delivered:
    """Post a canceling revision to the central server."""
    async with server_client(url, keys) as client:
        answer = await client.post(f"/v1/tasks/{task.descriptor.task}/cancel", task.envelope.to_bytes())
    return Delivered("server", url, answer)


async def post_to_gateways(task: SignedTask, gateways: Mapping[str, str], keys: Path) -> list[Delivered]:
    """Post a task to every gateway (name → URL), each of them even if another refuses.

    Raises:
        TrellisError: The first gateway's error; where several failed, one that names them all.
    """
    results = await asyncio.gather(
        *(_post_to_gateway(task, name, url, keys) for name, url in gateways.items()), return_exceptions=True
    )
    errors: list[TrellisError] = []
    for result in results:
        if isinstance(result, TrellisError):
            errors.append(result)
        elif isinstance(result, BaseException):
            raise result
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} gateways did not take the task", errors)
    return [result for result in results if isinstance(result, Delivered)]


async def _post_to_gateway(task: SignedTask, name: str, url: str, keys: Path) -> Delivered:
    async with gateway_client(url, keys) as client:
        return Delivered(name, url, await client.post("/v1/tasks", task.envelope.to_bytes()))


async def known_gateways(server: str, keys: Path) -> dict[str, str]:
    """Return the URL of each region's gateway that the server sees online, on MQTT."""
    async with server_client(server, keys) as client:
        listed = (await client.get("/v1/gateways")).get("gateways", [])
    return {one["region"]: one["api"] for one in listed if one.get("state") == "online" and one.get("api")}


async def discover(server: str, regions: Iterable[str], keys: Path, *, wait_s: float) -> dict[str, str]:
    """Return the URL of every one of these regions' gateways, as the server sees them on MQTT.

    Raises:
        Unavailable: A region's gateway has not shown up in time; it is named.
    """
    due = list(regions)
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        online = await known_gateways(server, keys)
        known = {region: online[region] for region in due if region in online}
        if len(known) == len(due):
            return known
        if asyncio.get_running_loop().time() >= deadline:
            raise no_gateway(server, [region for region in due if region not in known])
        await asyncio.sleep(_POLL_S)


def no_gateway(server: str, missing: list[str]) -> Unavailable:
    """Return the error that these regions have no gateway that `server` sees."""
    return Unavailable(
        f"{server} knows no gateway that is online in {', '.join(missing)}: start it with "
        f"`trellis gateway --region {missing[0]}`, or name it with --gateway; then run this again"
    )


def gateways_by_region(pairs: Iterable[str], regions: Iterable[str]) -> dict[str, str]:
    """Return the URLs given as `REGION=URL`.

    Raises:
        ConfigError: One is no such pair, or names a region that the task does not.
    """
    due = list(regions)
    found: dict[str, str] = {}
    for pair in pairs:
        region, equals, url = pair.partition("=")
        if not equals or "://" in region:
            raise ConfigError(f"--gateway {pair!r}", "must be REGION=URL, as in eu-1=http://127.0.0.1:8081")
        if region not in due:
            raise ConfigError(f"--gateway {pair!r}", f"is none of the task's regions: {', '.join(due)}")
        found[region] = url
    return found


async def held_at_server(task: str, url: str, keys: Path) -> TaskDescriptor:
    """Return the newest descriptor that the server has of a task."""
    async with server_client(url, keys) as client:
        return _descriptor_in(await client.get(f"/v1/tasks/{task}"))


async def lack_at_server(task: TaskDescriptor, url: str, keys: Path) -> str | None:
    """Return what keeps a task that gateways have from its rounds: the server lacks it, or is not there."""
    try:
        held = await held_at_server(task.task, url, keys)
    except TrellisError as error:
        return str(error)
    if held.revision >= task.revision:
        return None
    return f"{url} has revision {held.revision} of task {task.task!r}, and not {task.revision}"


async def held_at_gateways(
    task: str, gateways: Mapping[str, str], keys: Path, *, required: bool
) -> list[TaskDescriptor]:
    """Return the newest descriptor of a task that each of these gateways (name → URL) has.

    One that does not answer, or does not know the task, is passed over: posting there tells why.

    Raises:
        TrellisError: None has one, and one is `required`: the first gateway's error.
    """

    async def ask(url: str) -> TaskDescriptor:
        async with gateway_client(url, keys) as client:
            return _descriptor_in(await client.get(f"/v1/tasks/{task}"))

    results = await asyncio.gather(*map(ask, gateways.values()), return_exceptions=True)
    found = [result for result in results if isinstance(result, TaskDescriptor)]
    for result in results:
        if isinstance(result, BaseException) and (
            not isinstance(result, TrellisError) or (required and not found)
        ):
            raise result
    return found


def called_off(held: Sequence[TaskDescriptor]) -> TaskDescriptor:
    """Return what calls a task off wherever it is: one revision above the newest that anybody holds.

    Where that one has called it off already it is the same once more, for whoever has not heard of it.
    """
    revision = max(one.revision for one in held)
    newest = [one for one in held if one.revision == revision]
    return newest[0] if all(one.desired == "canceled" for one in newest) else newest[0].canceled()


def _descriptor_in(view: Mapping[str, Any]) -> TaskDescriptor:
    return descriptor.parse_mapping(view.get("descriptor"))


def _envelope_in(path: Path) -> Envelope | None:
    try:
        raw = path.read_bytes()
    except OSError:
        return None  # `descriptor.load` says why
    if len(raw) > max(MAX_DESCRIPTOR_BYTES, MAX_ENVELOPE_BYTES):
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return Envelope.parse(raw) if isinstance(value, dict) and "payloadType" in value else None
