"""`runs/<task>/`: whole after a kill at any moment, and read back as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from central_server.store import DESCRIPTOR, METRICS, STATE, Store, StoredTask, posted
from tests.central_server.parts import OPERATOR, descriptor, until
from trellis.envelope import sign
from trellis.errors import ConfigError
from trellis.flower.backchannel import RoundRecord
from trellis.payloads import Reason, TaskState
from trellis.tier.history import read_rounds

# Writes states of growing length as fast as it can, each with as many 'x' as its round says.
WRITER = """
import sys
from pathlib import Path
from central_server.store import Store, TaskRecord
from trellis.payloads import Reason

record = TaskRecord.parse(Path(sys.argv[1], "digits-mlp", "state.json").read_bytes())
with Store(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    for number in range(1, 10**6):
        reason = Reason(code="x", message="x" * number * 50)
        store.save_record(record.model_copy(update={"round": number, "reason": reason}))
"""


def stored() -> StoredTask:
    task = descriptor()
    return StoredTask(sign(task.to_json(), OPERATOR), task, posted(task))


def test_a_task_is_read_back_as_it_was(tmp_path: Path) -> None:
    task = stored()
    with Store(tmp_path) as store:
        store.save(task)
        store.append_round("digits-mlp", RoundRecord(round=1, loss=0.5))
        [back] = store.load()
    assert back.descriptor == task.descriptor
    assert back.envelope == task.envelope
    assert back.record == task.record
    assert [record.loss for record in read_rounds(tmp_path / "digits-mlp" / METRICS)] == [0.5]


async def test_a_state_is_whole_after_a_kill_between_writes(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.save(stored())
    seen: set[int] = set()
    for _ in range(5):
        state = tmp_path / "digits-mlp" / STATE
        before = state.read_bytes()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            await until(lambda before=before, state=state: state.read_bytes() != before)
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        with Store(tmp_path) as store:  # the kernel let the killed writer's lock go
            [task] = store.load()
        assert task.record.reason == Reason(code="x", message="x" * task.record.round * 50)
        seen.add(task.record.round)
        store.save_record(stored().record)
    assert all(number > 0 for number in seen)


def test_the_time_of_a_task_counts_until_its_end() -> None:
    record = stored().record.model_copy(update={"posted": 1_000, "since": 4_500})
    assert record.elapsed_s(now=9_000) == 8.0
    assert record.model_copy(update={"state": TaskState.CANCELED}).elapsed_s(now=9_000) == 3.5
    assert record.elapsed_s(now=0) == 0.0  # the clock was set back


def test_an_envelope_without_a_state_is_a_task_just_posted(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.save(stored())
        (tmp_path / "digits-mlp" / STATE).unlink()
        [task] = store.load()
    assert task.record.state is TaskState.POSTED


def test_the_envelope_is_the_newer_one_after_a_kill_between_the_two(tmp_path: Path) -> None:
    task = stored()
    with Store(tmp_path) as store:
        store.save(task)
        newer = sign(task.descriptor.canceled().to_json(), OPERATOR)
        (tmp_path / "digits-mlp" / DESCRIPTOR).write_bytes(newer.to_bytes())
        [back] = store.load()
    assert (back.record.revision, back.descriptor.desired) == (2, "canceled")


def test_a_torn_line_is_left_out_and_the_next_round_stands_on_its_own_line(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.save(stored())
        store.append_round("digits-mlp", RoundRecord(round=1))
        metrics = tmp_path / "digits-mlp" / METRICS
        metrics.write_bytes(metrics.read_bytes() + b'{"round": 2, "lo')
        store.append_round("digits-mlp", RoundRecord(round=2, loss=0.25))
    assert [(record.round, record.loss) for record in read_rounds(metrics)] == [(1, None), (2, 0.25)]
    assert json.loads(metrics.read_bytes().splitlines()[-1])["round"] == 2


def test_a_round_done_again_counts_once_and_as_it_was_last(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.save(stored())
        for loss in (0.9, 0.4):
            store.append_round("digits-mlp", RoundRecord(round=1, loss=loss))
    assert [record.loss for record in read_rounds(tmp_path / "digits-mlp" / METRICS)] == [0.4]


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path) as store:
        store.save(stored())
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / DESCRIPTOR).write_text("{")
        assert [task.descriptor.task for task in store.load()] == ["digits-mlp"]
    assert "broken" in caplog.text


def test_one_server_at_a_time_holds_the_folder(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(ConfigError, match="another `trellis server`"), Store(tmp_path):
        pass
    with Store(tmp_path):
        pass


# Runs a task again under revision 3, in each folder killed one step later, until it comes through.
INSTALLER = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from central_server.store import Store, StoredTask, posted
from trellis.descriptor import parse_json
from trellis.envelope import Envelope

root = Path(sys.argv[1])
envelope = Envelope.parse(Path(sys.argv[2]).read_bytes())
descriptor = parse_json(envelope.payload)
again = StoredTask(envelope, descriptor, posted(descriptor))
for number in itertools.count(1):
    runs = root / f"runs-{number:02}"
    shutil.copytree(root / "before", runs)
    child = os.fork()
    if child == 0:
        left = number
        def hook(event, args):
            global left
            if event in {"open", "os.mkdir", "os.rename"}:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        with Store(runs) as store:
            sys.addaudithook(hook)
            store.stage(again)
            store.install("digits-mlp", 2)
            os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def test_a_kill_at_any_step_of_a_new_run_leaves_it_or_the_one_before(tmp_path: Path) -> None:
    first = stored()
    ended = first.descriptor.canceled()  # revision 2
    with Store(tmp_path / "before") as store:
        store.save(StoredTask(sign(ended.to_json(), OPERATOR), ended, posted(ended)))
    envelope = tmp_path / "again.json"
    envelope.write_bytes(sign(descriptor(revision=3).to_json(), OPERATOR).to_bytes())
    subprocess.run([sys.executable, "-c", INSTALLER, str(tmp_path), str(envelope)], check=True, timeout=120)
    found = []
    for runs in sorted(tmp_path.glob("runs-*")):
        with Store(runs) as store:
            [task] = store.load()
        assert not list(runs.glob(".*.new"))
        assert (runs / "digits-mlp.r2").is_dir() == (task.descriptor.revision == 3)
        found.append(task.record.revision)
    # A rename of each file, then of both folders; only between those two it is `load` that ends the work.
    assert len(found) > 8
    assert found == sorted(found)
    assert found.count(3) >= 3
    assert found[0] == 2


def test_what_cannot_be_read_is_put_aside_by_a_new_task_of_its_name(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        (tmp_path / "digits-mlp").mkdir()
        (tmp_path / "digits-mlp" / DESCRIPTOR).write_text("{")
        store.stage(stored())
        store.install("digits-mlp", None)
        assert [task.descriptor.task for task in store.load()] == ["digits-mlp"]
    assert (tmp_path / "digits-mlp.left" / DESCRIPTOR).read_text() == "{"
