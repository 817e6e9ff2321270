"""A mosquitto that runs the configuration from `deploy/`, with only its paths, address and port replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[2] / "deploy" / "mosquitto" / "mosquitto.conf"


def program(name: str) -> str:
    """Return a program's path: without it a test is skipped, and in CI it fails."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and CI must not skip what needs it")
        pytest.skip(f"{name} is not installed")
    return path


def configuration(identity: Path, folder: Path, host: str, port: int) -> str:
    """Return the shipped file for the broker whose keys and ACL lie in `identity`, its database in `folder`.

    Every replacement must hit, or the test would try something else.
    """
    text = SHIPPED.read_text(encoding="utf-8")
    for shipped, here in {
        "listener 8883\n": f"listener {port} {host}\n",
        " /etc/mosquitto/trellis/": f" {identity}/",
        "persistence_location /var/lib/mosquitto/": f"persistence_location {folder}/",
    }.items():
        assert shipped in text
        text = text.replace(shipped, here)
    # Root would become the user `mosquitto`, who may not enter our temporary folder.
    return text + ("user root\n" if os.geteuid() == 0 else "")
