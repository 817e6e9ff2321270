"""Whoever logs does not fail by what hands its lines on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from central_server.log_keeping import LogKeeper
from central_server.logbook import BookHandler, Logbook
from device_agent.reporting import TaskLog
from regional_gateway.own_log import OwnLog
from regional_gateway.region_app.telling_log import LogTeller
from trellis import task_log
from trellis.task_log import told_of
from trellis.topics import Topics

NOTHING = cast("Any", None)


def handlers(folder: Path) -> Iterator[logging.Handler]:
    yield LogTeller(NOTHING)
    yield BookHandler(Logbook(folder / "log.jsonl"))
    yield LogKeeper(folder)._handler
    yield own_log()
    device = TaskLog(NOTHING, Topics(), region="eu-1", device="cam-1")
    device.task = "digits"
    yield device


def own_log() -> OwnLog:
    log = OwnLog(Topics(), "eu-1", NOTHING)
    log._lines = cast("Any", object())
    return log


def test_arguments_that_do_not_fit_are_told_on_stderr_and_raised_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for handler in handlers(tmp_path):
        logger = logging.Logger("regional_gateway.test")  # nobody's child: pytest's own handlers would raise
        logger.addHandler(handler)
        logger.error("task=digits code=%d", "seven")
        seen.append(capsys.readouterr().err)
    assert len(seen) == 5
    assert all("--- Logging error ---" in one and "code=%d" in one for one in seen)


def test_a_record_of_no_task_is_made_no_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(task_log, "log_of", made.append)
    assert told_of(logging.LogRecord("test", logging.INFO, __file__, 1, "of no task", (), None)) is None
    assert made == []
