"""Whether this device takes part in a task: rules without effects, in the order in which they are asked.

First whether the task may be believed (`believe`), then whether the device has what it needs
(`require_means`, `require_data`). Nothing of an envelope is acted on before `believe` has returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from models.datasets import Dataset, check
from trellis.descriptor import TaskDescriptor, parse_json
from trellis.envelope import Envelope, Keyring
from trellis.errors import (
    ArtefactError,
    DataError,
    DescriptorError,
    DiskFailed,
    InvalidInput,
    MissingExtra,
    PayloadError,
    Refused,
    TrellisError,
)
from trellis.nearest import did_you_mean
from trellis.payloads import Reason


@dataclass(frozen=True)
class Seen:
    """The highest revision of a task that the journal holds, and the digest of its work."""

    revision: int
    digest: str


@dataclass(frozen=True)
class Means:
    """What this device has to take part with.

    Attributes:
        servers: Its own list of Flower servers, `host:port`.
        tls: Whether it speaks TLS to them.
        models: The models that it knows; None: it needs to know none, as it trains from artefacts.
        backend: The backend it was started with.
        backends: The backends that are installed.
    """

    servers: tuple[str, ...]
    tls: bool
    models: tuple[str, ...] | None
    backend: str
    backends: tuple[str, ...]


@dataclass(frozen=True)
class Believed:
    """A task that a pinned operator signed, for this region, now.

    Attributes:
        digest: Of its work.
        front: The front that a gateway hints at; nobody signed it.
        artefacts: The front whose cache of artefacts it hints at; likewise.
    """

    descriptor: TaskDescriptor
    digest: str
    keyid: str
    front: str | None = None
    artefacts: str | None = None


def believe(
    envelope: Envelope, *, task: str, region: str, keyring: Keyring, seen: Seen | None, now: datetime
) -> Believed:
    """Return what the envelope says, if this device may act on it.

    Raises:
        Refused: `signature`, `untrusted`, `conflict`, `region`, `revision`, `clock` or `expired`.
        DescriptorError: A pinned operator signed something that is no descriptor.
    """
    keyid = keyring.verify(envelope)
    descriptor = parse_json(envelope.payload)
    if descriptor.task != task:
        raise Refused(
            "conflict",
            f"the topic names task {task!r}, the signed descriptor in it is of task {descriptor.task!r}",
        )
    if region not in descriptor.regions:
        named = ", ".join(descriptor.regions[:10])
        raise Refused("region", f"task {task!r} is for {named}; this device is in region {region!r}")
    digest = descriptor.digest()
    # Journals of earlier releases hold the digest of the whole signed text.
    text = hashlib.sha256(envelope.payload.encode()).hexdigest()
    _require_new(descriptor, {digest, text}, seen)
    if descriptor.desired == "run":
        # A cancellation is obeyed at any time: it can only end work.
        _require_window(descriptor, now)
    return Believed(descriptor, digest, keyid, envelope.front, envelope.artefacts)


def server_of(task: Believed, region: str) -> str:
    """Return the address that a device of `region` connects to.

    It is the signed server's, unless the task averages in regions: then a gateway's hint leads to the tier
    that the device belongs to.

    Raises:
        Refused: `server`: the device's own region averages, and no gateway says where.
    """
    descriptor = task.descriptor
    if all(descriptor.tier_of(one) == "central" for one in descriptor.regions):
        return descriptor.server.address
    if task.front is None and descriptor.tier_of(region) == "regional":
        raise Refused(
            "server",
            f"task {descriptor.task!r} averages updates in region {region!r}, and its gateway does not say "
            "where: start the gateway with --front-port, and post the task to it again",
        )
    return task.front or descriptor.server.address


def artefact_fronts(task: Believed, server: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return whom a device asks for an artefact: a gateway's cache, if it is on its list, then its server."""
    hint = task.artefacts
    listed = hint is not None and hint.lower() in {one.lower() for one in known}
    return (hint, server) if hint is not None and listed and hint != server else (server,)


