"""Flower's own programs as our children: where they are, what they inherit, and what a killed one leaves."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from trellis.errors import ConfigError
from trellis.processes import terminate_tree

_LOOPBACK = "127.0.0.1,localhost,::1"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

logger = logging.getLogger(__name__)


def program(name: str) -> str:
    """Return the path of one of Flower's programs.

    Raises:
        ConfigError: It is not beside this Python.
    """
    found = Path(sys.executable).parent / name
    if not found.exists():
        raise ConfigError(f"{name!r}", f"is not beside {sys.executable}: pip install trellis-fl there")
    return str(found)


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a Flower program inherits: this process's environment, a home of its own, and `more`.

    The machine's proxy stays what it is, but for loopback, where Flower's programs speak with each other.
    """
    # flower-superlink and flower-supernode start flower-superexec by its bare name: it must be found beside
    # our Python.
    bin_folder = str(Path(sys.executable).parent)
    return {
        **{name: value for name, value in os.environ.items() if not _is_socks(name, value)},
        **_past_proxies(),
        "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        **(more or {}),
    }


def _is_socks(name: str, value: str) -> bool:
    # At one of these httpx, which Flower's clients are made of, ends at once, wherever the request would go.
    return name.lower().endswith("_proxy") and value.lower().startswith("socks")


def _past_proxies() -> dict[str, str]:
    # The lower case counts where both are given.
    said = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    hosts = ",".join([_LOOPBACK, said] if said else [_LOOPBACK])
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def end_orphans(home: Path) -> None:
    """End what still runs with `home` as Flower's home: SuperExec and apps whose parent was killed."""
    for process in psutil.process_iter(["environ"]):
        inherited = process.info["environ"] or {}
        if inherited.get("FLWR_HOME") == str(home) and process.pid != os.getpid():
            logger.info("ending pid=%d, left behind by an earlier Flower process", process.pid)
            terminate_tree(process.pid, grace_s=1.0)


def log_tail(log: Path) -> str:
    """Return the end of a program's log in one line, for an error that quotes it."""
    if not log.exists():
        return "it wrote no log"
    return "…" + " ".join(_COLOUR.sub("", log.read_text(errors="replace")).split())[-600:]
