"""One MQTT 3.1.1 connection, on aiomqtt.

3.1.1 everywhere: amqtt speaks nothing later, and nothing here needs more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence

import aiomqtt
import paho.mqtt.client as paho
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from trellis.errors import ConfigError, Fault, Refused
from trellis.mqtt.inbox import Delivery
from trellis.mqtt.messages import BusMessage, Publication
from trellis.mqtt.session import ConnectionLost, Session
from trellis.mqtt.settings import BrokerSettings
from trellis.tls import client_context

CONNECT_S = 4.0
"""For TCP and for TLS each."""

ANSWER_S = 10.0
"""For the broker's answer to a packet; a broker slower than this counts as lost."""

# MQTT 3.1.1's return codes 1, 2, 4 and 5, as paho translates them: another try would end the same way.
_REFUSALS = frozenset({132, 133, 134, 135})

_ALERT = re.compile(r"ALERT_(?:UNKNOWN_CA|\w*CERTIFICATE\w*|ACCESS_DENIED|DECRYPT_ERROR)")

_paho_logger = logging.getLogger(f"{__name__}.paho")
_paho_logger.setLevel(logging.CRITICAL)  # the bus says it once, in words that name broker and remedy


class _Client(aiomqtt.Client):
    """aiomqtt's client, which also learns of a connection that ends before the broker has answered.

    aiomqtt would wait for that answer until its timeout.

    Attributes:
        last_error: What paho said last of an error, or "".
    """

    last_error = ""

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not self._connected.done():
            self._connected.set_exception(
                aiomqtt.MqttError(f"connection closed without an answer: {reason_code}")
            )
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_socket_register_write(self, client: paho.Client, userdata: object, sock: paho.SocketLike) -> None:
        # paho calls this from the thread in which it connects. aiomqtt takes the descriptor there and
        # registers it later, when it may be closed already, or another socket's.
        def write() -> None:
            try:
                client.loop_write()
            except (OSError, ValueError) as error:
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def register() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), write)

        self._loop.call_soon_threadsafe(register)

    def _note_log(self, client: paho.Client, userdata: object, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self.last_error = text

    def cut(self) -> None:
        """Close the socket, however far things have got; aiomqtt leaves it open after a failed connect."""
        for future in (self._connected, self._disconnected):
            if future.done() and not future.cancelled():
                future.exception()  # looked at, so that asyncio does not report it as forgotten
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
        if self._client.socket() is not None:
            self._client._sock_close()

    def abandon(self) -> None:
        """Close the socket without MQTT's DISCONNECT, which aiomqtt can then no longer send."""
        self._client._sock_close()

    def broken(self) -> BaseException | None:
        """Return what an exception in the read or write callback has left."""
        done = self._disconnected.done() and not self._disconnected.cancelled()
        return self._disconnected.exception() if done else None

    def prepare(self) -> None:
        """Set what aiomqtt has no parameter for."""
        self.pending_calls_threshold = 1000  # the outbox bounds them
        self._client.connect_timeout = CONNECT_S
        # paho tells of a failed read only in its log: of a TLS alert, too.
        self._client.on_log = self._note_log


class MqttDialer:
    """Opens MQTT connections by settings."""

    def __init__(self, settings: BrokerSettings, will: Publication | None) -> None:
        self._settings = settings
        self._will = will

    @property
    def url(self) -> str:
        return self._settings.url

    @property
    def client_id(self) -> str:
        return self._settings.client_id

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        client = self._client()
        try:
            await self._enter(client)
            try:
                yield _MqttSession(client)
            finally:
                # Says goodbye, so that the will does not fire; on a lost connection it does nothing.
                with contextlib.suppress(aiomqtt.MqttError, OSError):
                    await client.__aexit__(None, None, None)
        finally:
            client.cut()

    def _client(self) -> _Client:
        settings, will = self._settings, self._will
        client = _Client(
            settings.host,
            settings.port,
            identifier=settings.client_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            keepalive=settings.keepalive_s,
            timeout=ANSWER_S,
            # Made anew for each connection, so that renewed certificates are taken up.
            tls_context=client_context(settings.tls) if settings.encrypted and settings.tls else None,
            will=None if will is None else aiomqtt.Will(will.topic, will.payload, will.qos, will.retain),
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            logger=_paho_logger,
        )
        client.prepare()
        return client

    async def _enter(self, client: _Client) -> None:
        entering = asyncio.create_task(client.__aenter__(), name="mqtt connect")
        watching = asyncio.create_task(_first_failure(client), name="mqtt connect watch")
        try:
            await asyncio.wait([entering, watching], return_when=asyncio.FIRST_COMPLETED)
            if not entering.done():
                raise watching.result()
            await entering
        except MqttConnectError as error:
            raise self._refusal(error) from error
        except aiomqtt.MqttError as error:
            # aiomqtt hides the cause (`raise … from None`) but Python keeps it.
            raise self._failure(error.__context__ or error, client.last_error) from error
        except (ssl.SSLError, OSError) as error:
            raise self._failure(error, client.last_error) from error
        finally:
            watching.cancel()
            if not entering.done():
                # paho connects in a thread, which cannot be interrupted: without this wait the
                # connection would come about behind our back, and hold our client id.
                await asyncio.wait([entering], timeout=CONNECT_S)
                entering.cancel()
                await asyncio.wait([entering])
            if not entering.cancelled():
                entering.exception()

    def _failure(self, cause: BaseException, log: str) -> Exception:
        if isinstance(cause, ssl.SSLCertVerificationError):
            tls = self._settings.tls
            problem = f"the broker's certificate does not pass: {cause.verify_message}"
            remedy = f"is {tls.ca if tls else 'this'} the CA that signed it, and the host name in it?"
            return ConfigError(f"broker {self.url}", [Fault("tls.ca", problem, remedy)])
        # From TLS 1.3 on a broker refuses our certificate after the handshake, so it comes with a read.
        if alert := _ALERT.search(f"{cause} {log}"):
            return Refused(
                "broker",
                f"broker {self.url}, client {self.client_id!r}: the broker does not accept our certificate "
                f"({alert[0].lower().replace('_', ' ')}); use one that its CA has signed",
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            problem = f"no TLS connection comes about: {cause.reason or cause}"
            return ConfigError(
                f"broker {self.url}",
                [Fault("broker", problem, "is this the broker's TLS port, usually 8883?")],
            )
        return ConnectionLost(str(cause) or type(cause).__name__)

    def _refusal(self, error: MqttConnectError) -> Exception:
        code = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
        if code in _REFUSALS:
            return Refused(
                "broker",
                f"broker {self.url}: does not let client {self.client_id!r} in: {error}; "
                "check that its certificate and client id are known there",
            )
        return ConnectionLost(str(error))


async def _first_failure(client: _Client) -> BaseException:
    """Return the exception that ended the connection while aiomqtt still waits for the broker's answer."""
    while (error := client.broken()) is None:  # noqa: ASYNC110 - aiomqtt has nothing to wait for here
        await asyncio.sleep(0.05)
    return error


class _MqttSession:
    def __init__(self, client: _Client) -> None:
        self._client = client

    async def publish(self, publication: Publication) -> None:
        with _losing():
            await self._client.publish(
                publication.topic, publication.payload, qos=publication.qos, retain=publication.retain
            )

    async def subscribe(self, filters: Sequence[str]) -> Sequence[str]:
        with _losing():
            codes = await self._client.subscribe([(filter, 1) for filter in filters])
        values = [code.value if isinstance(code, ReasonCode) else code for code in codes]
        return [filter for filter, value in zip(filters, values, strict=True) if value >= 0x80]

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        with _losing():
            await self._client.unsubscribe(list(filters))

    def abandon(self) -> None:
        self._client.abandon()

    async def deliveries(self) -> AsyncIterator[Delivery]:
        with _losing():
            async for message in self._client.messages:
                yield Delivery(BusMessage(message.topic.value, message.payload, message.retain), message.qos)


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """Draw what aiomqtt raises as `ConnectionLost`, and be canceled where it forgets that.

    It waits by `asyncio.wait_for`, which before Python 3.12 returns as if nothing had been where the broker's
    answer and a cancellation come in one turn of the loop. Who publishes in a loop would then never end.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    except aiomqtt.MqttError as error:
        cause = error.__cause__
        raise ConnectionLost(f"{error}: {cause}" if cause else str(error)) from error
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
