"""The signed envelope that a task travels in: readable in any MQTT client, and signed by an operator.

Source: DSSE 1.0.2 (github.com/secure-systems-lab/dsse, protocol.md), with two changes: `payload` is the JSON
text itself and not base64, so that a watcher can read it, and beside the signatures stands `relay`, an
unsigned object in which gateways note where the envelope has been. Nobody may act on `relay`, but for its
`front`, the Flower front that a region's gateway has devices connect to, and its `artefacts`, the front whose
cache they fetch from what they train from. A device follows them only to a server that is on its own list, so
that whoever writes them can send nobody astray.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trellis.errors import ConfigError, Fault, PayloadError, Refused
from trellis.faults import faults_of
from trellis.plain_json import unique_keys
from trellis.signing_key import SigningKey, keyid_of, public_keys

PAYLOAD_TYPE: Final = "application/vnd.trellis.task+json"
MAX_ENVELOPE_BYTES = 256 * 1024
MAX_SIGNATURES = 8
_MAX_FAULTS = 20
_FRONT, _ARTEFACTS = "front", "artefacts"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding, the bytes that are signed.

    `"DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload`, lengths in bytes and decimal.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _canonical_signature(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is not base64") from error
    if len(raw) != 64:
        raise ValueError(f"is {len(raw)} bytes long, an Ed25519 signature has 64")
    # base64 ignores the last four bits here: without this, two texts would be one signature.
    if base64.b64encode(raw).decode() != text:
        raise ValueError("is not canonical base64")
    return text


class Signature(BaseModel):
    """One signature, and the name of the key that is said to have made it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keyid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    sig: Annotated[str, AfterValidator(_canonical_signature)]


def _signed(signatures: tuple[Signature, ...]) -> tuple[Signature, ...]:
    if not signatures:
        raise ValueError("is empty; unsigned tasks are never accepted")
    return signatures


class Envelope(BaseModel):
    """A signed payload on its way; only `Keyring.verify` says that it may be believed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True)

    payload_type: Literal["application/vnd.trellis.task+json"] = Field(
        default=PAYLOAD_TYPE, alias="payloadType"
    )
    payload: str
    signatures: Annotated[
        tuple[Signature, ...], Field(max_length=MAX_SIGNATURES, strict=False), AfterValidator(_signed)
    ]
    relay: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the envelope in `data`, not verified yet.

        Raises:
            PayloadError: It is too large, not UTF-8, not JSON, nested too deeply, or not an envelope.
        """
        try:
            value = _json(_small(data))
            if isinstance(value, dict) and "task" in value and "payload" not in value:
                raise PayloadError("envelope", "is an unsigned task descriptor: `trellis task post` signs it")
            return cls.model_validate(value)
        except ValidationError as error:
            raise PayloadError("envelope", _faults(error)) from error

    def to_bytes(self) -> bytes:
        """Return the UTF-8 JSON that `parse` reads.

        Raises:
            PayloadError: It would be larger than a reader accepts.
        """
        return _small(self.model_dump_json(by_alias=True).encode())

    @property
    def front(self) -> str | None:
        """The front, `host:port`, that devices are to connect to; unsigned, as all of `relay`."""
        return self.relay.get(_FRONT)

    @property
    def artefacts(self) -> str | None:
        """The front, `host:port`, that keeps artefacts for devices; unsigned, as all of `relay`."""
        return self.relay.get(_ARTEFACTS)

    def with_hints(self, *, front: str | None = None, artefacts: str | None = None) -> Self:
        """Return the same signed payload with those fronts in its relay object, and no earlier ones."""
        hints = {_FRONT: front, _ARTEFACTS: artefacts}
        others = {key: note for key, note in self.relay.items() if key not in hints}
        said = {key: hint for key, hint in hints.items() if hint is not None}
        return self.model_copy(update={"relay": {**others, **said}})

    def with_relay(self, notes: Mapping[str, str]) -> Self:
        """Return the same signed payload with `notes` added to its unsigned relay object."""
        return self.model_copy(update={"relay": {**self.relay, **notes}})


def sign(payload: str, key: SigningKey) -> Envelope:
    """Return `payload`, the JSON text of a task, in an envelope that `key` signed.

    Raises:
        PayloadError: The text has no UTF-8 form, or is too large for an envelope.
    """
    try:
        raw = payload.encode()
    except UnicodeEncodeError as error:
        raise PayloadError("payload", f"has no UTF-8 form: {error.reason}") from error
    sig = base64.b64encode(key.private.sign(pae(PAYLOAD_TYPE, raw))).decode()
    envelope = Envelope(payload=payload, signatures=(Signature(keyid=key.keyid, sig=sig),))
    envelope.to_bytes()
    return envelope


class Keyring:
    """The operators' public keys that a machine pins; nothing else may sign."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {keyid_of(key): key for key in keys}

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Self:
        """Return the keyring of every public key in these PEM files; one file may hold several.

        Raises:
            ConfigError: A file is missing, unreadable, or holds anything but Ed25519 public keys.
        """
        keys: list[Ed25519PublicKey] = []
        faults: list[Fault] = []
        for path in paths:
            try:
                keys += public_keys(path.read_bytes())
            except (OSError, ValueError) as error:
                problem = error.strerror if isinstance(error, OSError) else None
                faults.append(
                    Fault(str(path), problem or str(error), "copy the operator's operator.pub there")
                )
        if not faults and not keys:
            faults.append(Fault("", "no file was named", "pin at least one operator's public key"))
        if faults:
            raise ConfigError("operator's public keys", faults)
        return cls(keys)

    @property
    def keyids(self) -> tuple[str, ...]:
        """The names of the pinned keys."""
        return tuple(self._keys)

    def verify(self, envelope: Envelope) -> str:
        """Return the keyid of the pinned key that signed `envelope`.

        Raises:
            Refused: `untrusted` if only strangers signed, `signature` if no signature of a pinned key holds.
        """
        message = pae(envelope.payload_type, envelope.payload.encode())
        pinned = [signature for signature in envelope.signatures if signature.keyid in self._keys]
        for signature in pinned:
            try:
                self._keys[signature.keyid].verify(base64.b64decode(signature.sig), message)
            except InvalidSignature:
                continue
            return signature.keyid
        if pinned:
            who = _names(signature.keyid for signature in pinned)
            raise Refused(
                "signature", f"the signature of {who} does not fit the payload: it was altered on its way"
            )
        who, due = _names(signature.keyid for signature in envelope.signatures), _names(self._keys)
        remedy = "if that operator may command this machine, add its public key to operator.pub"
        raise Refused("untrusted", f"signed by {who}, pinned is {due}: {remedy}")


def _names(keyids: Iterable[str]) -> str:
    return ", ".join(f"key {keyid}" for keyid in dict.fromkeys(keyids)) or "no key"


def _small(data: bytes) -> bytes:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise PayloadError("envelope", f"is {len(data)} bytes long, the limit is {MAX_ENVELOPE_BYTES}")
    return data


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise PayloadError("envelope", f"is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise PayloadError("envelope", "is nested too deeply") from error
    except ValueError as error:
        raise PayloadError("envelope", f"is not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _faults(error: ValidationError) -> list[Fault]:
    # A hostile envelope may have thousands of unknown fields, and names that no reply could encode.
    return [
        Fault(_plain(fault.field), _plain(fault.problem), fault.remedy)
        for fault in faults_of(error)[:_MAX_FAULTS]
    ]


def _plain(text: str) -> str:
    return text[:200].encode(errors="backslashreplace").decode()
