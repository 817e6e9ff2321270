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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
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


def test_any_name_may_be_the_first_that_is_asked_for() -> None:
    # Each in a process of its own, forked before anything of Flower is loaded.
    asked = [
        "from flwr.common import log",
        "from flwr.common import EventType, now",
        "from flwr.common import Array, Context",
        "from flwr.common import *",
        "from flwr.client import *",
        "from flwr.client.mod import *",
        "import flwr; flwr.__version__",
    ]
    code = (
        "import os\n"
        "from trellis.flower.deferred import defer_unused; defer_unused()\n"
        "failed = []\n"
        "for one in json.loads(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try: exec(one)\n"
        "        except BaseException as error: print(one, repr(error), file=sys.stderr); os._exit(1)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]: failed.append(one)\n"
        "print(json.dumps(failed))"
    )
    assert ran(code, json.dumps(asked)) == []


def test_threads_that_ask_at_once_all_find_what_they_asked_for() -> None:
    code = (
        "import threading\n"
        "from trellis.flower.deferred import defer_unused; defer_unused()\n"
        "import flwr.app\n"
        "start, failed = threading.Barrier(6), []\n"
        "def ask(names):\n"
        "    start.wait(60)\n"
        "    try: exec(f'from flwr.common import {names}')\n"
        "    except BaseException as error: failed.append(repr(error))\n"
        "names = ['log', 'EventType', 'Array', 'event, log', 'now', 'log, Array, EventType']\n"
        "asking = [threading.Thread(target=ask, args=(one,), daemon=True) for one in names]\n"
        "sys.setswitchinterval(1e-5)\n"
        "for one in asking: one.start()\n"
        "for one in asking: one.join(60)\n"
        "print(json.dumps([failed, [one.is_alive() for one in asking].count(True)]))"
    )
    assert ran(code) == [[], 0]
