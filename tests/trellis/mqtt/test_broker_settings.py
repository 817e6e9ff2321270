"""Broker URLs, and what may not be connected to."""

from __future__ import annotations

from pathlib import Path

import pytest

from trellis.errors import ConfigError
from trellis.mqtt import BrokerSettings, TlsFiles
from trellis.tls import client_context

FILES = TlsFiles(Path("ca.crt"), Path("a.crt"), Path("a.key"))


@pytest.mark.parametrize(
    ("url", "host", "port", "encrypted"),
    [
        ("mqtt://127.0.0.1", "127.0.0.1", 1883, False),
        ("mqtt://localhost:1999/", "localhost", 1999, False),
        ("mqtt://[::1]", "::1", 1883, False),
        ("mqtts://broker.example", "broker.example", 8883, True),
        ("mqtts://10.0.0.5:9883", "10.0.0.5", 9883, True),
    ],
)
def test_a_url_names_host_port_and_encryption(url: str, host: str, port: int, encrypted: bool) -> None:
    settings = BrokerSettings(url, "a", tls=FILES)
    assert (settings.host, settings.port, settings.encrypted) == (host, port, encrypted)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:1883", "must start with mqtt://"),
        ("http://127.0.0.1", "must start with mqtt://"),
        ("mqtt://", "names no host"),
        ("mqtt://127.0.0.1:x", "is no URL"),
        ("mqtt://127.0.0.1:0", "has port 0"),
        ("mqtt://127.0.0.1/path", "goes on after the port"),
        ("mqtt://10.0.0.5", "is not encrypted, and 10.0.0.5 is not this machine"),
        ("mqtt://broker.example:1883", "use mqtts://broker.example"),
    ],
)
def test_a_url_that_cannot_be_used_is_named_with_its_remedy(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        BrokerSettings(url, "a", tls=FILES)
    assert caught.value.faults[0].field == "broker"
    assert caught.value.faults[0].remedy


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="holds a user or password") as caught:
        BrokerSettings("mqtts://me:hunter2@broker.example", "a", tls=FILES)
    assert "hunter2" not in str(caught.value)


def test_encryption_needs_files() -> None:
    with pytest.raises(ConfigError, match="needs TLS files"):
        BrokerSettings("mqtts://broker.example", "a")


def test_missing_files_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        client_context(FILES)
    assert [fault.field for fault in caught.value.faults] == ["tls.ca", "tls.cert", "tls.key"]


def test_files_that_are_no_pem_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("ca", "cert", "key")]
    for path in paths:
        path.write_text("nothing", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tls.ca: .* holds no PEM certificate"):
        client_context(TlsFiles(*paths))
