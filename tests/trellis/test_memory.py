from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_is_free_below_something_that_is_not_goes_back_to_the_system() -> None:
    code = (
        "import psutil; from trellis.memory import give_back_free_memory\n"
        "rss = lambda: psutil.Process().memory_info().rss / 1e6\n"
        # Python takes blocks of more than 512 bytes from the C library; the last one keeps the rest there.
        "blocks = [bytes(1000) for _ in range(60_000)]; last = blocks[-1]; blocks.clear()\n"
        "before = rss(); give_back_free_memory(); print(before - rss())"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) > 40  # of 60 MB
