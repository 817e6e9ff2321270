"""Tasks that nobody may start: unsigned, a stranger's, for a server that is not on a device's list.

And a device that writes where it may not.

Each is refused, and it is said where an operator looks: HTTP answer, service's log, the task's status topic,
the device's execution.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from machines import LIMIT_S, until
from namespaces import network
from paho.mqtt.enums import CallbackAPIVersion
from secure_federation import OTHER, REGION, SecureFleet, tls_files

from trellis.descriptor import parse_mapping
from trellis.envelope import sign
from trellis.keys.identity import load_signing_key
from trellis.signing_key import SigningKey
from trellis.tls import client_context

pytestmark = pytest.mark.timeout(400)

BASE = "trellis/v1"
STRANGER = SigningKey.generate()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFleet]:
    with network() as ends, SecureFleet(tmp_path_factory.mktemp("fleet"), ends) as running:
        yield running


class Client:
    """An ordinary MQTT client with one machine's certificate."""

    def __init__(self, fleet: SecureFleet, *identity: str) -> None:
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._subscribed = threading.Event()
        self._paho = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._paho.tls_set_context(client_context(tls_files(fleet.keys.joinpath(*identity))))
        self._paho.on_message = lambda _c, _u, message: self.heard.put((message.topic, message.payload))
        self._paho.on_subscribe = lambda *_: self._subscribed.set()
        self._paho.connect(fleet.network.centre, fleet.ports["broker"])
        self._paho.loop_start()

    def subscribe(self, topic: str) -> None:
        until(self._paho.is_connected, "connected")
        self._paho.subscribe(f"{BASE}/{topic}", qos=1)
        assert self._subscribed.wait(LIMIT_S)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Return once the broker has taken it, or refused it: MQTT 3.1.1 does not say which."""
        sent = self._paho.publish(f"{BASE}/{topic}", payload, qos=1, retain=retain)
        sent.wait_for_publish(LIMIT_S)
        assert sent.is_published()

    def close(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()


@contextlib.contextmanager
def client(fleet: SecureFleet, *identity: str) -> Iterator[Client]:
    made = Client(fleet, *identity)
    try:
        yield made
    finally:
        made.close()


def signed(task: dict[str, Any], key: SigningKey) -> bytes:
    return sign(parse_mapping(task).to_json(), key).to_bytes()


def post(fleet: SecureFleet, service: str, body: bytes) -> tuple[int, str, str]:
    """Return status, code and message of what a service answers."""
    url = fleet.gateway_url if service == "gateway" else fleet.server_url
    with fleet.operator_http() as http:
        answer = http.post(f"{url}/v1/tasks", content=body)
    error = answer.json().get("error", {})
    return answer.status_code, error.get("code", ""), error.get("message", "")


def known_tasks(fleet: SecureFleet, service: str) -> set[str]:
    url = fleet.gateway_url if service == "gateway" else fleet.server_url
    with fleet.operator_http() as http:
        return {one["task"] for one in http.get(f"{url}/v1/tasks").json()["tasks"]}


SERVICES = ("server", "gateway")


@pytest.mark.parametrize("service", SERVICES)
def test_an_unsigned_task_is_refused_with_a_word(fleet: SecureFleet, service: str) -> None:
    task = fleet.task("unsigned")
    envelope = json.loads(signed(task, STRANGER))
    status, code, message = post(fleet, service, json.dumps(envelope | {"signatures": []}).encode())
    assert (status, code) == (400, "invalid")
    assert "unsigned tasks are never accepted" in message
    status, code, message = post(fleet, service, json.dumps(task).encode())
    assert (status, code) == (400, "invalid")
    assert "is an unsigned task descriptor: `trellis task post` signs it" in message
    fleet.running[service].says(
        r"WARNING .*POST /v1/tasks from \S+ refused: .*unsigned tasks are never accepted"
    )
    assert "unsigned" not in known_tasks(fleet, service)


@pytest.mark.parametrize("service", SERVICES)
def test_a_strangers_task_is_refused_with_a_word(fleet: SecureFleet, service: str) -> None:
    status, code, message = post(fleet, service, signed(fleet.task("strange"), STRANGER))
    assert (status, code) == (403, "untrusted")
    assert STRANGER.keyid in message
    fleet.running[service].says(rf"WARNING .*refused: .*{STRANGER.keyid}")
    assert "strange" not in known_tasks(fleet, service)


def test_a_task_that_was_altered_after_signing_is_refused(fleet: SecureFleet) -> None:
    envelope = json.loads(signed(fleet.task("altered"), load_signing_key(fleet.keys)))
    altered = envelope | {"payload": envelope["payload"].replace('"seed":7', '"seed":8')}
    assert altered != envelope
    for service in SERVICES:
        assert post(fleet, service, json.dumps(altered).encode())[:2] == (403, "signature")
        assert "altered" not in known_tasks(fleet, service)


def test_a_strangers_revision_of_a_known_task_shows_in_the_tasks_status(fleet: SecureFleet) -> None:
    # No device takes it: its data are others.
    task = fleet.task("known", data={"min_samples": 100_000})
    assert post(fleet, "gateway", signed(task, load_signing_key(fleet.keys)))[0] == 201
    with client(fleet, "operator") as operator:
        operator.subscribe(f"{REGION}/tasks/known/status")
        assert post(fleet, "gateway", signed(task | {"revision": 2}, STRANGER))[:2] == (403, "untrusted")

        def verdict() -> str | None:
            status = json.loads(operator.heard.get(timeout=LIMIT_S)[1])
            return (status.get("verdict") or {}).get("code")

        assert until(verdict, "a verdict on MQTT") == "untrusted"
    with fleet.operator_http() as http:
        shown = http.get(f"{fleet.gateway_url}/v1/tasks/known").json()
    assert (shown["revision"], shown["verdict"]["code"]) == (1, "untrusted")


def rejected(fleet: SecureFleet, task: str, device: str) -> dict[str, str]:
    """Return why a device has rejected a task, as MQTT shows it."""
    with client(fleet, "operator") as operator:
        operator.subscribe(f"{REGION}/devices/{device}/tasks/{task}/execution")

        def reason() -> dict[str, str] | None:
            execution = json.loads(operator.heard.get(timeout=LIMIT_S)[1])
            assert execution["state"] in {"QUEUED", "REJECTED"}
            return execution["reason"] if execution["state"] == "REJECTED" else None

        return until(reason, f"{device} rejects {task}")


def test_a_strangers_task_straight_on_the_topic_is_rejected_by_every_device(fleet: SecureFleet) -> None:
    # Whoever has broken into the gateway can write there, and still can't sign.
    with client(fleet, "gateways", REGION) as intruder:
        topic = f"{REGION}/tasks/smuggled/descriptor"
        intruder.publish(topic, signed(fleet.task("smuggled"), STRANGER), retain=True)
        for device in ("d1", "d2"):
            reason = rejected(fleet, "smuggled", device)
            assert reason["code"] == "untrusted"
            assert STRANGER.keyid in reason["message"]
            fleet.running[device].says("ERROR .*task smuggled is rejected: .*" + STRANGER.keyid)
        intruder.publish(topic, b"", retain=True)


def test_a_task_for_a_server_off_the_devices_list_is_rejected_and_the_gateway_shows_it(
    fleet: SecureFleet,
) -> None:
    task = fleet.task("lured", server={"address": f"{fleet.network.centre}:9", "tls": True})
    assert post(fleet, "gateway", signed(task, load_signing_key(fleet.keys)))[0] == 201
    reason = rejected(fleet, "lured", "d1")
    assert reason["code"] == "server"
    assert f"names server {fleet.network.centre}:9, this device's list is {fleet.front}" in reason["message"]

    def shown() -> bool:
        execution = fleet.execution("lured", "d1")
        return execution.get("state") == "REJECTED" and execution["reason"]["code"] == "server"

    until(shown, "the gateway's API shows the rejection")
    fleet.running["d1"].says("ERROR .*task lured is rejected: .*names server")


def test_a_task_without_tls_is_rejected_by_a_device_that_has_it(fleet: SecureFleet) -> None:
    task = fleet.task("bare", server={"address": fleet.front, "tls": False})
    assert post(fleet, "gateway", signed(task, load_signing_key(fleet.keys)))[0] == 201
    assert rejected(fleet, "bare", "d1")["code"] == "server"


def test_a_device_of_another_region_writes_nothing_here(fleet: SecureFleet) -> None:
    # The control comes last and is allowed: once it is here, what was denied before it will not come.
    own, theirs = f"{OTHER}/devices/d3", f"{REGION}/devices/d1"
    with client(fleet, "operator") as operator, client(fleet, "devices", OTHER, "d3") as rogue:
        operator.subscribe("+/devices/#")
        for topic in (f"{theirs}/state", f"{theirs}/tasks/t/execution", f"{theirs}/rogue"):
            rogue.publish(topic, b"rogue")
            rogue.publish(topic, b"rogue", retain=True)
        rogue.publish(f"{REGION}/tasks/t/descriptor", b"rogue", retain=True)
        rogue.publish(f"{own}/state", b"control")
        heard: list[tuple[str, bytes]] = []
        while (f"{BASE}/{own}/state", b"control") not in heard:
            heard.append(operator.heard.get(timeout=LIMIT_S))
    assert [topic for topic, payload in heard if payload == b"rogue"] == []


def test_a_device_of_another_region_reads_nothing_here(fleet: SecureFleet) -> None:
    with (
        client(fleet, "gateways", REGION) as here,
        client(fleet, "gateways", OTHER) as there,
        client(fleet, "devices", OTHER, "d3") as rogue,
    ):
        rogue.subscribe("#")
        here.publish(f"{REGION}/tasks/secret/descriptor", b"secret")
        here.publish(f"{REGION}/tasks/secret/status", b"secret")
        there.publish(f"{OTHER}/tasks/control/status", b"control")
        heard = [rogue.heard.get(timeout=LIMIT_S)]
        while heard[-1][1] != b"control":
            heard.append(rogue.heard.get(timeout=LIMIT_S))
    assert [topic for topic, _ in heard if topic.startswith(f"{BASE}/{REGION}/")] == []


@contextlib.contextmanager
def false_front(fleet: SecureFleet) -> Iterator[str]:
    """A server of our CA whose certificate names another host; yields its address."""
    identity = fleet.keys / "gateways" / OTHER
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(identity / "tls.crt", identity / "tls.key")

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # its end
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

    with socket.create_server((fleet.network.centre, 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"{fleet.network.centre}:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT_S)


def test_a_front_with_another_hosts_certificate_gets_no_device_and_the_execution_says_why(
    fleet: SecureFleet,
) -> None:
    with false_front(fleet) as address:
        fleet.start_device("d4", "--server", address)
        task = fleet.task("misled", server={"address": address, "tls": True})
        assert post(fleet, "gateway", signed(task, load_signing_key(fleet.keys)))[0] == 201

        def reason() -> str | None:
            execution = fleet.execution("misled", "d4")
            assert execution.get("phase") in {None, "verifying", "connecting"}
            return (execution.get("reason") or {}).get("message")

        said = until(reason, "d4's execution has a reason")
        assert said.startswith(f"{address} does not answer: ")
        assert "IP address mismatch" in said
        fleet.running["d4"].says("WARNING .*IP address mismatch")


def test_the_fleet_works_after_all_that(fleet: SecureFleet) -> None:
    file = fleet.task_file(fleet.task("honest", train={"rounds": 1}))
    where = ("--server", fleet.server_url, "--broker", fleet.broker_url)
    done = fleet.operator("task", "run", file, *where)
    assert done.code == 0, done.err + done.out
