"""`trellis keys`, as an operator types it."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from trellis.envelope import Keyring
from trellis.errors import ConfigError, InvalidInput
from trellis.keys.command import add_device, app
from trellis.keys.identity import Identity


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    run("init", tmp_path / "keys", "--region", "eu-1", "--region", "us-1", "--host", "10.0.0.5")
    return tmp_path / "keys"


def test_init_makes_everybody_but_the_devices(keys: Path) -> None:
    assert {str(path.parent.relative_to(keys)) for path in keys.rglob("tls.crt")} == {
        "server", "broker", "operator", "gateways/eu-1", "gateways/us-1",
    }  # fmt: skip
    assert (keys / "ca" / "ca.key").exists()


def test_everybody_pins_the_operator_that_init_made(keys: Path) -> None:
    run("device", "cam-7", "--region", "eu-1", "--keys", keys)
    rings = [Keyring.load([path]).keyids for path in keys.rglob("operator.pub")]
    assert len(rings) == 6
    assert len(set(rings)) == 1


def test_init_twice_refuses_and_says_what_to_do(keys: Path) -> None:
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"never overwritten.*trellis keys device") as error:
        run("init", keys)
    assert error.value.exit_code == 2
    assert {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [("--region", "central"), ("--region", "EU"), ("--host", "a b"), ("--days", "0"), ("--days", "9999")],
)
def test_init_with_a_bad_option_writes_nothing(tmp_path: Path, arguments: tuple[str, str]) -> None:
    with pytest.raises(InvalidInput):
        run("init", tmp_path / "keys", *arguments)
    assert not list(tmp_path.rglob("*.key"))


def test_device_and_gateway_are_added_and_said_to_be_copied(keys: Path) -> None:
    told = run("device", "cam-7", "--region", "eu-1", "--keys", keys)
    folder = keys / "devices" / "eu-1" / "cam-7"
    assert f"copy {folder} to the device" in told
    assert f"{keys / 'broker' / 'acl'} to the broker" in told
    assert Identity.load(folder).common_name == "eu-1/devices/cam-7"
    made = json.loads(run("gateway", "ap-1", "--keys", keys, "--host", "10.0.1.5", "--json"))
    assert made == {"keys": str(keys), "made": [str(keys / "gateways" / "ap-1")]}


def test_show_lists_who_and_until_when(keys: Path) -> None:
    rows = json.loads(run("show", keys, "--json"))
    names = {row["name"] for row in rows if not row["name"].startswith("Trellis CA ")}
    assert names == {"central/server", "broker", "operator", "eu-1/gateway", "us-1/gateway"}
    assert {row["days_left"] for row in rows} == {364, 3649}
    assert "us-1/gateway" in run("show", keys)
    (own,) = json.loads(run("show", keys / "server", "--json"))
    assert own["name"] == "central/server"


def test_show_of_a_folder_without_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no certificates"):
        run("show", tmp_path)


def test_the_brokers_list_follows_every_change(keys: Path) -> None:
    acl = keys / "broker" / "acl"
    users = [line for line in acl.read_text().splitlines() if line.startswith("user ")]
    assert users == ["user eu-1/gateway", "user us-1/gateway", "user operator", "user central/server"]
    run("device", "cam-7", "--region", "eu-1", "--keys", keys)
    assert "user eu-1/devices/cam-7\n" in acl.read_text()
    (keys / "devices" / "eu-1" / "cam-7").rename(keys.parent / "retired")
    run("acl", keys)
    assert "cam-7" not in acl.read_text()


def test_replicas_are_made_at_once_and_those_that_are_there_stay(keys: Path) -> None:
    arguments = ("device", "sim", "--region", "eu-1", "--keys", keys, "--json", "--replicas")
    first = json.loads(run(*arguments, 2))["made"]
    assert first == [str(keys / "devices" / "eu-1" / name) for name in ("sim-1", "sim-2")]
    before = (keys / "devices" / "eu-1" / "sim-1" / "tls.key").read_bytes()
    assert json.loads(run(*arguments, 3))["made"] == [str(keys / "devices" / "eu-1" / "sim-3")]
    assert (keys / "devices" / "eu-1" / "sim-1" / "tls.key").read_bytes() == before
    assert Identity.load(keys / "devices" / "eu-1" / "sim-3").common_name == "eu-1/devices/sim-3"
    acl = (keys / "broker" / "acl").read_text()
    assert all(f"user eu-1/devices/sim-{number}\n" in acl for number in (1, 2, 3))


def test_a_list_for_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file or directory: give the folder"):
        run("acl", tmp_path / "keys")


def test_the_brokers_list_stands_below_the_topics_base(tmp_path: Path) -> None:
    run("init", tmp_path / "keys", "--base", "acme/fl")
    topics = [
        line.split()[2]
        for line in (tmp_path / "keys" / "broker" / "acl").read_text().splitlines()
        if line.startswith("topic ")
    ]
    assert topics == ["acme/fl/#", "acme/fl/#", "acme/fl/central/#"]
    with pytest.raises(ConfigError, match="topic base"):
        run("acl", tmp_path / "keys", "--base", "acme/#")


def test_the_topics_base_stays_as_machines_come_until_it_is_given_anew(tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    def bases() -> set[str]:
        lines = (keys / "broker" / "acl").read_text().splitlines()
        return {line.split()[2].split("/")[0] for line in lines if line.startswith("topic ")}

    run("init", keys, "--base", "acme/v1")
    for command in (
        ("init", keys, "--region", "us-1"),
        ("gateway", "eu-1", "--keys", keys),
        ("device", "cam-7", "--region", "eu-1", "--keys", keys),
        ("device", "sim", "--replicas", 2, "--region", "eu-1", "--keys", keys),
        ("acl", keys),
    ):
        run(*command)
        assert bases() == {"acme"}, command
    run("acl", keys, "--base", "trellis/v1")
    assert bases() == {"trellis"}
    run("acl", keys)
    assert bases() == {"trellis"}


def rights(keys: Path, name: str) -> set[str]:
    blocks = (keys / "broker" / "acl").read_text().split("\n\n")
    return {line for block in blocks if f"user {name}\n" in block for line in block.splitlines()[1:]}


def test_a_bridged_regions_gateway_may_write_its_devices_topics_and_no_others(keys: Path) -> None:
    plain = rights(keys, "eu-1/gateway")
    run("acl", keys, "--bridged", "eu-1")
    assert rights(keys, "eu-1/gateway") - plain == {"topic readwrite trellis/v1/eu-1/devices/#"}
    assert not [right for right in rights(keys, "us-1/gateway") if "devices" in right and "write" in right]


def test_a_region_stays_bridged_when_machines_come_and_go(keys: Path) -> None:
    run("acl", keys, "--bridged", "eu-1")
    bridged = rights(keys, "eu-1/gateway")
    run("device", "cam-7", "--region", "eu-1", "--keys", keys)
    run("acl", keys)
    assert rights(keys, "eu-1/gateway") == bridged
    run("acl", keys, "--bridged", "us-1")
    assert rights(keys, "eu-1/gateway") < bridged
    assert "topic readwrite trellis/v1/us-1/devices/#" in rights(keys, "us-1/gateway")


def test_a_gateway_reads_what_stands_below_and_above_it_and_stays_so_as_machines_come_and_go(
    keys: Path,
) -> None:
    run("gateway", "ap-1", "--keys", keys)
    alone = {name: rights(keys, f"{name}/gateway") for name in ("eu-1", "us-1", "ap-1")}
    run("acl", keys, "--below", "us-1=eu-1", "--below", "ap-1=us-1")
    of_devices = ("state", "info", "tasks/+/execution", "tasks/+/log")
    said = ("gateway/#", "tasks/#", *(f"devices/+/{what}" for what in of_devices))
    nested = {f"topic read trellis/v1/{region}/{of}" for region in ("us-1", "ap-1") for of in said}
    assert rights(keys, "eu-1/gateway") - alone["eu-1"] == nested
    above = {f"topic read trellis/v1/{region}/{of}" for region in ("us-1", "eu-1") for of in said[:2]}
    assert rights(keys, "ap-1/gateway") - alone["ap-1"] == above
    run("device", "cam-7", "--region", "ap-1", "--keys", keys)
    run("acl", keys, "--bridged", "us-1")
    assert rights(keys, "eu-1/gateway") - alone["eu-1"] == nested
    assert {f"topic readwrite trellis/v1/ap-1/{of}" for of in said} < rights(keys, "us-1/gateway")
    run("acl", keys, "--below", "ap-1=us-1")
    assert rights(keys, "eu-1/gateway") == alone["eu-1"]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["eu-1"], "must be SITE=COUNTRY"),
        (["eu-1="], "must be SITE=COUNTRY"),
        (["eu-1=ap-1"], "ap-1 has no gateway in these keys"),
        (["eu-1=us-1", "us-1=eu-1"], "us-1 would stand below itself"),
        (["eu-1=eu-1"], "eu-1 would stand below itself"),
        (["eu-1=us-1", "eu-1=ap-1"], "eu-1 stands below us-1 already"),
    ],
)
def test_a_hierarchy_that_cannot_be_is_refused(keys: Path, pairs: list[str], said: str) -> None:
    before = (keys / "broker" / "acl").read_text()
    with pytest.raises(ConfigError, match=said):
        run("acl", keys, *(part for pair in pairs for part in ("--below", pair)))
    assert (keys / "broker" / "acl").read_text() == before
    assert not (keys / "broker" / "below").exists()


def test_a_region_without_a_gateway_cannot_be_bridged(keys: Path) -> None:
    before = (keys / "broker" / "acl").read_text()
    with pytest.raises(ConfigError, match="ap-1 has no gateway in these keys"):
        run("acl", keys, "--bridged", "eu-1", "--bridged", "ap-1")
    assert (keys / "broker" / "acl").read_text() == before
    assert not (keys / "broker" / "bridged").exists()


def test_devices_added_at_once_are_all_in_the_brokers_list(keys: Path) -> None:
    names = [f"cam-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_device(name, region="eu-1", keys=keys), names, timeout=60))
    acl = (keys / "broker" / "acl").read_text()
    assert [name for name in names if f"user eu-1/devices/{name}\n" not in acl] == []


def test_a_device_can_be_added_where_the_brokers_folder_has_gone(keys: Path) -> None:
    (keys / "broker").rename(keys.parent / "away")
    assert "acl" not in run("device", "cam-7", "--region", "eu-1", "--keys", keys)
    assert not (keys / "broker").exists()


def test_an_interrupted_init_is_completed_and_what_was_made_stays(tmp_path: Path) -> None:
    keys, asked = tmp_path / "keys", ("--region", "eu-1=10.1.0.2", "--host", "10.0.0.5")
    run("init", keys, *asked)
    shutil.rmtree(keys / "gateways")
    shutil.rmtree(keys / "broker")
    (keys / "server").rename(tmp_path / "aside")
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    made = json.loads(run("init", keys, *asked, "--json"))["made"]
    assert made == [str(keys / name) for name in ("server", "broker", "gateways/eu-1")]
    assert names_of(keys / "server") == {"10.0.0.5"}
    assert {path: path.read_bytes() for path in before} == before
    assert (keys / "server" / "tls.key").read_bytes() != (tmp_path / "aside" / "tls.key").read_bytes()
    assert "user eu-1/gateway\n" in (keys / "broker" / "acl").read_text()


def test_an_init_that_ended_after_the_ca_is_completed(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    run("init", keys)
    for name in ("operator", "server", "broker"):
        shutil.rmtree(keys / name)
    ca = (keys / "ca" / "ca.key").read_bytes()
    run("init", keys, "--region", "eu-1")
    assert (keys / "ca" / "ca.key").read_bytes() == ca
    assert {Identity.load(path.parent).common_name for path in keys.rglob("tls.crt")} == {
        "operator", "central/server", "broker", "eu-1/gateway",
    }  # fmt: skip


def test_an_init_that_ended_before_the_list_is_completed(keys: Path) -> None:
    (keys / "broker" / "acl").unlink()
    assert json.loads(run("init", keys, "--json"))["made"] == []
    assert "user central/server\n" in (keys / "broker" / "acl").read_text()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("operator", r"has no operator/, whose key server, broker.* pin: bring it back"),
        ("ca", r"without the ca/"),
    ],
)
def test_what_nobody_can_make_again_is_to_be_brought_back(keys: Path, lost: str, said: str) -> None:
    shutil.rmtree(keys / lost)
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=said):
        run("init", keys)
    assert {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()} == before


def test_renew_says_what_it_renewed_until_when_and_what_to_do(keys: Path) -> None:
    assert "nothing in" in run("renew", "--keys", keys)
    told = run("renew", "central/server", "broker", "--host", "10.0.0.9", "--days", "20", "--keys", keys)
    until = Identity.load(keys / "server").not_after
    assert dt.timedelta(days=19) < until - dt.datetime.now(dt.UTC) <= dt.timedelta(days=20)
    assert f"renewed {keys / 'server'}: central/server until {until:%Y-%m-%d}" in told
    assert "copy ca.crt and tls.crt of each to its machine, and restart what runs there" in told
    assert names_of(keys / "server") == names_of(keys / "broker") == {"10.0.0.9"}
    assert json.loads(run("renew", "--keys", keys, "--json")) == {
        "keys": str(keys),
        "renewed": [str(keys / "broker"), str(keys / "server")],
    }
    assert "nothing in" in run("renew", "--keys", keys)
    told = run("renew", "ca", "--keys", keys)
    assert f"renewed {keys / 'ca'}: Trellis CA " in told
    assert "each machine gets the CA's new ca.crt" in told
    assert "restart" not in told  # least of all is anything of keys/ca to be copied


@pytest.mark.parametrize("command", ["init", "gateway", "device", "renew", "show", "acl"])
def test_help_has_an_example(command: str) -> None:
    assert f"trellis keys {command}" in run(command, "--help")


def names_of(folder: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found} - {"localhost", "127.0.0.1", "::1"}


def test_a_gateway_is_certified_for_its_own_hosts_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    run(
        "init",
        keys,
        "--region",
        "eu-1=10.1.0.2",
        "--region",
        "us-1",
        "--host",
        "10.0.0.5",
        "--host",
        "fl.org",
    )
    assert names_of(keys / "server") == names_of(keys / "broker") == {"10.0.0.5", "fl.org"}
    assert names_of(keys / "gateways" / "eu-1") == {"10.1.0.2"}
    assert names_of(keys / "gateways" / "us-1") == set()
