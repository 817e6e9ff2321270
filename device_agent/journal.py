"""What a device must know after a power cut, in one SQLite file: written before it is acted on.

Tasks with the highest revision that was believed and their execution; the message that is being answered;
answers to the server, so that a repeated question needs no second training; the latest boot.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from device_agent.eligibility import Seen
from trellis.errors import ConfigError, DiskFailed, PayloadError, TrellisError
from trellis.flower.answers import Answer, AnswerKey
from trellis.payloads import Execution, ExecutionState

SCHEMA = 1
ANSWERS_BYTES = 256 * 1024 * 1024
"""What the answers may take on disk; the newest stays whatever its size."""
LOG_BYTES = 1024 * 1024
"""What SQLite's log keeps on disk between two writes."""

_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}

_TABLES = """
CREATE TABLE device (
    name TEXT NOT NULL,
    boot INTEGER NOT NULL
) STRICT;
CREATE TABLE tasks (
    task TEXT PRIMARY KEY,
    revision INTEGER NOT NULL DEFAULT 0,
    digest TEXT NOT NULL DEFAULT '',
    execution BLOB,
    pushing TEXT
) STRICT;
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    task TEXT NOT NULL,
    tier TEXT NOT NULL,
    kind TEXT NOT NULL,
    round INTEGER NOT NULL,
    arrays TEXT NOT NULL,
    config TEXT NOT NULL,
    answer BLOB NOT NULL,
    UNIQUE (task, tier, kind, round, arrays, config)
) STRICT;
"""
_KEY = "task = ? AND tier = ? AND kind = ? AND round = ? AND arrays = ? AND config = ?"


