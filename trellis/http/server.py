"""An HTTP API inside a service's event loop: uvicorn on a socket that we bind, with our errors.

HttpServer.__aenter__
├── ConfigError   the port is taken, the address is not this machine's, or plaintext beyond loopback
└── (the certificate and key are those of a loaded `Identity`, so they are known to be good)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from trellis.errors import ConfigError, Fault, InvalidInput, Refused, TrellisError, Unavailable
from trellis.faults import shown
from trellis.foreign_text import harmless_line
from trellis.http.connections import PeerProtocol
from trellis.http.errors import status_of, to_json
from trellis.loopback import is_loopback
from trellis.processes import port_owner
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 5
"""A connection whose last answer has been taken is closed when nothing comes for so long."""
_STOP_TIMEOUT_S = 5.0


def create_app(title: str) -> FastAPI:
    """Return an app that answers every error of ours as `{"error": …}`."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None)

    @app.exception_handler(TrellisError)
    async def ours(request: Request, error: TrellisError) -> JSONResponse:
        if request.method == "POST" and isinstance(error, Refused | InvalidInput):
            who = request.client.host if request.client else "unknown"
            # What came must not feign a line of its own.
            path, said = harmless_line(request.scope["path"]), harmless_line(" ".join(str(error).split()))
            logger.warning("%s %s from %s refused: %s", request.method, path, who, said)
        return JSONResponse(to_json(error), status_code=status_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            Fault(".".join(map(str, item["loc"])), f"{item['msg']}, got {shown(item.get('input'))}")
            for item in error.errors()
        ]
        return JSONResponse(to_json(InvalidInput("request", faults)), status_code=400)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        body = {"error": {"code": "http", "message": f"{request.method} {request.url.path}: {error.detail}"}}
        return JSONResponse(body, status_code=error.status_code)

    return app


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """Return the request's body.

    Raises:
        InvalidInput: It is larger than `limit_bytes`; no more than that is read.
        Unavailable: Whoever sends it broke off, or was cut off.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise InvalidInput("request body", f"has more than {limit_bytes} bytes")
    except ClientDisconnect:
        raise Unavailable(f"the request broke off {len(body)} bytes into its body: send it again") from None
    return bytes(body)


def _telling(port: int) -> type[ssl.SSLObject]:
    """Return connections to `port` that say why one is not let in: asyncio closes it without a word."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                logger.warning("port %d: a TLS connection was refused: %s", port, error)
                raise

    return Handshake


class _QuietServer(uvicorn.Server):
    """uvicorn without signal handlers, which the service has, and without looking ten times a second.

    It looks whether it is to end, and at the time for the date in its answers: the one it is told here, the
    other `PeerProtocol` does when something comes.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        await self._leaving.wait()

    def leave(self) -> None:
        """End `serve` as soon as what is being answered is answered."""
        self.should_exit = True
        self._leaving.set()


class HttpServer:
    """Serves an ASGI app from `__aenter__` to `__aexit__`.

    Args:
        app: The ASGI application.
        host: Address to bind. Beyond loopback only with `tls`.
        port: Port to bind, 0 for a free one.
        tls: Server certificate; clients must then show a certificate of the same CA.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, tls: TlsFiles | None) -> None:
        if tls is None and not is_loopback(host):
            raise ConfigError(
                f"host {host!r}",
                "is beyond loopback, where nothing goes unencrypted: give --keys, or use 127.0.0.1",
            )
        self._host, self._wanted_port, self._tls = host, port, tls
        self._app = app
        self._socket: socket.socket | None = None
        self._server: _QuietServer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The bound port."""
        if self._socket is None:
            raise RuntimeError("HttpServer is not entered")
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL, as `https://127.0.0.1:8080`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._socket = bind(self._host, self._wanted_port)
        config = uvicorn.Config(
            self._app,
            http=PeerProtocol,
            ws="none",  # nothing of ours speaks it, and uvicorn would take whatever is installed
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            **self._ssl(),
        )
        config.load()
        if config.ssl is not None:
            config.ssl.sslobject_class = _telling(self.port)
        self._server = _QuietServer(config)
        name = f"http-{self.port}"
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name=name)
        try:
            while not self._server.started:
                if self._task.done():
                    await self._task
                    raise TrellisError(f"the HTTP server on port {self.port} ended at its start")
                await asyncio.sleep(0.005)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._server is None or self._task is None or self._socket is None:
            return
        self._server.leave()
        _, pending = await asyncio.wait({self._task}, timeout=_STOP_TIMEOUT_S)
        if pending:
            # A long poll or a stuck upload must not keep the service from ending.
            self._server.force_exit = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_STOP_TIMEOUT_S)
        self._socket.close()

    def _ssl(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        return {
            "ssl_certfile": str(self._tls.cert),
            "ssl_keyfile": str(self._tls.key),
            "ssl_ca_certs": str(self._tls.ca),
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
        }


def advertised(url: str) -> str:
    """Return a service's URL as others reach it: an address that means «every one» names no machine."""
    for unspecified in ("//0.0.0.0:", "//[::]:"):
        url = url.replace(unspecified, f"//{socket.gethostname()}:")
    return url


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        ConfigError: The port is taken (its owner is named where it can be known) or cannot be bound.
    """
    if not 0 <= port <= 65535:
        # getaddrinfo would take it modulo 65536.
        raise ConfigError(f"port {port} on {host}", "must be 0 to 65535")
    try:
        (family, kind, proto, _, address), *_ = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else error
        raise ConfigError(f"host {host!r}", f"is no address of this machine: {why}") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            owner = port_owner(port)
            by = f" by {owner}" if owner else ""
            raise ConfigError(
                f"port {port} on {host}", f"is taken{by}: end it or choose another port"
            ) from None
        raise ConfigError(f"port {port} on {host}", f"cannot be bound: {error.strerror}") from None
