"""Small messages as one object: a message's records in a single `ConfigRecord`.

Flower sends every object of a message as one HTTP request. A train message is six of them when its tensors
are packed (message, records, tensors, array, chunk, config); as a parcel it is three (message, records,
parcel). A message whose tensors are larger than `LARGEST_BYTES` stays as it is: Flower sends those in chunks,
so that a connection that is cut costs one chunk.

    {"arrays": packed, "config": …}  ⇄  {"parcel": {"head": JSON, "arrays/arrays": bytes}}

Between processes of one machine, where Flower's own encoding would not be public, the same head travels as a
line of JSON with the tensors behind it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from trellis.errors import PayloadError
from trellis.tensors import KEY, STYPE, is_packed, packed_bytes

logger = logging.getLogger(__name__)

PARCEL = "parcel"
LARGEST_BYTES = 4 * 1024**2
_HEAD = "head"
_Scalar = (str, int, float)


def wrap(content: RecordDict) -> RecordDict:
    """Return `content` as a parcel if that saves requests, else as it is."""
    if len(content) < 2 or not all(_fits(record) for record in content.values()):
        return content
    arrays = {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}
    if sum(packed_bytes(record) for record in arrays.values()) > LARGEST_BYTES:
        return content
    parcel = ConfigRecord({_HEAD: _head(content)})
    for key, record in arrays.items():
        parcel[f"arrays/{key}"] = record[KEY].data
    return RecordDict({PARCEL: parcel})


def is_parcel(content: RecordDict) -> bool:
    """Whether `content` is what `wrap` makes of several records."""
    return list(content) == [PARCEL] and isinstance(content[PARCEL], ConfigRecord)


def unwrap(content: RecordDict) -> RecordDict:
    """Return the records of a parcel; what is no parcel stays as it is.

    Raises:
        PayloadError: It is a parcel, and malformed.
    """
    if not is_parcel(content):
        return content
    parcel = content.config_records[PARCEL]
    try:
        head = json.loads(str(parcel[_HEAD]))
        return RecordDict({str(key): _record(str(key), kind, plain, parcel) for key, kind, plain in head})
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PayloadError("Flower message", f"is a malformed parcel: {error}") from None


def wrapped(messages: Iterable[Message]) -> list[Message]:
    """Return `messages` as parcels; those that share a content go on sharing it."""
    # The originals are kept beside: an id means nothing once its object is gone.
    parcels: dict[int, tuple[RecordDict, RecordDict]] = {}
    ready = list(messages)
    for message in ready:
        content = message.content
        _, parcel = parcels.get(id(content)) or parcels.setdefault(id(content), (content, wrap(content)))
        message.content = parcel
    return ready


def to_bytes(content: RecordDict) -> bytes:
    """Return `content` for another process of this machine, whatever its size.

    Raises:
        PayloadError: It holds tensors that are not packed, or bytes in a config.
    """
    if misfits := [key for key, record in content.items() if not _fits(record)]:
        raise PayloadError("Flower message", f"cannot be handed on: {', '.join(misfits)} cannot be encoded")
    blobs = {f"arrays/{key}": record[KEY].data for key, record in content.array_records.items()}
    line = json.dumps({_HEAD: _head(content), "sizes": {name: len(blob) for name, blob in blobs.items()}})
    return b"".join([line.encode(), b"\n", *blobs.values()])


def from_bytes(data: bytes) -> RecordDict:
    """Return the content that `to_bytes` made `data` of.

    Raises:
        PayloadError: It is malformed.
    """
    line, _, rest = data.partition(b"\n")
    try:
        said = json.loads(line)
        parcel = ConfigRecord({_HEAD: said[_HEAD]})
        start = 0
        for name, size in said["sizes"].items():
            parcel[name] = rest[start : start + size]
            start += size
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PayloadError("Flower message", f"is malformed: {error}") from None
    if start != len(rest):
        raise PayloadError("Flower message", f"holds {len(rest)} bytes of tensors, {start} are due")
    return unwrap(RecordDict({PARCEL: parcel}))


def _head(content: RecordDict) -> str:
    return json.dumps([[key, _kind(record), _plain(record)] for key, record in content.items()])


def _fits(record: object) -> bool:
    if isinstance(record, ArrayRecord):
        return is_packed(record)
    if not isinstance(record, ConfigRecord | MetricRecord):
        return False
    values = [v for value in record.values() for v in (value if isinstance(value, list) else [value])]
    return all(isinstance(value, _Scalar) for value in values)  # bytes are no JSON


def _kind(record: object) -> str:
    if isinstance(record, ArrayRecord):
        return "arrays"
    return "config" if isinstance(record, ConfigRecord) else "metrics"


def _plain(record: object) -> dict[str, Any] | None:
    return dict(record) if isinstance(record, ConfigRecord | MetricRecord) else None


def _record(
    key: str, kind: object, plain: Any, parcel: ConfigRecord
) -> ArrayRecord | ConfigRecord | MetricRecord:
    match kind:
        case "arrays":
            data = parcel[f"arrays/{key}"]
            if not isinstance(data, bytes):
                raise TypeError(f"its tensors {key!r} are no bytes")
            return ArrayRecord({KEY: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})
        case "config":
            return ConfigRecord(plain)
        case "metrics":
            return MetricRecord(plain)
        case _:
            raise ValueError(f"it holds a record of kind {kind!r}")
