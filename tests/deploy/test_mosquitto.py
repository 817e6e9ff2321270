"""The shipped broker, run by a real mosquitto: who publishes what, who reads what, and who stays outside.

MQTT 3.1.1 does not tell a client that it was refused, so a permitted listener watches. Each test ends with a
message that is allowed: when that has arrived, what was refused before it will not come any more.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import OPERATOR, SERVER, Principal, device, gateway
from trellis.keys.renewal import renew
from trellis.tls import TlsFiles, client_context

Broker = Any  # conftest.py has both
Client = Any

BASE = "trellis/v1"
LIMIT_S = 60.0
CAM, NEIGHBOUR, NAMESAKE = device("eu-1", "cam-7"), device("eu-1", "cam-8"), device("us-1", "cam-7")
EU, US = gateway("eu-1"), gateway("us-1")

# One topic of every kind, of both regions, beside what is nobody's.
TOPICS = (
    "central/state",
    "central/tasks/t/round",
    "eu-1/gateway/state",
    "eu-1/tasks/t/descriptor",
    "eu-1/devices/cam-7/state",
    "eu-1/devices/cam-7/tasks/t/execution",
    "eu-1/devices/cam-8/state",
    "us-1/gateway/state",
    "us-1/tasks/t/descriptor",
    "us-1/devices/cam-7/state",
    "nobody/gateway/state",
    "eu-1/devices/state",
    "eu-1",
)
WRITES = {
    SERVER: {"central/state", "central/tasks/t/round"},
    EU: {"eu-1/gateway/state", "eu-1/tasks/t/descriptor"},
    US: {"us-1/gateway/state", "us-1/tasks/t/descriptor"},
    CAM: {"eu-1/devices/cam-7/state", "eu-1/devices/cam-7/tasks/t/execution"},
    NEIGHBOUR: {"eu-1/devices/cam-8/state"},
    NAMESAKE: {"us-1/devices/cam-7/state"},
    OPERATOR: set[str](),
}
WRITTEN = set[str]().union(*WRITES.values())
IN_EU = {topic for topic in WRITTEN if topic.startswith("eu-1/")}
READS = {
    SERVER: WRITTEN,
    OPERATOR: WRITTEN,
    EU: IN_EU | WRITES[SERVER],
    CAM: WRITES[EU] | WRITES[CAM],
    NAMESAKE: WRITES[US] | WRITES[NAMESAKE],
}


def names(principal: Principal) -> str:
    return principal.common_name


@pytest.mark.parametrize("writer", WRITES, ids=names)
def test_everybody_publishes_what_is_its_own_and_nothing_else(
    broker: Broker, listener: Client, writer: Principal
) -> None:
    with broker.client(writer) as client, broker.client(US) as control:
        for topic in TOPICS:
            client.publish(f"{BASE}/{topic}")
        client.publish("elsewhere/state")
        control.publish(f"{BASE}/us-1/tasks/control/status")
    seen = listener.until(f"{BASE}/us-1/tasks/control/status")[:-1]
    assert seen == [f"{BASE}/{topic}" for topic in TOPICS if topic in WRITES[writer]]


@pytest.mark.parametrize("reader", READS, ids=names)
def test_everybody_reads_what_concerns_it_and_nothing_else(broker: Broker, reader: Principal) -> None:
    with broker.client(reader) as client:
        client.subscribe("#")
        for writer, topics in WRITES.items():
            with broker.client(writer) as other:
                for topic in sorted(topics):
                    other.publish(f"{BASE}/{topic}")
        control = "us-1/tasks/control/status" if reader is NAMESAKE else "eu-1/tasks/control/status"
        with broker.client(US if reader is NAMESAKE else EU) as other:
            other.publish(f"{BASE}/{control}")
        seen = client.until(f"{BASE}/{control}")[:-1]
    assert len(seen) == len(set(seen))
    assert set(seen) == {f"{BASE}/{topic}" for topic in READS[reader]}


@pytest.mark.parametrize("reader", [CAM, EU, SERVER], ids=names)
def test_retained_messages_are_guarded_as_live_ones(broker: Broker, reader: Principal) -> None:
    for writer, topics in WRITES.items():
        with broker.client(writer) as other:
            for topic in sorted(topics):
                other.publish(f"{BASE}/{topic}", retain=True)
    with broker.client(reader) as client, broker.client(EU) as control:
        client.subscribe(f"{BASE}/#")
        control.publish(f"{BASE}/eu-1/tasks/control/status")
        seen = client.until(f"{BASE}/eu-1/tasks/control/status")[:-1]
    assert set(seen) == {f"{BASE}/{topic}" for topic in READS[reader]}


def test_a_client_id_gives_no_rights(broker: Broker, listener: Client) -> None:
    with broker.client(NAMESAKE, client_id="eu-1/devices/cam-7") as client:
        client.publish(f"{BASE}/eu-1/devices/cam-7/state")
        client.publish(f"{BASE}/us-1/devices/cam-7/state")
    assert listener.until(f"{BASE}/us-1/devices/cam-7/state") == [f"{BASE}/us-1/devices/cam-7/state"]


def test_a_last_will_is_guarded_too(broker: Broker, listener: Client) -> None:
    for principal, will in ((NAMESAKE, "eu-1/devices/cam-8/state"), (CAM, "eu-1/devices/cam-7/state")):
        broker.client(principal, will=f"{BASE}/{will}").__enter__().vanish()
    assert listener.until(f"{BASE}/eu-1/devices/cam-7/state") == [f"{BASE}/eu-1/devices/cam-7/state"]


def test_only_this_fleets_certificates_come_in(broker: Broker, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    stranger = issue(tmp_path / "other", CAM)
    for folder in (None, stranger):
        # Both trust our broker: it is the broker that refuses.
        with pytest.raises(ConnectionRefusedError), broker.intruder(folder):
            pass
    with broker.client(CAM):
        pass


def test_without_tls_nobody_comes_in(broker: Broker) -> None:
    # MQTT 3.1.1, section 3.1: CONNECT, protocol MQTT level 4, clean session, client id "x".
    hello = bytes.fromhex("100d 0004 4d515454 04 02 003c 0001 78")
    answer = b""
    with socket.create_connection(("127.0.0.1", broker.port), LIMIT_S) as raw:
        raw.sendall(hello)
        with contextlib.suppress(ConnectionResetError):
            answer = raw.recv(4)
    assert answer[:1] != b"\x20"  # CONNACK


def hosts_shown(broker: Broker) -> set[str]:
    """Return the hosts in the certificate that the broker shows."""
    own = broker.keys / OPERATOR.folder
    files = TlsFiles(ca=own / "ca.crt", cert=own / "tls.crt", key=own / "tls.key")
    raw = socket.create_connection(("127.0.0.1", broker.port), LIMIT_S)
    with raw, client_context(files).wrap_socket(raw, server_hostname="localhost") as connection:
        shown: Any = connection.getpeercert()
        return {name for _, name in shown["subjectAltName"]}


def test_a_renewed_certificate_is_taken_up_at_a_reload(broker: Broker, listener: Client) -> None:
    renew(broker.keys, ["broker", names(CAM)])
    renew(broker.keys, ["broker"], hosts=["10.0.0.9"])
    assert "10.0.0.9" not in hosts_shown(broker)
    broker.reload()
    deadline = time.monotonic() + LIMIT_S
    while "10.0.0.9" not in hosts_shown(broker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Who was there still is, and a renewed device comes in.
    with broker.client(CAM) as client:
        client.publish(f"{BASE}/eu-1/devices/cam-7/state")
    assert listener.until(f"{BASE}/eu-1/devices/cam-7/state") == [f"{BASE}/eu-1/devices/cam-7/state"]


def test_a_machine_comes_and_goes_with_the_list(broker: Broker, listener: Client) -> None:
    added = device("eu-1", "cam-9")
    issue(broker.keys, added)
    own, control = f"{BASE}/eu-1/devices/cam-9/state", f"{BASE}/eu-1/devices/cam-7/state"
    with broker.client(added) as client, broker.client(CAM) as other:
        client.publish(own)
        other.publish(control)
        assert listener.until(control) == [control]
        broker.write_acl()
        broker.reload()
        deadline = time.monotonic() + LIMIT_S
        seen: list[str] = []
        while own not in seen and time.monotonic() < deadline:
            client.publish(own)
            other.publish(control)
            seen += listener.until(control)
        assert own in seen
        (broker.keys / added.folder).rename(broker.keys.parent / "retired")
        broker.write_acl()
        broker.reload()
        deadline = time.monotonic() + LIMIT_S
        while own in seen and time.monotonic() < deadline:
            client.publish(own)
            other.publish(control)
            seen = listener.until(control)
        assert own not in seen


def test_the_gateway_of_a_bridged_region_brings_its_devices_topics(broker: Broker, listener: Client) -> None:
    broker.write_acl(bridged="eu-1")
    broker.reload()
    control = f"{BASE}/us-1/tasks/control/status"
    own = f"{BASE}/eu-1/devices/cam-7/state"
    seen: list[str] = []
    deadline = time.monotonic() + LIMIT_S
    with broker.client(EU) as eu, broker.client(US) as us:
        while own not in seen and time.monotonic() < deadline:
            for gateway in (eu, us):
                for topic in TOPICS:
                    gateway.publish(f"{BASE}/{topic}")
            us.publish(control)
            seen = listener.until(control)
    devices = [topic for topic in seen if "/devices/" in topic]
    assert devices == [f"{BASE}/{topic}" for topic in TOPICS if topic.startswith("eu-1/devices/")]


def reads(
    broker: Broker, reader: Principal, written: Mapping[Principal, Iterable[str]], last: str
) -> set[str]:
    """Return what of these topics reaches a reader, up to the last, which must."""
    with broker.client(reader) as client:
        client.subscribe("#")
        for writer, topics in written.items():
            with broker.client(writer) as other:
                for topic in topics:
                    other.publish(f"{BASE}/{topic}")
        return {topic.removeprefix(f"{BASE}/") for topic in client.until(f"{BASE}/{last}")}


def test_a_gateway_reads_the_regions_below_it_and_above_it_and_no_others(broker: Broker) -> None:
    """us-1 stands below eu-1 here; ap-1 stands beside them."""
    ap = gateway("ap-1")
    issue(broker.keys, ap)
    broker.write_acl(below={"us-1": "eu-1"})
    broker.stop()
    broker.start()
    status, info = "us-1/tasks/t/status", "us-1/devices/cam-7/info"
    of_device = "us-1/devices/cam-7/tasks/t"
    of_gateway = (f"us-1/gateway/{topic}" for topic in ("state", "tasks/t/execution", "tasks/t/log"))
    below = {
        NAMESAKE: (
            "us-1/devices/cam-7/state",
            info,
            *(f"{of_device}/{kind}" for kind in ("execution", "log", "progress")),
        ),
        US: (*of_gateway, "us-1/tasks/t/round", status),
    }
    # Its own word last, which it reads in any case.
    assert reads(broker, EU, {**below, EU: ["eu-1/gateway/state"]}, "eu-1/gateway/state") == {
        "eu-1/gateway/state", *below[US], *below[NAMESAKE]
    } - {f"{of_device}/progress"}  # fmt: skip
    assert reads(broker, ap, {**below, ap: ["ap-1/gateway/state"]}, "ap-1/gateway/state") == {
        "ap-1/gateway/state"
    }
    above = {
        CAM: ("eu-1/devices/cam-7/state", "eu-1/devices/cam-7/tasks/t/execution"),
        ap: ("ap-1/gateway/state", "ap-1/tasks/t/descriptor"),
        EU: ("eu-1/gateway/state", "eu-1/tasks/t/descriptor", "eu-1/tasks/t/round"),
    }
    handed_down = reads(broker, US, {**above, US: ["us-1/gateway/state"]}, "us-1/gateway/state")
    assert handed_down == {"us-1/gateway/state", *above[EU]}


def test_the_gateway_of_a_bridged_region_brings_the_topics_of_those_below_it(
    broker: Broker, listener: Client
) -> None:
    of_device = "us-1/devices/cam-7/tasks/t"
    nested = ("us-1/gateway/state", "us-1/tasks/t/status", f"{of_device}/execution", f"{of_device}/log")
    control = f"{BASE}/eu-1/tasks/control/status"
    for bridged, due in ((None, []), ("eu-1", [f"{BASE}/{topic}" for topic in nested])):
        broker.write_acl(bridged=bridged, below={"us-1": "eu-1"})
        broker.stop()
        broker.start()
        with broker.client(OPERATOR) as watching, broker.client(EU) as eu:
            watching.subscribe(f"{BASE}/#")
            for topic in (*nested, f"{of_device}/progress", "nobody/gateway/state"):
                eu.publish(f"{BASE}/{topic}")
            eu.publish(control)
            assert watching.until(control)[:-1] == due


def test_retained_messages_outlive_the_broker(broker: Broker) -> None:
    topic = f"{BASE}/eu-1/tasks/t/descriptor"
    with broker.client(EU) as client:
        client.publish(topic, b"task", retain=True)
    broker.stop()
    broker.start()
    with broker.client(CAM) as client:
        client.subscribe(topic)
        assert client.until(topic) == [topic]


def test_all_that_a_large_fleet_retains_reaches_who_subscribes(broker: Broker) -> None:
    # 500 devices with 21 tasks a day, each kept for a day after its end; here all are one device's.
    topics = {f"{BASE}/eu-1/devices/cam-7/tasks/t-{number}/execution" for number in range(500 * 21)}
    with broker.client(CAM) as client:
        for topic in topics:
            client.paho.publish(topic, b"x", qos=1, retain=True)
        client.publish(f"{BASE}/eu-1/devices/cam-7/state", retain=True)  # behind all of them
    with broker.client(EU) as reader:
        reader.subscribe(f"{BASE}/eu-1/devices/+/tasks/+/execution")
        deadline = time.monotonic() + LIMIT_S
        while topics:
            topics.remove(reader.received.get(timeout=max(0.01, deadline - time.monotonic()))[0])


def test_the_largest_task_passes_and_more_does_not(broker: Broker, listener: Client) -> None:
    topic = f"{BASE}/eu-1/tasks/t/descriptor"
    with broker.client(EU) as client:
        client.publish(topic, b"x" * 256 * 1024)
    assert listener.until(topic) == [topic]
    with broker.client(EU) as client, pytest.raises(ConnectionResetError):
        client.publish(f"{topic}/big", b"x" * 300 * 1024)
    with broker.client(EU) as client:
        client.publish(topic)
    assert listener.until(topic) == [topic]
