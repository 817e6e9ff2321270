"""Whatever bytes arrive, only our errors leave the envelope, and no altered task passes."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trellis.envelope import Envelope, Keyring, Signature, sign
from trellis.errors import PayloadError, Refused
from trellis.signing_key import SigningKey

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RING = Keyring([KEY.public])
TASK = '{"task": "mnist-lenet", "instructions": "Zähle 数 \\n bitte"}'
SIGNED = sign(TASK, KEY).with_relay({"gateway": "eu-1"})
WIRE = SIGNED.to_bytes()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9) | st.sampled_from(["keyid", "sig"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ["payloadType", "payload", "signatures", "relay"]
ENVELOPES = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON) | {"else": JSON})


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def verified(data: bytes) -> Envelope | None:
    """The envelope if it parses and verifies; anything but our two errors fails the test."""
    try:
        envelope = Envelope.parse(data)
        RING.verify(envelope)
    except (PayloadError, Refused) as error:
        str(error).encode()
        return None
    return envelope


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    assert verified(data) is None


# The first text drawn builds hypothesis's Unicode tables, which takes a second or two.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ENVELOPES)
def test_arbitrary_json_in_an_envelopes_fields_is_refused(fields: dict[str, object]) -> None:
    assert verified(json.dumps(json.loads(WIRE) | fields | {"payload": "x"}).encode()) is None
    assert verified(json.dumps(fields).encode()) is None


@given(st.integers(0, len(WIRE) * 8 - 1))
def test_a_flipped_bit_on_the_wire_never_brings_another_task_through(bit: int) -> None:
    envelope = verified(flipped(WIRE, bit))
    assert envelope is None or (envelope.payload, envelope.signatures) == (TASK, SIGNED.signatures)


@given(st.integers(0, len(TASK.encode()) * 8 - 1))
def test_any_flipped_bit_in_the_payload_is_refused(bit: int) -> None:
    try:
        payload = flipped(TASK.encode(), bit).decode()
    except UnicodeDecodeError:
        assume(False)
    with pytest.raises(Refused) as refused:
        RING.verify(SIGNED.model_copy(update={"payload": payload}))
    assert refused.value.code == "signature"


@given(st.integers(0, 511))
def test_any_flipped_bit_in_the_signature_is_refused(bit: int) -> None:
    sig = base64.b64encode(flipped(base64.b64decode(SIGNED.signatures[0].sig), bit)).decode()
    with pytest.raises(Refused) as refused:
        RING.verify(SIGNED.model_copy(update={"signatures": (Signature(keyid=KEY.keyid, sig=sig),)}))
    assert refused.value.code == "signature"


@given(st.integers(0, 88 * 8 - 1))
def test_any_flipped_bit_in_the_signatures_text_is_refused(bit: int) -> None:
    # 64 bytes leave four bits of the last base64 digit unused: they must be zero, and are looked at.
    sig = SIGNED.signatures[0].sig.encode()
    assert len(sig) == 88
    data = WIRE.replace(sig, flipped(sig, bit))
    assert data != WIRE
    assert verified(data) is None


@given(st.text().filter(lambda text: text != TASK))
def test_any_text_survives_the_wire_and_its_own_signature_only(text: str) -> None:
    envelope = Envelope.parse(sign(text, KEY).to_bytes())
    assert envelope.payload == text
    assert RING.verify(envelope) == KEY.keyid
    with pytest.raises(Refused):
        RING.verify(envelope.model_copy(update={"signatures": SIGNED.signatures}))
