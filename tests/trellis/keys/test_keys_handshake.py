"""Real TLS over loopback between issued identities, each side showing its own."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity
from trellis.keys.principals import BROKER, SERVER, device, gateway
from trellis.keys.renewal import renew
from trellis.tls import TlsFiles, client_context

LIMIT_S = 30
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
Reissue = Callable[[Path, dt.datetime, dt.datetime], None]


def files(folder: Path) -> TlsFiles:
    """The files alone: what `Identity.load` refuses, the other side must refuse too."""
    return TlsFiles(ca=folder / "ca.crt", cert=folder / "tls.crt", key=folder / "tls.key")


def server_context(own: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(own.ca)
    context.load_cert_chain(own.cert, own.key)
    return context


@contextmanager
def serving(folder: Path, seen: list[str]) -> Iterator[int]:
    """Accept one connection, note whom its certificate names or why it failed, and greet it."""
    context = server_context(files(folder))

    def accept(listener: socket.socket) -> None:
        try:
            raw, _ = listener.accept()
            raw.settimeout(LIMIT_S)
            with raw, context.wrap_socket(raw, server_side=True) as connection:
                peer = connection.getpeercert() or {}
                subject = dict(pair for names in peer["subject"] for pair in names)  # type: ignore[misc, union-attr]
                seen.append(str(subject["commonName"]))
                connection.sendall(b"hello")
        except OSError as error:
            seen.append(f"refused: {error}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join(2 * LIMIT_S)
        assert not thread.is_alive()


def greeting(context: ssl.SSLContext, port: int, host: str = "localhost") -> bytes:
    raw = socket.create_connection(("127.0.0.1", port), LIMIT_S)
    with raw, context.wrap_socket(raw, server_hostname=host) as connection:
        # With TLS 1.3 a client learns that it was refused when it first reads.
        return connection.recv(5)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "10.0.0.5", "fl.example.org"])
def test_device_and_server_know_each_other_under_every_host(root: Path, host: str) -> None:
    server = issue(root, SERVER, ["10.0.0.5", "fl.example.org"])
    own = Identity.load(issue(root, device("eu-1", "cam-7")))
    seen: list[str] = []
    with serving(server, seen) as port:
        assert greeting(client_context(own.tls), port, host) == b"hello"
    assert seen == ["eu-1/devices/cam-7"]


def test_gateway_serves_devices_and_is_the_servers_client(root: Path) -> None:
    own = issue(root, gateway("eu-1"))
    seen: list[str] = []
    with serving(own, seen) as port:
        assert greeting(client_context(files(issue(root, device("eu-1", "cam-7")))), port) == b"hello"
    with serving(issue(root, SERVER), seen) as port:
        assert greeting(client_context(files(own)), port) == b"hello"
    assert seen == ["eu-1/devices/cam-7", "eu-1/gateway"]


def test_a_server_under_a_host_it_does_not_name_is_refused(root: Path) -> None:
    seen: list[str] = []
    with serving(issue(root, SERVER), seen) as port, pytest.raises(ssl.SSLCertVerificationError) as error:
        greeting(client_context(files(root / "operator")), port, "10.0.0.5")
    assert "IP address mismatch" in str(error.value)


def test_a_device_cannot_pass_for_a_server(root: Path) -> None:
    seen: list[str] = []
    folder, refused = issue(root, device("eu-1", "cam-7"), ["localhost"]), ssl.SSLCertVerificationError
    with serving(folder, seen) as port, pytest.raises(refused, match="certificate purpose"):
        greeting(client_context(files(root / "operator")), port)


def test_a_broker_certificate_is_no_clients(root: Path) -> None:
    seen: list[str] = []
    with serving(issue(root, SERVER), seen) as port, pytest.raises(ssl.SSLError):
        greeting(client_context(files(issue(root, BROKER))), port)
    assert "certificate purpose" in seen[0]


def test_another_fleets_ca_is_refused_by_both_sides(root: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    server, stranger = issue(root, SERVER), issue(tmp_path / "other", device("eu-1", "cam-7"))
    seen: list[str] = []
    with serving(server, seen) as port, pytest.raises(ssl.SSLCertVerificationError):
        greeting(client_context(files(stranger)), port)
    # The stranger now trusts this fleet's CA, and is still not of it.
    (stranger / "ca.crt").write_bytes((server / "ca.crt").read_bytes())
    with serving(server, seen) as port, pytest.raises(ssl.SSLError):
        greeting(client_context(files(stranger)), port)
    assert [line.split(":")[0] for line in seen] == ["refused", "refused"]


def test_an_expired_certificate_is_refused_by_both_sides(root: Path, reissue: Reissue) -> None:
    server, own = issue(root, SERVER), issue(root, device("eu-1", "cam-7"))
    seen: list[str] = []
    reissue(own, NOW - 3 * DAY, NOW + DAY)
    with serving(server, seen) as port:
        assert greeting(client_context(files(own)), port) == b"hello"
    reissue(own, NOW - 3 * DAY, NOW - DAY)
    with serving(server, seen) as port, pytest.raises(ssl.SSLError):
        greeting(client_context(files(own)), port)
    assert "certificate has expired" in seen[1]
    reissue(server, NOW - 3 * DAY, NOW - DAY)
    with serving(server, seen) as port, pytest.raises(ssl.SSLError, match="certificate has expired"):
        greeting(client_context(files(own)), port)


def test_who_has_the_renewed_ca_and_who_has_not_yet_know_each_other(root: Path) -> None:
    server, own = issue(root, SERVER), issue(root, device("eu-1", "cam-7"))
    old = shutil.copytree(server, root.parent / "server")
    renew(root, ["ca", "eu-1/devices/cam-7"])
    assert (old / "ca.crt").read_bytes() != (own / "ca.crt").read_bytes()
    later = shutil.copytree(own, root.parent / "device")
    (later / "ca.crt").write_bytes((old / "ca.crt").read_bytes())
    seen: list[str] = []
    for serves in (old, server):
        for calls in (own, later):
            with serving(serves, seen) as port:
                assert greeting(client_context(files(calls)), port) == b"hello"
    assert seen == ["eu-1/devices/cam-7"] * 4


def test_a_client_without_a_certificate_is_refused(root: Path) -> None:
    seen: list[str] = []
    context = ssl.create_default_context(cafile=root / "ca" / "ca.crt")
    with serving(issue(root, SERVER), seen) as port, pytest.raises(ssl.SSLError):
        greeting(context, port)
    assert "did not return a certificate" in seen[0]
