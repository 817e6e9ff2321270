"""What a running service says of the ends of its certificates."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from trellis.errors import ConfigError
from trellis.keys import certificates, expiry
from trellis.keys.authority import issue
from trellis.keys.expiry import reminding
from trellis.keys.principals import gateway
from trellis.keys.renewal import renew
from trellis.tls import TlsFiles

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
Reissue = Callable[[Path, dt.datetime, dt.datetime], None]


@pytest.fixture
def folder(root: Path) -> Path:
    return issue(root, gateway("eu-1"))


def files(folder: Path) -> TlsFiles:
    return TlsFiles(ca=folder / "ca.crt", cert=folder / "tls.crt", key=folder / "tls.key")


async def said(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what is logged at the start."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trellis.keys.expiry"):
        async with reminding(files(folder)):
            await asyncio.sleep(0)
    return caplog.messages


async def test_below_thirty_days_it_says_who_ends_when_and_the_command(
    folder: Path, reissue: Reissue, caplog: pytest.LogCaptureFixture
) -> None:
    assert await said(folder, caplog) == []
    reissue(folder, NOW - DAY, NOW + 31 * DAY)
    assert await said(folder, caplog) == []
    end = NOW + 29 * DAY + dt.timedelta(hours=1)
    reissue(folder, NOW - DAY, end)
    assert await said(folder, caplog) == [
        f"certificate of 'eu-1/gateway' ends {end:%Y-%m-%d %H:%M UTC}, in 29 days: run 'trellis keys renew "
        f"eu-1/gateway' where the CA's key is, copy ca.crt and tls.crt to {folder}, and restart this"
    ]
    reissue(folder, NOW - 3 * DAY, NOW - DAY)
    assert "certificate of 'eu-1/gateway' has ended: " in (await said(folder, caplog))[0]


async def test_it_is_said_again_and_again_though_the_file_is_new_until_it_is_started_anew(
    root: Path,
    folder: Path,
    reissue: Reissue,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert expiry._AGAIN_S == 24 * 60 * 60
    monkeypatch.setattr(expiry, "_AGAIN_S", 0.01)
    reissue(folder, NOW - DAY, NOW + 3 * DAY)
    with caplog.at_level(logging.WARNING, "trellis.keys.expiry"):
        async with reminding(files(folder)), asyncio.timeout(30):
            renew(root, ["eu-1/gateway"])
            while len(caplog.messages) < 3:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.01)
    assert len(set(caplog.messages)) == 1
    assert await said(folder, caplog) == []


async def test_a_ca_certificate_that_is_older_than_the_machines_own_is_told_too(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "CA_DAYS", 20)
        renew(root, ["ca"])
    (line,) = await said(folder, caplog)
    assert line.startswith("certificate of the CA ends ")
    assert "'trellis keys renew ca'" in line


async def test_a_service_that_is_cancelled_as_it_ends_stays_cancelled(folder: Path) -> None:
    loop = asyncio.get_running_loop()

    async def serve() -> None:
        async with reminding(files(folder)):
            # Comes while the end of the block waits for what reminds.
            loop.call_soon(service.cancel)
        await asyncio.sleep(60)

    service = asyncio.create_task(serve())
    done, _ = await asyncio.wait([service], timeout=30)
    assert done, "the cancellation was lost"
    assert service.cancelled()


async def test_without_tls_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async with reminding(None):
        await asyncio.sleep(0)
    assert caplog.messages == []


async def test_a_certificate_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.crt: No such file"):
        async with reminding(files(tmp_path)):
            pass
