"""A full disk under a device's journal and inbox: an error that says so, then work again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import fill, free, small_disk

from device_agent.eligibility import Seen
from device_agent.journal import Journal
from trellis.disk import has_room
from trellis.errors import DiskFailed
from trellis.flower.answers import Answer, AnswerKey, StoredArray
from trellis.flower.inbox import Inbox, Letter

KEY = AnswerKey("blobs", "central", "train", 1, "a" * 64, "c" * 64)
LARGE = Answer({"num-examples": 64}, (StoredArray("w", "uint8", (2**18,), "numpy", bytes(2**18)),))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", size="2m") as folder:
        yield folder


def test_a_journal_on_a_full_disk_keeps_what_it_had_and_takes_more_once_there_is_room(disk: Path) -> None:
    with Journal.open(disk / "journal.sqlite", device="eu-1/devices/cam-7") as journal:
        journal.believe("blobs", Seen(3, "d" * 64))
        fill(disk)
        for _ in range(2):  # a transaction that failed leaves none open
            with pytest.raises(DiskFailed, match=r"journal .* cannot be written: .*full; free space there"):
                journal.write_answer(KEY, LARGE)
        assert journal.seen("blobs") == Seen(3, "d" * 64)
        free(disk)
        journal.write_answer(KEY, LARGE)
        assert journal.answer(KEY) == LARGE


def test_a_full_disk_refuses_a_new_journal_with_a_word(disk: Path) -> None:
    fill(disk)
    with pytest.raises(DiskFailed, match="free space there"):
        Journal.open(disk / "journal.sqlite", device="eu-1/devices/cam-7")


def test_a_message_that_found_no_room_takes_none(disk: Path) -> None:
    inbox = Inbox(disk / "inbox")
    letter = Letter("ab", 1, 2, {"cd": bytes(4 * 2**20)})
    with pytest.raises(OSError, match="No space left"):
        inbox.keep(letter)
    assert list((disk / "inbox").iterdir()) == []
    assert has_room(disk)
    fill(disk)
    assert not has_room(disk)
