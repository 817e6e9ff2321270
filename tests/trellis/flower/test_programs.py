"""What Flower's programs inherit."""

from __future__ import annotations

from pathlib import Path

import pytest

from trellis.flower.programs import environment

OWN = "127.0.0.1,localhost,::1"
HTTP, SOCKS = "http://proxy:3128", "socks5h://proxy:1080"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ({}, OWN),
        ({"NO_PROXY": "10.0.0.0/8,.lan"}, f"{OWN},10.0.0.0/8,.lan"),
        ({"no_proxy": ".lan"}, f"{OWN},.lan"),
        ({"no_proxy": ".lan", "NO_PROXY": ".org"}, f"{OWN},.lan"),
        ({"no_proxy": "*"}, f"{OWN},*"),
    ],
)
def test_what_a_machine_sends_past_its_proxy_goes_past_it_still_and_loopback_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], due: str
) -> None:
    monkeypatch.setenv("https_proxy", HTTP)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    inherited = environment(tmp_path)
    assert (inherited["no_proxy"], inherited["NO_PROXY"], inherited["https_proxy"]) == (due, due, HTTP)


def test_a_proxy_that_flowers_client_cannot_speak_with_is_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", SOCKS)
    monkeypatch.setenv("all_proxy", SOCKS)
    monkeypatch.setenv("HTTP_PROXY", HTTP)
    inherited = environment(tmp_path)
    assert {"ALL_PROXY", "all_proxy"} & inherited.keys() == set()
    assert inherited["HTTP_PROXY"] == HTTP