class Journal:
    """A device's journal; safe to use from several threads, and from one process only.

    Every method raises DiskFailed where the disk is full or fails, and ConfigError where the file does. Both
    name it, and leave what was written before as it was.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, answers_bytes: int) -> None:
        self.path = path
        self._connection = connection
        self._answers_bytes = answers_bytes
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, device: str, answers_bytes: int = ANSWERS_BYTES) -> Self:
        """Return the journal of `device` in `path`, which is made where there is none.

        Raises:
            ConfigError: It is damaged, another device's, a later version's, or another process has it.
            DiskFailed: The disk is full.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"journal {path}", f"cannot be opened: {error}") from error
        try:
            with _named(path):
                _prepare(connection, path, device)
        except TrellisError:
            connection.close()
            raise
        return cls(path, connection, answers_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._connection.close()

    def next_boot(self) -> str:
        """Return the ID of a new boot: later boots have greater ones, whatever the clock says."""
        with self._transaction() as sql:
            last = int(sql.execute("SELECT boot FROM device").fetchone()[0])
            boot = max(last + 1, time.time_ns() // 1_000_000)
            sql.execute("UPDATE device SET boot = ?", (boot,))
        # Two machines with one name may boot in the same millisecond, never with the same suffix.
        return f"{boot:014d}-{secrets.token_hex(4)}"

    def seen(self, task: str) -> Seen | None:
        """Return the highest revision of `task` that was believed."""
        with self._reading() as sql:
            row = sql.execute("SELECT revision, digest FROM tasks WHERE task = ?", (task,)).fetchone()
        return Seen(row[0], row[1]) if row is not None and row[0] > 0 else None

    def believe(self, task: str, seen: Seen) -> None:
        """Remember a believed revision, for good: an older one is refused from now on."""
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO tasks (task, revision, digest) VALUES (?, ?, ?) ON CONFLICT (task) DO UPDATE "
                "SET revision = excluded.revision, digest = excluded.digest "
                # Under the same revision only the digest's kind changes: earlier releases wrote another.
                "WHERE excluded.revision >= tasks.revision",
                (task, seen.revision, seen.digest),
            )

    def execution(self, task: str) -> Execution | None:
        """Return the execution of `task` as it was last written."""
        with self._reading() as sql:
            row = sql.execute("SELECT execution FROM tasks WHERE task = ?", (task,)).fetchone()
        return None if row is None or row[0] is None else self._parsed(task, row[0])

    def executions(self) -> dict[str, Execution]:
        """Return the execution of every task that had one."""
        with self._reading() as sql:
            rows = sql.execute("SELECT task, execution FROM tasks WHERE execution IS NOT NULL").fetchall()
        return {task: self._parsed(task, data) for task, data in rows}

    def unfinished(self) -> set[str]:
        """Return the tasks that were begun and have not ended."""
        return {
            task
            for task, execution in self.executions().items()
            # One that was begun and waits for its second attempt counts, too.
            if execution.state is ExecutionState.IN_PROGRESS
            or (execution.state is ExecutionState.QUEUED and execution.attempt > 1)
        }

    def write_execution(self, task: str, execution: Execution) -> None:
        """Remember the execution of `task`."""
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO tasks (task, execution) VALUES (?, ?) "
                "ON CONFLICT (task) DO UPDATE SET execution = excluded.execution",
                (task, execution.to_bytes()),
            )

    def pushing(self, task: str) -> str | None:
        """Return the message whose reply was being uploaded when this was last written."""
        with self._reading() as sql:
            row = sql.execute("SELECT pushing FROM tasks WHERE task = ?", (task,)).fetchone()
        return None if row is None else row[0]

    def write_pushing(self, task: str, message_id: str | None) -> None:
        """Remember which message's reply is about to be uploaded."""
        with self._transaction() as sql:
            sql.execute("UPDATE tasks SET pushing = ? WHERE task = ?", (message_id, task))

    def answer(self, key: AnswerKey) -> Answer | None:
        """Return the answer that was given to `key`, if it is kept."""
        with self._reading() as sql:
            row = sql.execute(f"SELECT answer FROM answers WHERE {_KEY}", _values(key)).fetchone()  # noqa: S608 - constant text
        if row is None:
            return None
        try:
            return Answer.parse(row[0])
        except PayloadError as error:
            raise _damaged(self.path, str(error)) from error

    def write_answer(self, key: AnswerKey, answer: Answer) -> None:
        """Remember an answer; the oldest go where all together take too much."""
        data = answer.to_bytes()
        with self._transaction() as sql:
            sql.execute(f"DELETE FROM answers WHERE {_KEY}", _values(key))  # noqa: S608 - constant text
            # The oldest first: the new one then takes their pages, and none must be moved.
            taken = len(data)
            for number, size in sql.execute(
                "SELECT number, length(answer) FROM answers ORDER BY number DESC"
            ).fetchall():
                taken += size
                if taken > self._answers_bytes:
                    sql.execute("DELETE FROM answers WHERE number = ?", (number,))
            sql.execute(
                "INSERT INTO answers (task, tier, kind, round, arrays, config, answer) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*_values(key), data),
            )

    def forget_answers(self, task: str) -> None:
        """Drop what only a task that goes on needs, and give back its space; revision and execution stay."""
        with self._transaction() as sql:
            sql.execute("DELETE FROM answers WHERE task = ?", (task,))
            sql.execute("UPDATE tasks SET pushing = NULL WHERE task = ?", (task,))
        with self._reading() as sql:
            # The file ends where its last page does from here on.
            sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _named(self.path):
            yield self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _named(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                # On a full disk it is this that fails, and leaves the transaction open, or has ended it.
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _parsed(self, task: str, data: bytes) -> Execution:
        try:
            return Execution.parse(data)
        except PayloadError as error:
            raise _damaged(self.path, f"the execution of task {task!r}: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path, device: str) -> None:
    # Of a file that is made here: pages that are free at its end are cut off, without being written.
    connection.execute("PRAGMA auto_vacuum = FULL")
    # Some builds of SQLite overwrite all that is deleted, in the log and in the file: with FAST only
    # in pages that are written anyway.
    connection.execute("PRAGMA secure_delete = FAST")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    # One process only: a second one with this folder would answer for the same Flower node.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN EXCLUSIVE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise _damaged(path, "it is an SQLite file, but no journal")
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute("INSERT INTO device (name, boot) VALUES (?, 0)", (device,))
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        elif version != SCHEMA:
            raise ConfigError(f"journal {path}", f"has version {version}, this Trellis reads {SCHEMA}")
        _check(connection, path, device)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path, device: str) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _damaged(path, str(found))
    owner = connection.execute("SELECT name FROM device").fetchone()
    if owner is None:
        raise _damaged(path, "it names no device")
    if owner[0] != device:
        raise ConfigError(
            f"journal {path}", f"is of device {owner[0]!r}, this one is {device!r}: name a folder of its own"
        )


def _values(key: AnswerKey) -> tuple[str, str, str, int, str, str]:
    return (key.task, key.tier, key.kind, key.round, key.arrays, key.config)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _DISK:  # the upper bits say what exactly was tried
            raise DiskFailed(f"journal {path} cannot be written: {error}; free space there") from error
        if "locked" in str(error):
            raise ConfigError(
                f"journal {path}", "is in use: another device runs with this state folder"
            ) from error
        raise ConfigError(f"journal {path}", f"cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"journal {path}",
        f"is damaged: {problem}; move it away to begin anew: the device then forgets which revisions it has "
        "seen, and takes part in running tasks as a new attempt",
    )