def require_server(task: Believed, region: str, means: Means) -> None:
    """Return if the device may connect to the server that it is to connect to.

    Raises:
        Refused: `server`.
    """
    address = server_of(task, region)
    if address.lower() not in {known.lower() for known in means.servers}:
        named = (
            "names server" if address == task.descriptor.server.address else "comes with the hint at front"
        )
        raise Refused(
            "server",
            f"task {task.descriptor.task!r} {named} {address}, this device's list is "
            f"{', '.join(means.servers)}: if it is right, start the device with --server for it",
        )


def require_means(descriptor: TaskDescriptor, means: Means) -> None:
    """Return if the device speaks as the task's server does, knows its model and has its backend.

    Raises:
        Refused: `server`, `model` or `extra`.
    """
    server = descriptor.server
    if server.tls != means.tls:
        ours = "speaks TLS only" if means.tls else "was started with --insecure"
        raise Refused(
            "server",
            f"task {descriptor.task!r} says server.tls: {str(server.tls).lower()}, this device {ours}: "
            f"set server.tls to {str(means.tls).lower()}",
        )
    name = descriptor.model.name
    if means.models is not None and name not in means.models:
        hint = did_you_mean(name, means.models, before="; ")
        raise Refused("model", f"model {name!r} is not known here, known are {', '.join(means.models)}{hint}")
    if means.backend not in means.backends:
        installed = ", ".join(means.backends) or "none"
        raise Refused(
            "extra",
            f"backend {means.backend!r} is not installed here, installed: {installed}; "
            f"pip install 'trellis-fl[{means.backend}]'",
        )


def require_data(descriptor: TaskDescriptor, dataset: Dataset) -> None:
    """Return if the device's own data are what the task demands.

    Raises:
        DataError: With every fault, and the task's instructions.
    """
    demands = descriptor.data
    try:
        check(
            dataset,
            name=demands.name,
            shape=demands.shape,
            classes=demands.classes,
            min_samples=demands.min_samples,
        )
    except DataError as error:
        if not demands.instructions:
            raise
        what = f"{error.what} (the task's instructions: {demands.instructions[:300]})"
        raise DataError(what, error.faults) from None


def reason_of(error: TrellisError) -> Reason:
    """Return why a task was refused, with its code for machines."""
    match error:
        case Refused():
            code = error.code
        case DataError():
            code = "data"
        case ArtefactError():
            code = "artefact"
        case DescriptorError():
            code = "descriptor"
        case PayloadError():
            code = "envelope"
        case MissingExtra():
            code = "extra"
        case DiskFailed():
            code = "disk"
        case InvalidInput():
            code = "input"
        case _:
            code = "failed"
    return Reason(code=code, message=str(error))


def _require_new(descriptor: TaskDescriptor, digests: set[str], seen: Seen | None) -> None:
    if seen is None or descriptor.revision > seen.revision:
        return
    if descriptor.revision < seen.revision:
        raise Refused(
            "revision",
            f"revision {descriptor.revision} of task {descriptor.task!r} came, this device has seen "
            f"{seen.revision}: an old descriptor was replayed, or the task needs a higher revision",
        )
    if seen.digest not in digests:
        raise Refused(
            "revision",
            f"a second, different descriptor calls itself revision {descriptor.revision} of task "
            f"{descriptor.task!r}: give it revision {descriptor.revision + 1}",
        )


def _require_window(descriptor: TaskDescriptor, now: datetime) -> None:
    if now < descriptor.issued_at:
        raise Refused(
            "clock",
            f"this device's clock says {now.isoformat(timespec='seconds')}, before the task was issued "
            f"({descriptor.issued_at.isoformat()}): set the clock; the device looks again by itself",
        )
    if now >= descriptor.expires_at:
        raise Refused(
            "expired",
            f"task {descriptor.task!r} expired {descriptor.expires_at.isoformat()}, and it is "
            f"{now.isoformat(timespec='seconds')} by this device's clock: post a new revision, or set the "
            "clock; the device looks again by itself",
        )
