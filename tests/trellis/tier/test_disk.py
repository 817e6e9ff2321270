"""What a task waits for of its disk; that one is full is seen in `tests/central_server/test_full_disk.py`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.trellis.tier.bad_block import bad_block
from trellis.tier import disk
from trellis.tier.disk import Disk


async def test_a_checkpoint_that_the_disk_gives_only_in_part_is_named_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "RETRY_S", 0.01)
    path = tmp_path / "checkpoints" / "round-0002.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(3 * 1024**2))
    async with asyncio.timeout(30):
        with bad_block(path):
            waits = asyncio.create_task(Disk("digits", tmp_path).wait_usable(lambda: False))
            while "until then nothing of it goes on" not in caplog.text:
                assert not waits.done(), "what it gives in part was taken for whole"
                await asyncio.sleep(0.01)
            assert f"Input/output error: '{path}'" in caplog.text
        assert await waits, "it refused nothing"
        with bad_block(path):
            (path.parent / "round-0001.safetensors").write_bytes(b"whole")
            assert not await Disk("digits", tmp_path).wait_usable(lambda: False)
