"""The folder of artefacts: whatever has a digest's name there has that digest."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trellis.artefacts import store as store_module
from trellis.artefacts.store import ArtefactStore, digest_of
from trellis.errors import ArtefactError, DiskFailed


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(store: ArtefactStore, content: bytes, *, age_s: float = 0.0) -> str:
    sha256 = digest(content)
    store.partial(sha256).write_bytes(content)
    path = store.keep(sha256)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return sha256


def names(store: ArtefactStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_what_is_kept_is_found_under_its_digest(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    assert store.find(digest(b"graph")) is None
    assert store.find_intact(digest(b"graph")) is None
    path = store.find(put(store, b"graph"))
    assert path is not None
    assert path.read_bytes() == b"graph"
    assert names(store) == {digest(b"graph")}


def test_what_is_something_else_is_refused_and_gone(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    store.partial(digest(b"due")).write_bytes(b"came")
    with pytest.raises(ArtefactError) as caught:
        store.keep(digest(b"due"))
    assert str(caught.value) == (
        f"artefact {digest(b'due')[:12]}…: "
        f"what came has the SHA-256 {digest(b'came')}, due is {digest(b'due')}"
    )
    assert names(store) == set()


def test_it_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtefactStore(tmp_path / "files")
    named = store.folder / digest(b"graph")
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, named.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    put(store, b"graph")
    assert synced == [(f"{named.name}.partial", False), ("files", True)]


def test_what_the_disk_does_not_take_is_its_fault(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    with pytest.raises(DiskFailed, match=f"{digest(b'x')} cannot be written: No such file .*; free space"):
        store.keep(digest(b"x"))
    made = tmp_path / "made"
    made.write_bytes(b"graph")
    store.partial(digest(b"graph")).mkdir()
    with pytest.raises(DiskFailed, match=f"{made} cannot be moved to {store.folder}: Is a directory"):
        store.take(made)


def test_the_folder_is_its_owners_and_so_are_those_above_it_that_were_not_there(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "new" / "files")
    put(store, b"graph")
    assert oct(store.folder.stat().st_mode & 0o777) == "0o700"


def test_a_use_changes_nothing_that_says_how_old_it_is(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    path = store.folder / put(store, b"graph", age_s=1000)
    before = path.stat()
    assert store.find(path.name) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_atime > before.st_atime + 900


def test_what_was_whole_is_not_read_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtefactStore(tmp_path / "files")
    sha256 = put(store, b"graph")
    read: list[Path] = []
    monkeypatch.setattr(store_module, "digest_of", lambda path: read.append(path) or digest_of(path))
    for _ in range(3):
        assert store.find_intact(sha256) is not None
    assert len(read) == 1
    (store.folder / sha256).write_bytes(b"grafh")
    assert store.find_intact(sha256) is None


def test_what_was_just_checked_to_be_kept_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtefactStore(tmp_path / "files")
    store.partial(digest(b"graph")).write_bytes(b"graph")
    path = store.keep(digest(b"graph"))
    monkeypatch.setattr(store_module, "digest_of", lambda _: pytest.fail("it is read again"))
    assert store.find_intact(digest(b"graph")) == path


def test_what_has_its_name_is_known_to_be_whole_from_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sha256 = ArtefactStore(tmp_path / "files"), digest(b"graph")
    read: list[Path] = []
    found: list[Path | None] = []
    monkeypatch.setattr(store_module, "digest_of", lambda path: read.append(path) or digest_of(path))
    monkeypatch.setattr(store_module, "sync_folder", lambda _: found.append(store.find_intact(sha256)))
    put(store, b"graph")
    assert (found, read) == ([store.folder / sha256], [store.partial(sha256)])


def test_a_small_folder_makes_room_sooner(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files", limit=4, holds=2)
    half = store.partial("0" * 64)
    half.write_bytes(b"what comes makes no room")
    kept = [put(store, bytes([number]) * 4, age_s=100 - number) for number in range(3)]
    assert names(store) == {*kept[1:], half.name}
    # Of two that fit both only with a byte less, the newest stays.
    large = put(store, b"12345")
    assert names(store) == {large, half.name}


def test_a_file_altered_since_is_no_longer_there(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    sha256 = put(store, b"graph")
    (store.folder / sha256).write_bytes(b"grafh")
    assert store.find_intact(sha256) is None
    assert names(store) == set()


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    (store.partial("0" * 64).parent / ("0" * 64)).mkdir()
    assert store.find_intact("0" * 64) is None


def test_what_is_discarded_is_gone_with_what_has_come_of_it(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    store.partial(put(store, b"graph")).write_bytes(b"gra")
    store.discard(digest(b"graph"))
    store.discard(digest(b"graph"))
    assert names(store) == set()


def test_a_file_made_elsewhere_is_taken_in_unless_it_is_too_large(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files", limit=5)
    made = tmp_path / "made"
    made.write_bytes(b"graph")
    assert store.take(made) == digest(b"graph")
    assert not made.exists()
    made.write_bytes(b"graphs")
    with pytest.raises(ArtefactError, match="artefact made: has 6 bytes, at most 5"):
        store.take(made)
    made.write_bytes(b"")
    with pytest.raises(ArtefactError, match="artefact made: is empty"):
        store.take(made)
    assert made.exists()
    assert names(store) == {digest(b"graph")}


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files", limit=4)  # holds 8 times that: 32 bytes
    old, used, *_ = [put(store, bytes([number]) * 4, age_s=100 - number) for number in range(8)]
    for name in (old, used):
        os.utime(store.folder / name, (1, 1))
    store.find(used)
    put(store, b"more")
    left = names(store)
    assert len(left) == 8
    assert old not in left
    assert used in left


def test_several_make_room_at_once(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files", limit=10, holds=1)
    together = threading.Barrier(4)

    def take(who: int) -> None:
        together.wait(30)
        for number in range(100):
            made = tmp_path / f"{who}-{number}"
            made.write_bytes(f"{who} {number}".encode())
            store.take(made)

    with ThreadPoolExecutor(4) as pool:
        for taken in [pool.submit(take, who) for who in range(4)]:
            taken.result()
    last = put(store, b"the last")  # 8 of 10 bytes: none of the others, of 3 or 4, has room beside it
    assert names(store) == {last}


def test_a_download_broken_off_long_ago_is_tidied_away(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "files")
    week_s = 7 * 24 * 3600
    for content, age_s in ((b"old", week_s + 60), (b"new", week_s - 60)):
        partial = store.partial(digest(content))
        partial.write_bytes(b"half")
        os.utime(partial, (time.time() - age_s,) * 2)
    store.tidy()
    assert names(store) == {f"{digest(b'new')}.partial"}


@pytest.mark.parametrize("name", ["../escape", "", "A" * 64, "0" * 63, f"{'0' * 64}/x", "0" * 64 + "\n"])
def test_only_a_digest_is_a_name(tmp_path: Path, name: str) -> None:
    store = ArtefactStore(tmp_path / "files")
    with pytest.raises(ValueError, match="no SHA-256") as caught:
        store.find(name)
    assert str(caught.value).startswith(repr(name))


def test_a_folder_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(DiskFailed, match=f"^{tmp_path / 'files'} cannot be made: File exists$"):
        ArtefactStore(tmp_path / "files").partial("0" * 64)
