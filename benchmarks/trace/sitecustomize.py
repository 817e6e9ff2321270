"""Notes every HTTP request and every flush to disk of a Python process, where BENCH_TRACE names a file.

Python imports this module by itself at its start, in each process that has this folder on its PYTHONPATH.
One JSON line an event: when it began (seconds since the epoch), how long it took, by whom, and what it was.
"""

import json
import os
import sys
import time

_FILE = os.environ.get("BENCH_TRACE")


def _install(file: str) -> None:
    import httpx  # noqa: PLC0415 - only where a trace is wanted

    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    send, send_async, fsync = httpx.Client.send, httpx.AsyncClient.send, os.fsync

    def note(began: float, what: str) -> None:
        line = {"at": began, "s": time.time() - began, "pid": os.getpid(), "argv": sys.argv[:4], "what": what}
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    def traced_send(self, request, **options):  # type: ignore[no-untyped-def]
        began = time.time()
        try:
            return send(self, request, **options)
        finally:
            note(began, f"{request.method} {request.url.path}")

    async def traced_send_async(self, request, **options):  # type: ignore[no-untyped-def]
        began = time.time()
        try:
            return await send_async(self, request, **options)
        finally:
            note(began, f"{request.method} {request.url.path}")

    def traced_fsync(number):  # type: ignore[no-untyped-def]
        began = time.time()
        try:
            fsync(number)
        finally:
            note(began, "fsync")

    httpx.Client.send = traced_send  # type: ignore[method-assign]
    httpx.AsyncClient.send = traced_send_async  # type: ignore[method-assign]
    os.fsync = traced_fsync


if _FILE:
    _install(_FILE)
