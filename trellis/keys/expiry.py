"""The end of certificates: services tell of it daily from a month before, `trellis keys renew` mends it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from trellis.keys.certificates import LEAF_DAYS
from trellis.keys.identity import common_name_of
from trellis.keys.register import certificate_in
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

SOON = dt.timedelta(days=30)
CA_SOON = dt.timedelta(days=LEAF_DAYS) + SOON
"""No certificate outlives its CA's: from then on what is issued would be cut short."""
_AGAIN_S = 24 * 3600.0


@contextlib.asynccontextmanager
async def reminding(tls: TlsFiles | None) -> AsyncIterator[None]:
    """Log a warning a day while these certificates end within 30 days, from now to the end of the block.

    Raises:
        ConfigError: One cannot be read.
    """
    if tls is None:
        yield
        return
    own = certificate_in(tls.cert)
    # What runs holds to what it has loaded, whatever is copied over the files meanwhile.
    ends = {common_name_of(own): own.not_valid_after_utc, "ca": certificate_in(tls.ca).not_valid_after_utc}
    task = asyncio.create_task(_remind(ends, tls.cert.parent), name="ends of certificates")
    try:
        yield
    finally:
        task.cancel()
        # Not awaited itself: that would take a cancellation of whoever waits for the task's own.
        await asyncio.wait([task])


async def _remind(ends: dict[str, dt.datetime], folder: Path) -> None:
    while True:
        now = dt.datetime.now(dt.UTC)
        for name, end in ends.items():
            if end < now + SOON:
                logger.warning("%s", _told(name, end, now, folder))
        await asyncio.sleep(_AGAIN_S)


def _told(name: str, end: dt.datetime, now: dt.datetime, folder: Path) -> str:
    whose = "of the CA" if name == "ca" else f"of {name!r}"
    when = f"ends {end:%Y-%m-%d %H:%M UTC}, in {(end - now).days} days" if now < end else "has ended"
    return (
        f"certificate {whose} {when}: run 'trellis keys renew {name}' where the CA's key is, copy ca.crt and "
        f"tls.crt to {folder}, and restart this"
    )
