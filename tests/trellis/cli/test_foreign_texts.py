"""What devices and services say reaches the operator's terminal word for word, and steers nothing there."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from trellis.cli.edge import main
from trellis.cli.root import root
from trellis.cli.task import tables
from trellis.cli.watching.narration import narrate
from trellis.cli.watching.picture import DeviceView, LogLine, Picture, TaskPicture
from trellis.cli.watching.screen import Screen
from trellis.errors import TrellisError
from trellis.foreign_text import harmless, harmless_line, json_text
from trellis.payloads import (
    CentralTask,
    Execution,
    ExecutionState,
    Presence,
    Reason,
    State,
    TaskState,
    TaskStatus,
)

# Each once made the live view fail, vanish in part, or steer the terminal; and how it must stand there.
HOSTILE = {
    "no file [/srv/x.npz]": "no file [/srv/x.npz]",
    "pip install 'trellis-fl[torch]'": "pip install 'trellis-fl[torch]'",
    "[bold red]x[/bold red] \\[y]": "[bold red]x[/bold red] \\[y]",
    ":smile: [link=file:///etc]z": ":smile: [link=file:///etc]z",
    "\x1b[2Jgone": "\\x1b[2Jgone",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b31mred": "\\x9b31mred",
    "a\u202egnp.exe": "a\\u202egnp.exe",
    "one\nserver is offline": "one\\nserver is offline",
    "up\rover": "up\\rover",
    "lone \udcff": "lone \\udcff",
}
CASES = pytest.mark.parametrize(("said", "due"), HOSTILE.items(), ids=range(len(HOSTILE)))
ONLINE = State(state=Presence.ONLINE, boot_id="b", since=1)


def picture(said: str) -> Picture:
    reason = Reason.model_construct(code="data", message=said)  # not through the parser: the worst case
    central = CentralTask(task="digits", revision=1, state=TaskState.FAILED, since=1, rounds=3, reason=reason)
    status = TaskStatus(task="digits", revision=1, desired="run", verdict=reason)
    execution = Execution(state=ExecutionState.REJECTED, reason=reason)
    return Picture(
        server=ONLINE,
        gateways={"eu-1": ONLINE},
        devices={("eu-1", "cam-1"): DeviceView(state=ONLINE, executions={"digits": execution})},
        tasks={"digits": TaskPicture(central=central, statuses={"eu-1": status})},
    )


def drawn_live(shown: Picture, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the live view leaves on a terminal."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=300, height=60, color_system="truecolor")
    monkeypatch.setattr("rich._console", console)
    with Screen(live=True) as screen:
        screen.show(shown)
    return output.getvalue()


def plain(drawn: str) -> str:
    # rich's own: colors, cursor.
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", drawn).replace("\r", "")


@CASES
def test_the_live_view_shows_it_as_it_is(said: str, due: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = plain(drawn_live(picture(said), monkeypatch))
    assert harmless(drawn) == drawn
    final = drawn[drawn.rindex("server online") :].splitlines()
    (device,) = [line for line in final if line.startswith("eu-1  ")]
    assert f"rejected  {due}  " in f"{device}  "
    assert f"task digits  failed  {due}" in [line.rstrip() for line in final]
    assert f"  eu-1: {due}" in [line.rstrip() for line in final]


@CASES
def test_a_log_line_is_drawn_as_it_is(said: str, due: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\n" in said or "\r" in said:
        due = f"{said.splitlines()[0]} … {said.splitlines()[-1]}"  # a traceback in brief
    logged = Picture(logs=(LogLine("eu-1", "cam-1", "digits", "WARNING", said),))
    drawn = plain(drawn_live(logged, monkeypatch))
    assert f"warning eu-1/cam-1: {due}" in drawn


@CASES
def test_it_is_told_in_one_line(said: str, due: str) -> None:
    told = narrate(Picture(), picture(said))
    assert all(line.isprintable() for line in told)
    assert f"device eu-1/cam-1 does not take part: {due}" in told
    assert f"digits: failed: {due}" in told
    assert f"digits: gateway eu-1 says: {due}" in told


@CASES
def test_it_stands_in_one_row_of_a_table(said: str, due: str) -> None:
    reason = {"code": "data", "message": said}
    listed = tables.tasks([{"task": "digits", "state": "failed", "reason": reason}])
    assert listed.splitlines()[1].endswith(due)
    members = [{"region": "eu-1", "device": "cam-1", "state": "REJECTED", "reason": reason}]
    shown = tables.task({"task": "digits", "reason": reason, "metrics": {said: 1.0}, "devices": members})
    assert shown.splitlines()[1] == f"reason:            {due}"
    assert f"{due}:" in shown
    assert shown.splitlines()[-1].endswith(due)
    held = tables.devices([{"device": "cam-1", "info": {"backends": [said], "data": {"name": said}}}])
    assert held.splitlines()[1].count(due) == 2
    for text in (listed, shown, held):
        assert all(line.isprintable() for line in text.split("\n"))


@CASES
def test_an_error_that_quotes_it_is_printed_harmless(
    said: str, due: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TrellisError(f"the gateway answered {said}")

    monkeypatch.setattr(root, "main", fail)
    assert main([]) == 1
    # Our own messages have several lines.
    assert capsys.readouterr().err == f"error: the gateway answered {due}\n".replace("\\nserver", "\nserver")


@CASES
def test_as_json_it_is_the_same_value_in_printable_characters(said: str, due: str) -> None:
    text = json_text({said: ["ü 字", said]})
    assert text.isprintable()
    assert json.loads(text) == {said: ["ü 字", said]}
    assert "ü 字" in text
    assert json.loads(json_text([said], indent=2)) == [said]


def test_lines_and_tabs_stay_in_a_block_and_not_in_a_line() -> None:
    assert harmless("a\n\tb\x00") == "a\n\tb\\x00"
    assert harmless_line("a\n\tb\x00") == "a\\n\\tb\\x00"
