"""The inbox and the node key: what a crash leaves is found again, whole or set aside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from trellis.errors import ConfigError
from trellis.flower.inbox import Inbox, Letter
from trellis.flower.node_key import load_node_key

ROOT = Path(__file__).parents[3]


def letter(message_id: str = "ab12", node_id: int = 2**63 + 5) -> Letter:
    return Letter(message_id, 2**64 - 1, node_id, {"o1": b"\n{}\0" * 10, "o2": b"", "o3": b"end"})


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox")


def test_a_letter_reads_back_as_it_was_kept(inbox: Inbox) -> None:
    inbox.keep(letter())
    assert list(inbox.letters()) == [letter()]
    inbox.keep(letter())
    assert list(inbox.letters()) == [letter()]


def test_an_inbox_that_never_had_a_letter_is_empty(inbox: Inbox) -> None:
    assert list(inbox.letters()) == []
    inbox.clear()
    inbox.drop("ab12")


def test_letters_come_oldest_first_whatever_their_names(inbox: Inbox) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        inbox.keep(letter(name))
        os.utime(inbox.folder / f"{name}.message", ns=(age, age))
    assert [found.message_id for found in inbox.letters()] == ["c", "a", "b"]


def test_dropped_letters_are_gone(inbox: Inbox) -> None:
    for name in "abc":
        inbox.keep(letter(name))
    inbox.drop("b")
    assert sorted(found.message_id for found in inbox.letters()) == ["a", "c"]
    inbox.clear()
    assert list(inbox.letters()) == []


@pytest.mark.parametrize("cut", [0, 1, 30, -1, -3])
def test_a_torn_letter_is_set_aside_and_the_others_go_on(
    inbox: Inbox, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.keep(letter("torn"))
    inbox.keep(letter("whole"))
    path = inbox.folder / "torn.message"
    path.write_bytes(path.read_bytes()[:cut])
    assert [found.message_id for found in inbox.letters()] == ["whole"]
    assert "torn.message is damaged and was set aside as .damaged" in caplog.text
    assert (inbox.folder / "torn.damaged").exists()
    caplog.clear()
    assert [found.message_id for found in inbox.letters()] == ["whole"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "content",
    [b"\n", b"null\n", b"[]\n", b"{}\n", b"\xff\n", b'{"objects":[["a",-1],["b",1]]}\n', b'{"objects":5}\n'],
)
def test_what_is_no_letter_is_set_aside(inbox: Inbox, content: bytes) -> None:
    inbox.folder.mkdir()
    (inbox.folder / "x.message").write_bytes(content)
    assert list(inbox.letters()) == []
    assert [path.name for path in inbox.folder.iterdir()] == ["x.damaged"]


@pytest.mark.parametrize("message_id", ["", "../x", "a/b", "a.b"])
def test_a_message_id_that_would_leave_the_folder_is_refused(inbox: Inbox, message_id: str) -> None:
    with pytest.raises(ValueError, match="is no hex digest"):
        inbox.keep(letter(message_id))


def test_a_process_killed_between_writing_and_renaming_leaves_what_was_there(inbox: Inbox) -> None:
    inbox.keep(letter("before"))
    script = (
        "import os, signal; from pathlib import Path; from trellis.flower.inbox import Inbox, Letter\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Inbox(Path({str(inbox.folder)!r})).keep(Letter('torn', 1, 1, {{'o': b'x' * 100000}}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (inbox.folder / ".torn.message.partial").exists()
    assert [found.message_id for found in inbox.letters()] == ["before"]
    inbox.keep(letter("torn"))
    assert sorted(path.name for path in inbox.folder.iterdir()) == ["before.message", "torn.message"]


def test_a_node_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = load_node_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key.curve.name == "secp256r1"
    assert load_node_key(path).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_node_key_that_cannot_be_read_is_said_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.key").write_bytes(content)
    with pytest.raises(ConfigError, match=r"node\.key': cannot be read: .*; remove it for a new one"):
        load_node_key(tmp_path / "node.key")
    assert (tmp_path / "node.key").read_bytes() == content


def test_a_node_key_of_another_kind_is_said_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    with pytest.raises(ConfigError) as caught:
        load_node_key(path)
    assert str(caught.value) == f"node key '{path}': is no EC key; remove it for a new one"
