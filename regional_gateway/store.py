"""The gateway's memory on disk: tasks, what devices last said of them, and who the devices are.

SQLite with a write-ahead log and `synchronous=FULL`: what `save_task` has returned from survives a power cut.
Statements run in threads; one lock makes them follow each other.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from trellis.errors import ConfigError, Unavailable

SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE tasks (
    task TEXT PRIMARY KEY, revision INTEGER NOT NULL, desired TEXT NOT NULL, envelope BLOB NOT NULL,
    posted_ms INTEGER NOT NULL, central TEXT, verdict TEXT, ended_ms INTEGER, cleared INTEGER NOT NULL
) STRICT;
CREATE TABLE executions (
    device TEXT NOT NULL, task TEXT NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (device, task)
) STRICT;
CREATE TABLE devices (device TEXT PRIMARY KEY, info BLOB NOT NULL) STRICT;
"""

T = TypeVar("T")


@dataclass(frozen=True)
class StoredTask:
    """One row: a task as this region has it.

    Attributes:
        envelope: The signed envelope as it is published.
        posted_ms: When its work came, ms; a revision that calls it off changes nothing here.
        central: The task's state at the server, as far as known.
        verdict: JSON of the last refusal.
        ended_ms: When the gateway learned of its end, ms.
        cleared: Whether its topics are removed; the row stays so that an old revision cannot come again.
    """

    task: str
    revision: int
    desired: str
    envelope: bytes
    posted_ms: int
    central: str | None = None
    verdict: str | None = None
    ended_ms: int | None = None
    cleared: bool = False


@dataclass(frozen=True)
class Observations:
    """Payloads as devices sent them; `None` where they were removed.

    Attributes:
        infos: By device.
        executions: By device and task.
    """

    infos: Mapping[str, bytes | None] = field(default_factory=dict)
    executions: Mapping[tuple[str, str], bytes | None] = field(default_factory=dict)


class Store:
    """The open store, from `__aenter__` to `__aexit__`.

    Args:
        path: The database; made with its folder if need be.

    Raises:
        ConfigError: It cannot be opened, or another version wrote it.
        Unavailable: The disk fails, or is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    async def tasks(self) -> list[StoredTask]:
        """Return all tasks in the order of their first posting."""
        columns = "task, revision, desired, envelope, posted_ms, central, verdict, ended_ms, cleared"
        rows = await self._run(
            lambda database: database.execute(f"SELECT {columns} FROM tasks ORDER BY rowid").fetchall()  # noqa: S608 - constant
        )
        return [replace(StoredTask(*row), cleared=bool(row[-1])) for row in rows]

    async def save_task(self, row: StoredTask) -> None:
        """Return once `row` is on disk."""
        values = (
            row.task, row.revision, row.desired, row.envelope, row.posted_ms,
            row.central, row.verdict, row.ended_ms, int(row.cleared),
        )  # fmt: skip
        await self._run(
            lambda database: database.execute(
                "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task) DO UPDATE SET "
                "revision = excluded.revision, desired = excluded.desired, envelope = excluded.envelope, "
                "posted_ms = excluded.posted_ms, central = excluded.central, verdict = excluded.verdict, "
                "ended_ms = excluded.ended_ms, cleared = excluded.cleared",
                values,
            )
        )

    async def delete_task(self, task: str) -> None:
        """Return once nothing of `task` is left."""

        def delete(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM tasks WHERE task = ?", (task,))
            database.execute("DELETE FROM executions WHERE task = ?", (task,))

        await self._run(delete)

    async def observations(self) -> Observations:
        """Return the last that devices said."""

        def read(database: sqlite3.Connection) -> Observations:
            infos = dict(database.execute("SELECT device, info FROM devices").fetchall())
            rows = database.execute("SELECT device, task, payload FROM executions").fetchall()
            return Observations(infos, {(device, task): payload for device, task, payload in rows})

        return await self._run(read)

    async def save_observations(self, changes: Observations) -> None:
        """Write many changes at once: one sync to disk for all of them."""

        def write(database: sqlite3.Connection) -> None:
            for name, info in changes.infos.items():
                if info is None:
                    database.execute("DELETE FROM devices WHERE device = ?", (name,))
                else:
                    database.execute("INSERT OR REPLACE INTO devices VALUES (?, ?)", (name, info))
            for key, payload in changes.executions.items():
                if payload is None:
                    database.execute("DELETE FROM executions WHERE device = ? AND task = ?", key)
                else:
                    database.execute("INSERT OR REPLACE INTO executions VALUES (?, ?, ?)", (*key, payload))

        await self._run(write)

    async def _run(self, statement: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.to_thread(self._transaction, statement)

    def _transaction(self, statement: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._database is None:
                raise Unavailable(f"store {self._path}: is closed")
            try:
                with self._database as database:
                    return statement(database)
            except sqlite3.Error as error:
                raise Unavailable(f"store {self._path}: {error}; check the disk") from error

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"store {self._path}", f"cannot be opened: {error}") from error
        if version not in (0, SCHEMA_VERSION):
            database.close()
            raise ConfigError(
                f"store {self._path}",
                f"has version {version}, this release writes {SCHEMA_VERSION}: give another --state",
            )
        self._database = database

    def _close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
