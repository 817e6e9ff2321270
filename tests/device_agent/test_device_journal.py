from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.eligibility import Seen
from device_agent.journal import Journal
from trellis.errors import ConfigError, PayloadError
from trellis.flower.answers import Answer, AnswerKey, StoredArray, digest_of_arrays, digest_of_config
from trellis.payloads import Execution, ExecutionState, FlowerLinkage

DEVICE = "eu-1/devices/cam-7"
KEY = AnswerKey("blobs", "central", "train", 1, "a" * 64, "c" * 64)
ANSWER = Answer(
    {"num-examples": 64, "train_loss": 0.1},
    (StoredArray("packed", "uint8", (5,), "trellis/safetensors", b"\n\x00abc"),),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def reopened(path: Path) -> Journal:
    return Journal.open(path, device=DEVICE)


# Writes, says so, and is killed before it can act on what it wrote.
KILLED = """
import os, signal, sys
from pathlib import Path
from trellis.flower.answers import Answer, AnswerKey, StoredArray
from device_agent.eligibility import Seen
from device_agent.journal import Journal
from trellis.payloads import Execution, ExecutionState
journal = Journal.open(Path(sys.argv[1]), device="eu-1/devices/cam-7")
print(journal.next_boot())
journal.believe("blobs", Seen(3, "d" * 64))
journal.write_execution("blobs", Execution(state=ExecutionState.IN_PROGRESS, version=9, attempt=2))
journal.write_pushing("blobs", "m1")
journal.write_answer(
    AnswerKey("blobs", "central", "train", 1, "a" * 64, "c" * 64),
    Answer({"num-examples": 64, "train_loss": 0.1},
           (StoredArray("packed", "uint8", (5,), "trellis/safetensors", b"\\n\\x00abc"),)),
)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_written_is_there(path):
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with reopened(path) as journal:
        assert journal.seen("blobs") == Seen(3, "d" * 64)
        execution = journal.execution("blobs")
        assert execution is not None
        assert (execution.version, execution.attempt) == (9, 2)
        assert journal.pushing("blobs") == "m1"
        assert journal.answer(KEY) == ANSWER
        assert journal.next_boot() > killed.stdout.strip()


def test_a_killed_transaction_leaves_nothing_half_done(path):
    script = KILLED.replace(
        "journal.write_answer(",
        'journal._connection.execute("BEGIN")\n'
        'journal._connection.execute("UPDATE tasks SET revision = 99")\n'
        'print("x", flush=True); os.kill(os.getpid(), signal.SIGKILL)\njournal.write_answer(',
    )
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=60,
        check=False,
        capture_output=True,
    )
    with reopened(path) as journal:
        assert journal.seen("blobs") == Seen(3, "d" * 64)
        assert journal.answer(KEY) is None


def test_the_highest_revision_stays(path):
    with reopened(path) as journal:
        assert journal.seen("blobs") is None
        journal.believe("blobs", Seen(3, "x"))
        journal.believe("blobs", Seen(2, "y"))
        assert journal.seen("blobs") == Seen(3, "x")
        journal.believe("blobs", Seen(3, "of the work"))  # in the place of an earlier release's
        assert journal.seen("blobs") == Seen(3, "of the work")


def test_an_execution_alone_is_no_revision(path):
    with reopened(path) as journal:
        journal.write_execution("blobs", Execution(state=ExecutionState.REJECTED))
        assert journal.seen("blobs") is None


def test_an_execution_comes_back_as_it_was_written(path):
    execution = Execution(
        state=ExecutionState.IN_PROGRESS, version=4, flower=FlowerLinkage(node_id=2**64 - 1, nonce="n")
    )
    with reopened(path) as journal:
        journal.write_execution("blobs", execution)
    with reopened(path) as journal:
        assert journal.execution("blobs") == execution


def test_every_part_of_a_question_is_part_of_its_key(path):
    with reopened(path) as journal:
        journal.write_answer(KEY, ANSWER)
        for other in (
            AnswerKey("other", *[KEY.tier, KEY.kind, KEY.round, KEY.arrays, KEY.config]),
            AnswerKey(KEY.task, "regional", KEY.kind, KEY.round, KEY.arrays, KEY.config),
            AnswerKey(KEY.task, KEY.tier, "evaluate", KEY.round, KEY.arrays, KEY.config),
            AnswerKey(KEY.task, KEY.tier, KEY.kind, 2, KEY.arrays, KEY.config),
            AnswerKey(KEY.task, KEY.tier, KEY.kind, KEY.round, "b" * 64, KEY.config),
            AnswerKey(KEY.task, KEY.tier, KEY.kind, KEY.round, KEY.arrays, "d" * 64),
        ):
            assert journal.answer(other) is None
        assert journal.answer(KEY) == ANSWER


def test_answers_are_forgotten_with_their_task_and_the_revision_is_not(path):
    with reopened(path) as journal:
        journal.believe("blobs", Seen(1, "x"))
        journal.write_pushing("blobs", "m1")
        journal.write_answer(KEY, ANSWER)
        journal.forget_answers("blobs")
        assert journal.answer(KEY) is None
        assert journal.pushing("blobs") is None
        assert journal.seen("blobs") == Seen(1, "x")


def test_the_oldest_answers_go_when_the_space_is_taken_and_the_newest_stays(path):
    def key(round_number: int) -> AnswerKey:
        return AnswerKey("blobs", "central", "train", round_number, "a", "c")

    def answer(size: int) -> Answer:
        return Answer({}, (StoredArray("w", "uint8", (size,), "raw", b"x" * size),))

    with Journal.open(path, device=DEVICE, answers_bytes=3000) as journal:
        for round_number in range(1, 5):
            journal.write_answer(key(round_number), answer(1000))
        assert [journal.answer(key(n)) is not None for n in range(1, 5)] == [False, False, True, True]
        journal.write_answer(key(5), answer(9000))
        assert [journal.answer(key(n)) is not None for n in range(1, 6)] == [False] * 4 + [True]


def written_bytes() -> int:
    """What this process has written so far, to any disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


def test_answers_cost_a_disk_their_size_in_log_and_file_and_nothing_when_they_go(path):
    size, count = 2**20, 8

    def keep(journal: Journal, number: int) -> int:
        key = AnswerKey("blobs", "central", "train", number, "a", "c")
        before = written_bytes()
        journal.write_answer(key, Answer({}, (StoredArray("w", "uint8", (size,), "raw", os.urandom(size)),)))
        return written_bytes() - before

    with Journal.open(path, device=DEVICE, answers_bytes=count * size + size // 2) as journal:
        journal.believe("blobs", Seen(1, "x"))
        for number in range(count):
            keep(journal, number)
        evicting = [keep(journal, number) for number in range(count, 2 * count)]
        # Each new one in the log, then in the file; the old one not at all.
        assert sum(evicting) < 2.5 * size * count
        assert on_disk(path) > count * size
        before = written_bytes()
        journal.forget_answers("blobs")
        assert written_bytes() - before < size // 4
        assert on_disk(path) < size // 4
        assert journal.seen("blobs") == Seen(1, "x")
    with reopened(path) as journal:
        assert journal.seen("blobs") == Seen(1, "x")


def test_boots_rise_even_when_the_clock_goes_back(path, monkeypatch):
    with reopened(path) as journal:
        monkeypatch.setattr("device_agent.journal.time.time_ns", lambda: 2_000_000_000)
        first = journal.next_boot()
        monkeypatch.setattr("device_agent.journal.time.time_ns", lambda: 1_000_000_000)
        assert journal.next_boot() > first


def test_a_damaged_journal_is_named_and_left_alone(path):
    path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"journal {path}: .*damaged.*move it away"):
        reopened(path)
    assert path.read_bytes() == before


def test_a_journal_with_a_torn_page_is_refused(path):
    with reopened(path) as journal:
        for number in range(200):
            journal.believe(f"task-{number}", Seen(1, "x" * 64))
    torn = bytearray(path.read_bytes())
    torn[4096 * 2 : 4096 * 4] = b"\xa5" * 8192
    path.write_bytes(torn)
    with pytest.raises(ConfigError, match="damaged"):
        reopened(path)


def test_an_unknown_version_is_refused(path):
    reopened(path).__exit__()
    with sqlite3.connect(path) as sql:
        sql.execute("PRAGMA user_version = 2")
    sql.close()
    with pytest.raises(ConfigError, match="has version 2, this Trellis reads 1"):
        reopened(path)


def test_a_foreign_sqlite_file_is_refused(path):
    with sqlite3.connect(path) as sql:
        sql.execute("CREATE TABLE cats (name TEXT)")
    sql.close()
    with pytest.raises(ConfigError, match="no journal"):
        reopened(path)


def test_another_devices_journal_is_refused(path):
    reopened(path).__exit__()
    with pytest.raises(ConfigError, match=r"is of device 'eu-1/devices/cam-7', this one is 'eu-1/devices/x'"):
        Journal.open(path, device="eu-1/devices/x")


def test_a_second_process_is_refused(path):
    with (
        reopened(path),
        pytest.raises(ConfigError, match="in use: another device runs with this state folder"),
    ):
        reopened(path)


def test_an_answer_cut_short_is_refused():
    with pytest.raises(PayloadError, match="holds 4 bytes of arrays, 5 are due"):
        Answer.parse(ANSWER.to_bytes()[:-1])


def test_floats_survive_the_journal_exactly():
    answer = Answer({"train_loss": 0.1 + 0.2, "num-examples": 2**53 - 1})
    assert Answer.parse(answer.to_bytes()).metrics == {
        "train_loss": 0.30000000000000004,
        "num-examples": 2**53 - 1,
    }


def test_a_nonce_asks_for_nothing_and_everything_else_does():
    asked = {"round": 1, "task": "blobs", "nonce": "x"}
    same = digest_of_config(asked | {"nonce": "y"}, "descriptor")
    assert digest_of_config(asked, "descriptor") == same
    assert digest_of_config(asked | {"proximal-mu": 0.1}, "descriptor") != same
    assert digest_of_config(asked, "another descriptor") != same


def test_names_and_shapes_are_part_of_the_arrays_digest():
    def digest(name: str, shape: tuple[int, ...]) -> str:
        return digest_of_arrays([StoredArray(name, "uint8", shape, "raw", b"abcd")])

    assert len({digest("w", (4,)), digest("v", (4,)), digest("w", (2, 2))}) == 3
