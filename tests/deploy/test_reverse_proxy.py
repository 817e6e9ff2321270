"""The shipped nginx lines, under a real nginx: the Fleet API and artefacts pass, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trellis.artefacts.offer import NotYet
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import SERVER, device
from trellis.loopback import free_ports

LIMIT_S = 60.0
SHIPPED = Path(__file__).parents[2] / "deploy" / "reverse-proxy" / "trellis.conf"
CAM, OTHER = device("eu-1", "cam-7"), device("eu-1", "cam-8")

SLOW = f"/v1/artefacts/{'5' * 64}"
"""What the stand-in sends only once the test lets it."""

# Paths as they stand on the wire. Whatever they mean after decoding, none is a request of a device.
FORBIDDEN = (
    "/",
    "/v1/control/start-run",
    "/v1/runtime/pull",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/../control/start-run",
    "/v1/control/../fleet/pull-messages",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..%2fcontrol",
    "/v1/fleet//pull-messages",
    "/v1/fleet/pull%2dmessages",
    "/v1/fleet/pull-messages?x=1",
    "/v1/fleet/pull-messages/more",
    "/V1/fleet/pull-messages",
    "/v1/tasks/digits/artefacts/../../fleet",
    "/v1/artefacts/..%2f..%2ftasks",
    "/v1/artefacts/0123?x=1",
    "/v1/artefacts/%30123",
    "/v1/tasks/digits",
)


@dataclass(frozen=True)
class Slow:
    """How often `SLOW` was asked for, and whether it may be sent."""

    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    released: threading.Event = field(default_factory=threading.Event)


class Front(BaseHTTPRequestHandler):
    """Stands for the front of `trellis server`, and answers with the path it was asked for."""

    protocol_version = "HTTP/1.1"
    slow: Slow

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = f"{self.path} {len(body)}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        if self.path == SLOW:
            self.slow.asked.release()
            assert self.slow.released.wait(LIMIT_S)
        self.send_response(200)
        self.send_header("content-length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def context(folder: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    made = ssl.create_default_context(purpose, cafile=folder / "ca.crt")
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return made


@contextlib.contextmanager
def front(folder: Path, slow: Slow) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Front", (Front,), {"slow": slow}))
    server.daemon_threads = True
    server.socket = context(folder, ssl.Purpose.CLIENT_AUTH).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configuration(keys: Path, folder: Path, port: int, front_port: int) -> str:
    text = SHIPPED.read_text(encoding="utf-8")
    for shipped, here in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server 127.0.0.1:8000": f"server 127.0.0.1:{front_port}",
        "/etc/trellis/keys/": f"{keys / 'server'}/",
    }.items():
        assert shipped in text
        text = text.replace(shipped, here)
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}\n{text}\n}}\n"
    )


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    create_authority(tmp_path / "keys")
    issue(tmp_path / "keys", SERVER)
    issue(tmp_path / "keys", CAM)
    issue(tmp_path / "keys", OTHER)
    return tmp_path / "keys"


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def port(keys: Path, slow: Slow, tmp_path: Path, need: Callable[[str], str]) -> Iterator[int]:
    nginx = need("nginx")
    (number,) = free_ports(1)
    with front(keys / "server", slow) as front_port:
        path = tmp_path / "nginx.conf"
        path.write_text(configuration(keys, tmp_path, number, front_port), encoding="utf-8")
        process = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", str(path)])
        try:
            wait_listening(process, number)
            yield number
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"nginx ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    pytest.fail("nginx does not listen")


def ask(
    port: int, tls: ssl.SSLContext, path: str, method: str = "POST", body: bytes = b""
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("localhost", port, timeout=LIMIT_S, context=tls)
    with contextlib.closing(connection):
        # A raw path: http.client does not resolve its dots.
        connection.request(method, path, body=body)
        response = connection.getresponse()
        return response.status, response.read()


def test_the_fleet_api_passes_with_a_model_and_nothing_else_does(port: int, keys: Path) -> None:
    tls = context(keys / CAM.folder, ssl.Purpose.SERVER_AUTH)
    assert ask(port, tls, "/v1/fleet/pull-messages") == (200, b"/v1/fleet/pull-messages 0")
    assert ask(port, tls, "/v1/fleet/push-object", body=b"x" * 3_000_000) == (
        200,
        b"/v1/fleet/push-object 3000000",
    )
    assert [(path, ask(port, tls, path)[0]) for path in FORBIDDEN] == [(path, 404) for path in FORBIDDEN]
    assert [(path, ask(port, tls, path, "GET")[0]) for path in FORBIDDEN] == [
        (path, 404) for path in FORBIDDEN
    ]
    assert ask(port, tls, "/v1/fleet/pull-messages", "GET")[0] == 404


def test_artefacts_are_had_by_get_alone(port: int, keys: Path) -> None:
    tls = context(keys / CAM.folder, ssl.Purpose.SERVER_AUTH)
    for path in ("/v1/tasks/digits-1/artefacts/onnx", f"/v1/artefacts/{'0123456789abcdef' * 4}"):
        assert ask(port, tls, path, "GET") == (200, path.encode())
        assert ask(port, tls, path)[0] == 404


def test_one_device_leaves_room_for_the_others_artefacts(port: int, slow: Slow, keys: Path) -> None:
    cam, other = (context(keys / one.folder, ssl.Purpose.SERVER_AUTH) for one in (CAM, OTHER))
    with ThreadPoolExecutor() as pool:
        try:
            sent = [pool.submit(ask, port, cam, SLOW, "GET") for _ in range(4)]
            assert all(slow.asked.acquire(timeout=LIMIT_S) for _ in sent)
            status, answer = ask(port, cam, "/v1/artefacts/0123", "GET")
            assert (status, json.loads(answer)["error"]["code"]) == (503, NotYet.code)
            assert ask(port, cam, "/v1/fleet/pull-messages")[0] == 200
            assert ask(port, other, "/v1/artefacts/0123", "GET") == (200, b"/v1/artefacts/0123")
        finally:
            slow.released.set()
        assert [one.result()[0] for one in sent] == [200] * 4


def test_nobody_comes_in_without_a_certificate_of_this_fleet(port: int, keys: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    stranger = issue(tmp_path / "other", CAM)
    for folder in (None, stranger):
        tls = ssl.create_default_context(cafile=keys / "ca" / "ca.crt")
        if folder is not None:
            tls.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        status, answer = ask(port, tls, "/v1/fleet/pull-messages")
        assert status == 400
        assert b"certificate" in answer
