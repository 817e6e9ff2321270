"""What the machine has: Python, packages, ports, disk, memory."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import psutil

from trellis.cli.doctor.check import Check, failure, ok, skipped, warning
from trellis.processes import port_owner

MIN_PYTHON = (3, 11)
FLWR = "1.41"
"""The release that this one is written for; `trellis/flower/node.py` stands on its Fleet client."""

EXTRAS = {
    "torch": ("torch", "training on a device, and evaluation and aggregation at the server"),
    "onnxruntime": ("onnx", "training on a device with ONNX Runtime"),
    "ai-edge-litert": ("tflite", "training on a device with LiteRT"),
    "litert-torch": ("export", "models as ONNX and TFLite files, for devices without PyTorch"),
    "tensorboard": ("server", "TensorBoard events at the server"),
    "pillow": ("images", "data in folders of images"),
}
"""Optional packages: the extra that brings each, and what it is for."""

BACKENDS = ("torch", "onnxruntime", "ai-edge-litert")

GIB, MIB = 2**30, 2**20


def python() -> list[Check]:
    """Look at Python and flwr."""
    version = ".".join(map(str, sys.version_info[:3]))
    due = ".".join(map(str, MIN_PYTHON))
    if sys.version_info >= MIN_PYTHON:
        checks = [ok("python", f"{version} at {sys.executable}")]
    else:
        checks = [failure("python", f"{version}, due is {due} or newer", "install a newer Python")]
    return [*checks, _flwr()]


def _flwr() -> Check:
    remedy = f"pip install 'flwr=={FLWR}.*'"
    found = _version("flwr")
    if found is None:
        return failure("flwr", "not installed", remedy)
    if found.split(".")[:2] != FLWR.split("."):
        return failure("flwr", f"{found}, this release knows {FLWR}", remedy)
    return ok("flwr", found)


def extras() -> list[Check]:
    """Look at the optional packages, without importing any."""
    checks = [_extra(package) for package in EXTRAS]
    if not any(_version(package) for package in BACKENDS):
        found = "no training backend is installed: a device cannot train here, nor a server evaluate"
        checks.append(warning("extras", found, "pip install 'trellis-fl[torch]'"))
    return checks


def _extra(package: str) -> Check:
    name, (extra, purpose) = f"extra.{package}", EXTRAS[package]
    version = _version(package)
    if version is None:
        return skipped(name, f"not installed; it is for {purpose}", f"pip install 'trellis-fl[{extra}]'")
    build = f", {_torch_build()}" if package == "torch" else ""
    return ok(name, f"{version}{build}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_build() -> str:
    # Read, not imported: importing torch takes seconds, and memory that a device may not have.
    spec = importlib.util.find_spec("torch")
    try:
        text = Path(spec.origin or "").with_name("version.py").read_text(encoding="utf-8") if spec else ""
    except OSError:
        text = ""
    for kind in ("cuda", "hip", "xpu"):
        if found := re.search(rf"^{kind}\b[^=\n]*= *['\"]([^'\"]+)['\"]", text, re.MULTILINE):
            return f"{kind.upper()} {found[1]} build"
    return "CPU build" if text else "build unknown"


def ports(due: Mapping[int, str], answering: Collection[int]) -> Iterator[Check]:
    """Look at our ports.

    Args:
        due: What each is for.
        answering: Those on this machine where what was asked for has answered.
    """
    for port, purpose in due.items():
        name = f"port.{port}"
        if not _taken(port):
            yield ok(name, f"free ({purpose})")
            continue
        owner = port_owner(port)
        by = f"taken by {owner}" if owner else "taken by a process of another user"
        if port in answering or _is_ours(port):
            yield ok(name, f"{by}, of Trellis ({purpose})")
        else:
            yield warning(name, f"{by} ({purpose})", _port_remedy(purpose))


def _port_remedy(purpose: str) -> str:
    if purpose == "broker":
        return "if it is your MQTT broker, all is well: check it with --broker URL"
    return "end it, or choose another port if this machine is to run that service"


def _taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # With it, Linux refuses only ports on which somebody listens, and none in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


def _is_ours(port: int) -> bool:
    """Whether a `trellis` command listens there, or the broker that it has started."""
    try:
        found = [one for one in psutil.net_connections(kind="tcp") if one.laddr and one.laddr.port == port]
        pids = [one.pid for one in found if one.status == psutil.CONN_LISTEN and one.pid is not None]
        return any(_runs_trellis(process) for pid in pids for process in _with_parent(pid))
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return False


def _with_parent(pid: int) -> Iterator[psutil.Process]:
    process = psutil.Process(pid)
    yield process
    if (parent := process.parent()) is not None:
        yield parent


def _runs_trellis(process: psutil.Process) -> bool:
    words = process.cmdline()[:4]
    return any(Path(word).name == "trellis" for word in words) or words[1:3] == ["-m", "trellis"]


def disk(name: str, folder: Path) -> Check:
    """Look at the space below `folder`, or where it will be."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    where = str(folder) if folder.exists() else f"{folder}, which is not there yet"
    if not os.access(there, os.W_OK):
        return failure(name, f"{there} cannot be written", f"give this user the right to write in {there}")
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return failure(name, f"{there}: {error.strerror}", "mend that disk, or name another folder")
    found = f"{_size(free)} free for {where}"
    remedy = "make room, or name a folder on another disk"
    if free < 100 * MIB:
        return failure(name, found, remedy)
    return warning(name, found, remedy) if free < GIB else ok(name, found)


def memory() -> list[Check]:
    """Look at the memory that is available."""
    state = psutil.virtual_memory()
    found = f"{_size(state.available)} of {_size(state.total)} available"
    remedy = "end other programs: a device needs about 320 MiB with PyTorch"
    if state.available < 128 * MIB:
        return [failure("memory", found, remedy)]
    return [warning("memory", found, remedy) if state.available < 512 * MIB else ok("memory", found)]


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
