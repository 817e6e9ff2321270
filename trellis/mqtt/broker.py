"""A broker that lives as long as its context: for trials, for the demo, and for one's first hour."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio.subprocess import DEVNULL, Process
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from trellis.errors import ConfigError, Fault, Unavailable
from trellis.loopback import free_ports
from trellis.mqtt.broker_programs import (
    INSTALL_HINT,
    Listener,
    amqtt_command,
    find_mosquitto,
    mosquitto_command,
)
from trellis.mqtt.settings import is_loopback
from trellis.processes import PidFile, die_with_parent, port_owner, terminate_tree
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

START_S = 20.0

Kind = Literal["mosquitto", "amqtt"]

# CONNECT, MQTT 3.1.1, clean session, keepalive 5 s, client id "trellis-probe".
_CONNECT = b"\x10\x19\x00\x04MQTT\x04\x02\x00\x05\x00\x0dtrellis-probe"
_CONNACK = 0x20
_DISCONNECT = b"\xe0\x00"


class EmbeddedBroker:
    """A mosquitto, or an amqtt where there is none, as our child: it ends with us.

    Without TLS it is bound to loopback; with TLS every client shows a certificate, whose common name
    is its user name in the ACL. Nothing is kept over a restart. Enter it on the main thread: the
    child ends with the *thread* that has started it (`die_with_parent`). What a killed predecessor
    with the same `state_dir` left running is ended first.

    Args:
        port: 0 takes a free one.
        state_dir: Gets the configuration, `broker.log`, and amqtt's environment.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 1883,
        *,
        state_dir: Path,
        tls: TlsFiles | None = None,
        acl: Path | None = None,
        prefer: Literal["auto", "mosquitto", "amqtt"] = "auto",
    ) -> None:
        self._listener = Listener(host, port, tls, acl)
        self._folder = state_dir
        self._prefer = prefer
        self._kind: Kind | None = None
        self._process: Process | None = None
        self._pid_file = PidFile(state_dir / "broker.pid")

    @property
    def kind(self) -> Kind:
        """Which program runs."""
        if self._kind is None:
            raise Unavailable("the embedded broker is not started")
        return self._kind

    @property
    def pid(self) -> int:
        if self._process is None:
            raise Unavailable("the embedded broker is not started")
        return self._process.pid

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = self._local_host()
        scheme = "mqtts" if self._listener.tls else "mqtt"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._listener.port}"

    @property
    def log(self) -> Path:
        return self._folder / "broker.log"

    async def __aenter__(self) -> Self:
        """Start the broker, and return when it answers an MQTT CONNECT.

        Raises:
            ConfigError: The port is taken, or the address may not be used so.
            Unavailable: No broker is installed, or it does not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._pid_file.end_previous)
        program = self._choose()
        self._claim_port()
        if program is not None:
            self._kind = "mosquitto"
            command = mosquitto_command(program, self._listener, self._folder)
        else:
            self._kind = "amqtt"
            command = await amqtt_command(self._listener, self._folder)
        try:
            await self._start(command)
        except BaseException:
            await self._stop()
            raise
        logger.info("broker started: %s at %s, pid %d", self._kind, self.url, self.pid)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def wait(self) -> int:
        """Return the broker's exit status once it has ended, which it should not by itself."""
        if self._process is None:
            raise Unavailable("the embedded broker is not started")
        return await self._process.wait()

    def _choose(self) -> str | None:
        """Return mosquitto's path, or None for amqtt."""
        host, tls = self._listener.host, self._listener.tls
        if tls is None and not is_loopback(host):
            problem = f"{host} is not loopback, and a broker without TLS binds nowhere else"
            raise ConfigError("embedded broker", [Fault("host", problem, "give TLS files, or use 127.0.0.1")])
        program = None if self._prefer == "amqtt" else find_mosquitto()
        if program is None and self._prefer == "mosquitto":
            raise Unavailable(f"mosquitto is not installed; {INSTALL_HINT}")
        if program is None and (tls is not None or self._listener.acl is not None):
            problem = "amqtt, the broker for trials on one machine, is started without TLS and ACLs"
            if self._prefer == "amqtt":
                raise ConfigError("embedded broker", [Fault("tls", problem, INSTALL_HINT)])
            raise Unavailable(f"mosquitto is not installed, and {problem}; {INSTALL_HINT}")
        return program

    def _claim_port(self) -> None:
        host, port = self._listener.host, self._listener.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)  # on Linux the second of two sockets with SO_REUSEADDR fails only here
            except OSError as error:
                owner = port_owner(port)
                problem = (
                    f"{host}:{port} is in use by {owner}" if owner else f"{host}:{port}: {error.strerror}"
                )
                remedy = "stop that, or choose another port"
                raise ConfigError("embedded broker", [Fault("port", problem, remedy)]) from error
        if port == 0:  # the kernel's choice would be of those that an outgoing connection may take
            self._listener = replace(self._listener, port=free_ports(1, host)[0])

    async def _start(self, command: list[str]) -> None:
        with self.log.open("ab") as log:
            began = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self._pid_file.write(self._process.pid)
        try:
            async with asyncio.timeout(START_S):
                while not await self._answers():
                    if self._process.returncode is not None:
                        raise Unavailable(f"{self._kind} ended at its start: {self._last_words(began)}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable(
                f"{self._kind} does not answer at {self.url} after {START_S:g} s: {self._last_words(began)}"
            ) from None

    async def _answers(self) -> bool:
        tls = self._listener.tls
        context = None if tls is None else await asyncio.to_thread(_probe_context, tls)
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection(
                    self._local_host(), self._listener.port, ssl=context
                )
        except (OSError, TimeoutError):
            return False
        try:
            writer.write(_CONNECT)
            async with asyncio.timeout(2.0):
                answer = await reader.read(4)
            writer.write(_DISCONNECT)
            # With TLS a completed handshake is an answer: our certificate may be for servers only.
            return answer[:1] == bytes([_CONNACK]) or context is not None
        except ssl.SSLError:
            return True
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _stop(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            await asyncio.to_thread(terminate_tree, self._process.pid)
        await self._process.wait()
        self._pid_file.clear()

    def _local_host(self) -> str:
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._listener.host, self._listener.host)  # noqa: S104 - translated, not bound

    def _last_words(self, began: int) -> str:
        with self.log.open("rb") as log:
            log.seek(began)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-5:]) + f" (all of it: {self.log})"


def _probe_context(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca)
    context.check_hostname = False  # only whether it answers is asked, on our own machine
    context.load_cert_chain(tls.cert, tls.key, password="")
    return context
