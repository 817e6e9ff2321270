"""The broker programs that `EmbeddedBroker` can start: mosquitto, or else amqtt."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from dataclasses import dataclass
from pathlib import Path

import yaml

from trellis.errors import ConfigError, Fault, Unavailable
from trellis.processes import terminate_tree
from trellis.tls import TlsFiles

AMQTT = "amqtt==0.12.*"
INSTALL_AMQTT_S = 120.0
INSTALL_HINT = "install mosquitto: `apt install mosquitto` or `brew install mosquitto`"

# Debian puts it where only root's PATH looks.
_MOSQUITTO_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


@dataclass(frozen=True)
class Listener:
    """What the broker shall listen on, whom it lets in, and what each may do."""

    host: str
    port: int
    tls: TlsFiles | None = None
    acl: Path | None = None


def find_mosquitto() -> str | None:
    """Return mosquitto's path, if it is installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_MOSQUITTO_FOLDERS])
    return shutil.which("mosquitto", path=path)


def mosquitto_command(program: str, listener: Listener, folder: Path) -> list[str]:
    """Write mosquitto's configuration into `folder`, and return the command that runs it."""
    lines = [
        "persistence false",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
        "set_tcp_nodelay true",
        # What waits for one client: who subscribes to a fleet gets all that it retains at once. What is
        # beyond a limit mosquitto drops, and tells neither end. Before 2.0.22
        # it takes 0 not for «no limit», but cuts off who publishes what its rights do not allow.
        "max_queued_messages 1000000",
        "max_queued_bytes 134217728",
        "max_packet_size 270336",  # the largest payload of ours, 256 KiB, and its topic
        "memory_limit 536870912",
        f"listener {listener.port} {listener.host}",
        f"allow_anonymous {'false' if listener.tls else 'true'}",
    ]
    if listener.tls is not None:
        lines += [
            f"cafile {_absolute(listener.tls.ca)}",
            f"certfile {_absolute(listener.tls.cert)}",
            f"keyfile {_absolute(listener.tls.key)}",
            "tls_version tlsv1.2",  # mosquitto's word for 1.2 and later
            "require_certificate true",
            "use_identity_as_username true",
        ]
    if listener.acl is not None:
        lines.append(f"acl_file {_absolute(listener.acl)}")
    if os.geteuid() == 0:
        # It would become the user `mosquitto`, who may not read our private key.
        lines.append("user root")
    configuration = folder / "mosquitto.conf"
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [program, "-c", str(configuration)]


async def amqtt_command(listener: Listener, folder: Path) -> list[str]:
    """Install amqtt into an environment below `folder` if need be, and return the command that runs it.

    An environment of its own, because amqtt's typer pin and flwr's cannot be met in one. The broker
    is started from there and not by `uv run`: uv does not pass a SIGKILL on, and leaves an orphan.
    """
    python = folder / "amqtt" / "bin" / "python"
    installed = folder / "amqtt" / "installed"
    if not (python.exists() and installed.exists() and installed.read_text(encoding="utf-8") == AMQTT):
        uv = find_uv()
        if uv is None:
            raise Unavailable(f"no broker found: neither mosquitto nor uv is installed; {INSTALL_HINT}")
        await _uv([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder / "amqtt")])
        await _uv([uv, "pip", "install", "--quiet", "--python", str(python), AMQTT])
        installed.write_text(AMQTT, encoding="utf-8")
    configuration = folder / "amqtt.yaml"
    address = f"[{listener.host}]" if ":" in listener.host else listener.host
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"{address}:{listener.port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    configuration.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return [str(python), "-m", "amqtt.scripts.broker_script", "-c", str(configuration)]


def find_uv() -> str | None:
    """Return the path of uv: beside this Python, where flwr brings it, or on the PATH."""
    beside = Path(sys.executable).parent / "uv"
    if beside.exists():
        return str(beside)
    try:
        from uv import find_uv_bin  # noqa: PLC0415 - not everywhere installed

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


async def _uv(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(INSTALL_AMQTT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise Unavailable(f"installing amqtt took over {INSTALL_AMQTT_S:g} s; {INSTALL_HINT}") from None
    finally:
        if process.returncode is None:
            await asyncio.to_thread(terminate_tree, process.pid, grace_s=1.0)
            await process.wait()
    if process.returncode != 0:
        tail = output.decode(errors="replace").strip()[-500:]
        raise Unavailable(f"no mosquitto here, and amqtt cannot be installed: {tail}; {INSTALL_HINT}")


def _absolute(path: Path) -> str:
    text = str(path.absolute())
    if "\n" in text or "\r" in text:
        raise ConfigError("embedded broker", [Fault("path", f"{text!r} has a line break in it")])
    return text
