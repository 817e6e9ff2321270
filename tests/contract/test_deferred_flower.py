"""Flower's deferred packages against the real ones: what they give is the same, what they load is little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("flwr", "flwr.common", "flwr.client")
TELL = """
import importlib, json, sys
def told(value):
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(value).partition(" at 0x")[0]
"""


def ran(code: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", TELL + code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_name_of_a_deferred_package_is_the_real_ones() -> None:
    real = ran(
        f"for name in {PACKAGES!r}: importlib.import_module(name)\n"
        # Not its modules: which of them are attributes depends on what else has been imported.
        "kept = lambda name, value: not (name.startswith('_') or hasattr(value, '__spec__'))\n"
        "names = lambda package: [name for name, value in vars(package).items() if kept(name, value)]\n"
        f"print(json.dumps({{p: {{n: told(getattr(sys.modules[p], n)) for n in names(sys.modules[p])}} "
        f"for p in {PACKAGES!r}}}))"
    )
    assert len(real["flwr.common"]) > 40
    deferred = ran(
        "from trellis.flower.deferred import defer_unused; defer_unused()\n"
        "asked = json.loads(sys.argv[1])\n"
        "found = {p: {} for p in asked}\n"
        # From the inside out: what the outer package runs is not to hide what an inner one cannot give.
        "for package in reversed(asked):\n"
        "    for name in asked[package]:\n"
        "        found[package][name] = told(getattr(importlib.import_module(package), name))\n"
        "print(json.dumps(found))",
        json.dumps({package: sorted(names) for package, names in real.items()}),
    )
    assert deferred == real


def test_a_name_that_flower_does_not_have_is_missing() -> None:
    code = (
        "from trellis.flower.deferred import defer_unused; defer_unused()\n"
        "import flwr.common\n"
        "print(json.dumps([hasattr(flwr, 'nowhere'), hasattr(flwr.common, 'nowhere')]))"
    )
    assert ran(code) == [False, False]


def test_flower_that_is_loaded_stays_as_it_is() -> None:
    code = (
        "import flwr; before = dict(sys.modules)\n"
        "from trellis.flower.deferred import defer_unused; defer_unused()\n"
        "print(json.dumps([name for name in before if sys.modules.get(name) is not before[name]]))"
    )
    assert ran(code) == []
