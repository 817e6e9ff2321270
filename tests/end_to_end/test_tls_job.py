"""The main job with TLS and access lists everywhere, between two machines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from machines import until
from namespaces import Network, network
from safetensors.numpy import load_file
from secure_federation import OTHER, REGION, SecureFleet, tls_files

from trellis.artefacts.download import FrontClient
from trellis.errors import Refused, Unavailable
from trellis.flower.link import FlowerLink
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import device
from trellis.tls import TlsFiles

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def ends() -> Iterator[Network]:
    with network() as found:
        yield found


@pytest.mark.parametrize(
    "own_broker",
    [
        # Below, fleets on the shipped configuration do the same and more.
        pytest.param(False, id="shipped-mosquitto", marks=pytest.mark.long),
        pytest.param(True, id="trellis-broker"),
    ],
)
def test_a_task_from_post_to_model(ends: Network, tmp_path: Path, *, own_broker: bool) -> None:
    with SecureFleet(tmp_path, ends, own_broker=own_broker, days=20) as fleet:
        file = fleet.task_file(fleet.task("secure", train={"rounds": 3}))
        where = ("--server", fleet.server_url)
        done = fleet.operator("task", "run", file, *where, "--broker", fleet.broker_url)
        assert done.code == 0, done.err + done.out
        shown = fleet.operator("task", "show", "secure", *where, "--json")
        view = json.loads(shown.out)
        assert (view["state"], view["round"]) == ("succeeded", 3)
        assert {one["device"] for one in view["devices"]} == {"d1", "d2"}
        got = fleet.operator("model", "get", "secure", *where, "-o", "model.safetensors")
        assert got.code == 0, got.err
        model = fleet.centre.folder / "model.safetensors"
        assert sum(array.size for array in load_file(model).values()) == 64 * 10 + 10  # softmax on 8 x 8
        measured = fleet.centre.run("model", "evaluate", model.name, "--data", "digits", "--json")
        # Ten classes: chance is 0.1.
        assert json.loads(measured.out)["accuracy"] > 0.6
        # Twenty days are not long: everybody who runs says so.
        named = {"server": "central/server", "gateway": f"{REGION}/gateway", "d1": f"{REGION}/devices/d1"}
        for one, name in (named | ({"broker": "broker"} if own_broker else {})).items():
            assert f"run 'trellis keys renew {name}'" in fleet.running[one].says("WARNING.* in 19 days")


def test_a_region_with_a_broker_of_its_own_and_one_below_it_take_part(ends: Network, tmp_path: Path) -> None:
    with SecureFleet(tmp_path, ends, bridged=True, fronts=True) as fleet:
        # The region with the broker only relays; the one below it averages its one device.
        below = {"tier": "regional", "participants": {"minimum": 1}}
        aggregation = {"regions": {OTHER: below}, "participants": {"minimum": 3}}
        task = fleet.task("bridged", regions=[REGION, OTHER], train={"rounds": 1}, aggregation=aggregation)
        file = fleet.task_file(task)
        where = ("--server", fleet.server_url)
        done = fleet.operator("task", "run", file, *where, "--broker", fleet.broker_url)
        assert done.code == 0, done.err + done.out
        shown = json.loads(fleet.operator("task", "show", "bridged", *where, "--json").out)
        # The server has no other way to know of them: they are on the region's broker alone.
        members = [(f"{one['region']}/{one['device']}", one["online"]) for one in shown["devices"]]
        assert members == [(f"{REGION}/d1", True), (f"{REGION}/d2", True), (f"{OTHER}/gateway", True)]
        assert {one["outcome"] for one in shown["history"][0]["outcomes"]} == {"replied"}

        def silent() -> list[str]:
            said = fleet.operator("logs", "bridged", *where).out
            speakers = (f"{REGION}/d1", f"{OTHER}/d3", f"gateway {OTHER}")
            return [speaker for speaker in speakers if f"  {speaker:<16}  INFO " not in said]

        until(lambda: not silent(), "the log has the lines of all")
        assert " u'eu-1/devices/d1')" in fleet.running["region-broker"].said()
        assert " u'eu-1/devices/" not in fleet.running["broker"].said()
        assert " u'us-1/" not in fleet.running["broker"].said()


@pytest.mark.long
def test_two_regions_average_behind_fronts_of_their_own(ends: Network, tmp_path: Path) -> None:
    with SecureFleet(tmp_path, ends, fronts=True, light=True) as fleet:
        alone = {"tier": "regional", "participants": {"minimum": 1}}
        sections = {"aggregation": {"tier": "regional", "regions": {OTHER: alone}}, "train": {"rounds": 2}}
        file = fleet.task_file(fleet.task("fronts", regions=[REGION, OTHER], **sections))
        where = ("--server", fleet.server_url)
        done = fleet.operator("task", "run", file, *where, "--broker", fleet.broker_url)
        assert done.code == 0, done.err + done.out
        shown = json.loads(fleet.operator("task", "show", "fronts", *where, "--json").out)
        assert shown["state"] == "succeeded"
        for record in shown["history"]:
            replied = {one["region"]: one["tally"]["replied"] for one in record["outcomes"]}
            assert replied == {REGION: 2, OTHER: 1}
        # One device there has no use for PyTorch: its artefact comes by its region's front.
        (used,) = re.findall(r"trains by onnx from artefact ([0-9a-f]{64})", fleet.running["d3"].said())
        assert sent(fleet, "server") == [(used, f"{OTHER}/gateway")]
        assert sent(fleet, "other-gateway") == [(used, f"{OTHER}/devices/d3")]
        assert sent(fleet, "gateway") == []
        # A region's front is for its own devices; this one has another region's certificate.
        link = FlowerLink(
            fleet.front_of(REGION), folder=tmp_path / "link", tls=device_files(fleet, OTHER, "d3")
        )
        with pytest.raises(Refused, match=r"refuses this device: .*other regions than that of") as refusal:
            link.connect()
        assert refusal.value.code == "link"
        warned = fleet.running["gateway"].says("front: .* is not let in")
        assert re.search(rf"{OTHER}/devices/d3", warned)
        asked = FrontClient(fleet.front_of(REGION), tls=device_files(fleet, OTHER, "d3"))
        with pytest.raises(Refused, match=r"other regions than that of .*us-1/devices/d3") as refusal:
            asked.offer("fronts", "onnx")
        assert refusal.value.code == "region"
        # And this one, of the same name, has another fleet's.
        create_authority(tmp_path / "strangers")
        theirs = tls_files(issue(tmp_path / "strangers", device(OTHER, "d3")))
        ca = fleet.keys / "devices" / OTHER / "d3" / "ca.crt"
        asked = FrontClient(fleet.front_of(OTHER), tls=replace(theirs, ca=ca))
        with pytest.raises(Unavailable, match="as it does where its CA has not signed our certificate"):
            asked.offer("fronts", "onnx")
        fleet.running["other-gateway"].says("a TLS connection was refused: .*unable to get local issuer")


def sent(fleet: SecureFleet, front: str) -> list[tuple[str, str]]:
    """Return which artefacts a front has sent, and to whom."""
    return re.findall(
        r"trellis\.artefacts\.serving: artefact ([0-9a-f]{64}): all to (\S+)", fleet.running[front].said()
    )


def device_files(fleet: SecureFleet, region: str, name: str) -> TlsFiles:
    """Return the certificate of a device of the fleet."""
    return tls_files(fleet.keys / "devices" / region / name)
