"""What a tier's app writes to its output."""

from __future__ import annotations

import logging
import sys


def configure_app_log() -> None:
    """Log to stdout, without the lines that Flower would upload for nothing.

    Flower uploads what an app writes, and httpx writes a line for every upload: it would never be quiet.
    Strategies write some every round, of which ours say more.
    """
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "flwr"):
        logging.getLogger(name).setLevel(logging.WARNING)
