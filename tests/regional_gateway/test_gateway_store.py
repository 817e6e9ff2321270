"""The store: what it has returned from is there after a restart."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from regional_gateway.store import Observations, Store, StoredTask
from trellis.errors import ConfigError, Unavailable

ROW = StoredTask("digits", 2, "run", b"envelope", 17, "running", '{"code":"a","message":"b"}', None, False)


async def test_a_saved_task_is_there_after_reopening(tmp_path: Path) -> None:
    async with Store(tmp_path / "deep" / "gateway.sqlite") as store:
        await store.save_task(ROW)
    async with Store(tmp_path / "deep" / "gateway.sqlite") as store:
        assert await store.tasks() == [ROW]


async def test_saving_again_replaces_and_keeps_the_order(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        await store.save_task(ROW)
        await store.save_task(StoredTask("other", 1, "run", b"x", 1))
        later = StoredTask("digits", 3, "canceled", b"later", 18, None, None, 19, True)
        await store.save_task(later)
        assert [row.task for row in await store.tasks()] == ["digits", "other"]
        assert (await store.tasks())[0] == later


async def test_a_task_is_synced_to_disk_before_save_returns(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        (synchronous,) = await store._run(lambda db: db.execute("PRAGMA synchronous").fetchone())
        (mode,) = await store._run(lambda db: db.execute("PRAGMA journal_mode").fetchone())
    assert (synchronous, mode) == (2, "wal")  # 2 is FULL: https://sqlite.org/pragma.html#pragma_synchronous


async def test_observations_are_replaced_and_removed(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        await store.save_observations(Observations({"a": b"1", "b": b"2"}, {("a", "t"): b"3"}))
        await store.save_observations(
            Observations({"a": b"4", "b": None}, {("a", "t"): None, ("a", "u"): b"5"})
        )
        known = await store.observations()
    assert known.infos == {"a": b"4"}
    assert known.executions == {("a", "u"): b"5"}


async def test_deleting_a_task_deletes_its_executions(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        await store.save_task(ROW)
        await store.save_observations(Observations({}, {("a", "digits"): b"1", ("a", "other"): b"2"}))
        await store.delete_task("digits")
        assert await store.tasks() == []
        assert (await store.observations()).executions == {("a", "other"): b"2"}


async def test_a_store_of_another_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(ConfigError, match="has version 7"):
        async with Store(path):
            pass


async def test_something_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite"
    path.write_bytes(b"not a database, by far" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        async with Store(path):
            pass


async def test_many_writers_at_once_all_get_through(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        rows = [StoredTask(f"t{n}", 1, "run", b"e", n) for n in range(20)]
        await asyncio.gather(*map(store.save_task, rows))
        assert len(await store.tasks()) == 20


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "gateway.sqlite")
    with pytest.raises(Unavailable, match="is closed"):
        await store.tasks()
