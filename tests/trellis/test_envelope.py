"""The signed envelope: what is signed, what is refused, and what the refusal says."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trellis.envelope import MAX_ENVELOPE_BYTES, PAYLOAD_TYPE, Envelope, Keyring, Signature, pae, sign
from trellis.errors import ConfigError, PayloadError, Refused
from trellis.signing_key import SigningKey

# RFC 8032, section 7.1, test 1.
RFC_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
TASK = '{"task":"mnist-lenet","instructions":"Zähle 数 – bitte"}'


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


def test_pre_authentication_encoding_is_that_of_the_dsse_specification() -> None:
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_pre_authentication_encoding_counts_bytes_not_characters() -> None:
    assert pae("t", "é".encode()) == b"DSSEv1 1 t 2 \xc3\xa9"


def test_signature_is_ed25519_over_the_pre_authentication_encoding() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(RFC_SECRET))
    envelope = sign("{}", key)
    key.public.verify(
        base64.b64decode(envelope.signatures[0].sig),
        b"DSSEv1 33 application/vnd.trellis.task+json 2 {}",
    )


def test_envelope_is_readable_json_with_the_payload_as_text(key: SigningKey) -> None:
    wire = json.loads(sign(TASK, key).with_relay({"gateway": "eu-1"}).to_bytes())
    assert wire["payloadType"] == PAYLOAD_TYPE
    assert wire["payload"] == TASK
    assert wire["relay"] == {"gateway": "eu-1"}
    assert set(wire) == {"payloadType", "payload", "signatures", "relay"}


def test_parse_is_the_inverse_of_to_bytes_and_verifies(key: SigningKey) -> None:
    envelope = sign(TASK, key).with_relay({"gateway": "eu-1"})
    parsed = Envelope.parse(envelope.to_bytes())
    assert parsed == envelope
    assert Keyring([key.public]).verify(parsed) == key.keyid


def test_relay_is_added_to_and_not_signed(key: SigningKey) -> None:
    envelope = sign(TASK, key).with_relay({"a": "1", "b": "2"}).with_relay({"b": "3"})
    assert envelope.relay == {"a": "1", "b": "3"}
    assert Keyring([key.public]).verify(envelope) == key.keyid


def test_another_payload_under_the_same_signature_is_refused_naming_the_key(key: SigningKey) -> None:
    altered = sign(TASK, key).model_copy(update={"payload": TASK.replace("lenet", "other")})
    with pytest.raises(Refused, match=key.keyid) as refused:
        Keyring([key.public]).verify(altered)
    assert refused.value.code == "signature"


def test_a_strangers_signature_is_refused_naming_both_keys(key: SigningKey) -> None:
    stranger = SigningKey.generate()
    with pytest.raises(Refused, match=stranger.keyid) as refused:
        Keyring([key.public]).verify(sign(TASK, stranger))
    assert refused.value.code == "untrusted"
    assert key.keyid in str(refused.value)


def test_a_stranger_who_borrows_a_pinned_keyid_is_refused(key: SigningKey) -> None:
    forged = sign(TASK, SigningKey.generate())
    borrowed = Signature(keyid=key.keyid, sig=forged.signatures[0].sig)
    with pytest.raises(Refused) as refused:
        Keyring([key.public]).verify(forged.model_copy(update={"signatures": (borrowed,)}))
    assert refused.value.code == "signature"


def test_one_good_signature_beside_others_is_enough(key: SigningKey) -> None:
    stranger = sign(TASK, SigningKey.generate()).signatures[0]
    broken = Signature(keyid=key.keyid, sig=stranger.sig)
    good = sign(TASK, key)
    both = good.model_copy(update={"signatures": (stranger, broken, *good.signatures)})
    assert Keyring([key.public]).verify(Envelope.parse(both.to_bytes())) == key.keyid


def test_an_empty_keyring_trusts_nobody(key: SigningKey) -> None:
    with pytest.raises(Refused, match="pinned is no key"):
        Keyring([]).verify(sign(TASK, key))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"relay":' * 20_000, "nested too deeply"),
        (b"[]", "dictionary"),
        (b'{"payload":NaN}', "NaN is no JSON value"),
        (b'{"relay":{},"relay":{}}', 'key "relay" stands twice'),
        (b'{"payload":' + b"9" * 10_000 + b"}", "not JSON"),
        (b" " * (MAX_ENVELOPE_BYTES + 1), "the limit is 262144"),
    ],
)
def test_what_is_no_envelope_is_a_payload_error(data: bytes, problem: str) -> None:
    with pytest.raises(PayloadError, match=problem):
        Envelope.parse(data)


def test_every_fault_is_named_with_its_field(key: SigningKey) -> None:
    wire = json.loads(sign(TASK, key).to_bytes())
    wire |= {"payloadType": "text/plain", "payload": 7, "relay": {"a": 1}, "extra": 1}
    wire["signatures"] = [{"keyid": "XYZ", "sig": "AA=="}]
    with pytest.raises(PayloadError) as error:
        Envelope.parse(json.dumps(wire).encode())
    fields = {fault.field for fault in error.value.faults}
    assert fields == {
        "payloadType", "payload", "relay.a", "extra", "signatures.0.keyid", "signatures.0.sig",
    }  # fmt: skip


def test_a_task_that_nobody_has_signed_is_told_in_one_line_what_signs_it() -> None:
    with pytest.raises(PayloadError) as error:
        Envelope.parse(TASK.encode())
    assert str(error.value) == "envelope: is an unsigned task descriptor: `trellis task post` signs it"


def test_no_signature_and_too_many_are_payload_errors(key: SigningKey) -> None:
    wire = json.loads(sign(TASK, key).to_bytes())
    for signatures in ([], wire["signatures"] * 9):
        with pytest.raises(PayloadError, match="signatures"):
            Envelope.parse(json.dumps({**wire, "signatures": signatures}).encode())


def test_a_lone_surrogate_is_a_payload_error_that_any_reply_can_carry(key: SigningKey) -> None:
    wire = json.loads(sign(TASK, key).to_bytes())
    for text in ('"payload":"\\ud800"', '"\\udfff":1'):
        data = json.dumps(wire).encode()[:-1] + b"," + text.encode() + b"}"
        with pytest.raises(PayloadError) as error:
            Envelope.parse(data)
        str(error.value).encode()
    with pytest.raises(PayloadError, match="UTF-8"):
        sign("\ud800", key)


def test_a_payload_too_large_to_be_read_is_not_signed(key: SigningKey) -> None:
    with pytest.raises(PayloadError, match="the limit is 262144"):
        sign("x" * MAX_ENVELOPE_BYTES, key)
    with pytest.raises(PayloadError, match="the limit is 262144"):
        sign("{}", key).with_relay({"a": "x" * MAX_ENVELOPE_BYTES}).to_bytes()


def test_keyring_loads_several_keys_from_several_files(tmp_path: Path) -> None:
    first, second, third = (SigningKey.generate() for _ in range(3))
    (tmp_path / "two.pub").write_bytes(b"# ours\n" + first.public_pem() + second.public_pem())
    (tmp_path / "one.pub").write_bytes(third.public_pem())
    keyring = Keyring.load([tmp_path / "two.pub", tmp_path / "one.pub"])
    assert keyring.keyids == (first.keyid, second.keyid, third.keyid)
    assert keyring.verify(sign(TASK, second)) == second.keyid


def test_keyring_names_every_file_that_is_no_use(tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    contents = {
        "private.pub": SigningKey.generate().to_pem(),
        "curve.pub": curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "empty.pub": b"",
        "broken.pub": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        Keyring.load([tmp_path / name for name in (*contents, "missing.pub")])
    assert [Path(fault.field).name for fault in error.value.faults] == [*contents, "missing.pub"]
    with pytest.raises(ConfigError, match="no file was named"):
        Keyring.load([])
