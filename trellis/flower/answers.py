"""A reply to the server as the journal keeps it: metrics as JSON, arrays as the bytes they travel in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trellis.errors import PayloadError
from trellis.faults import faults_of

Scalar: TypeAlias = int | float


@dataclass(frozen=True)
class StoredArray:
    """One array on its way: `data` is in the encoding that `stype` names."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


@dataclass(frozen=True)
class AnswerKey:
    """What was asked: the same question has the same key, whoever asks again and under whatever ID."""

    task: str
    tier: str
    kind: str
    round: int
    arrays: str
    config: str


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    metrics: Mapping[str, Scalar]
    arrays: tuple[StoredArray, ...] = ()

    def to_bytes(self) -> bytes:
        """Return a JSON line, then the arrays' bytes one after the other."""
        header = _Header(
            metrics=dict(self.metrics),
            arrays=tuple(
                _ArrayHeader(name=a.name, dtype=a.dtype, shape=a.shape, stype=a.stype, bytes=len(a.data))
                for a in self.arrays
            ),
        )
        return b"\n".join([header.model_dump_json().encode(), b"".join(a.data for a in self.arrays)])

    @classmethod
    def parse(cls, data: bytes) -> Answer:
        """Return the answer in `data`.

        Raises:
            PayloadError: It is none, or is cut short.
        """
        line, _, rest = data.partition(b"\n")
        try:
            header = _Header.model_validate_json(line)
        except ValidationError as error:
            raise PayloadError("journaled answer", faults_of(error)) from None
        due = sum(array.bytes for array in header.arrays)
        if due != len(rest):
            raise PayloadError("journaled answer", f"holds {len(rest)} bytes of arrays, {due} are due")
        arrays, start = [], 0
        for array in header.arrays:
            chunk = rest[start : start + array.bytes]
            arrays.append(StoredArray(array.name, array.dtype, array.shape, array.stype, chunk))
            start += array.bytes
        return cls(header.metrics, tuple(arrays))


def digest_of_arrays(arrays: Iterable[StoredArray]) -> str:
    """Return the SHA-256 of arrays in their order, names, dtypes and shapes included."""
    digest = hashlib.sha256()
    for array in arrays:
        head = json.dumps([array.name, array.dtype, array.shape, array.stype, len(array.data)])
        digest.update(head.encode())
        digest.update(array.data)
    return digest.hexdigest()


def digest_of_config(config: Mapping[str, object], descriptor: str) -> str:
    """Return the SHA-256 of a message's configuration and of the descriptor it is carried out under.

    A nonce is drawn anew for every message, and asks for nothing.
    """
    asked = {name: value for name, value in config.items() if name != "nonce"}
    text = json.dumps([descriptor, asked], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


class _ArrayHeader(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    bytes: int = Field(ge=0)


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, int | float]
    arrays: tuple[_ArrayHeader, ...]
