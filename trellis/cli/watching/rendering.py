"""Draws a picture with rich; pure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from trellis.cli.watching.metrics import accuracy_of
from trellis.cli.watching.picture import DeviceView, Picture, TaskPicture, TierPicture
from trellis.foreign_text import harmless_line
from trellis.payloads import Execution, ExecutionState, Presence, Progress, Round, State, TaskState

ROUNDS_SHOWN = 8
_COLOURS = {
    TaskState.SUCCEEDED: "green",
    TaskState.FAILED: "red",
    TaskState.CANCELED: "yellow",
    ExecutionState.SUCCEEDED: "green",
    ExecutionState.FAILED: "red",
    ExecutionState.REJECTED: "red",
    ExecutionState.TIMED_OUT: "red",
    ExecutionState.CANCELED: "yellow",
}


def render(
    picture: Picture, *, region: str | None = None, task: str | None = None, max_devices: int = 40
) -> RenderableType:
    """Return the whole view; `region` and `task` narrow it."""
    parts: list[RenderableType] = [_services(picture, region)]
    for name, one in sorted(picture.tasks.items()):
        if task in (None, name):
            parts += [Text(), _task_line(name, one)]
            if one.regional:
                parts.append(_tree(picture, one, region))
            if one.done:
                parts.append(_rounds(one))
    devices = [(key, one) for key, one in sorted(picture.devices.items()) if region in (None, key[0])]
    if devices:
        parts += [Text(), _devices(devices[:max_devices], task)]
    if len(devices) > max_devices:
        parts.append(Text(f"… and {len(devices) - max_devices} more devices", style="dim"))
    parts += [
        _text(f"{line.level.lower()} {line.region}/{line.device}: {line.brief}", "yellow")
        for line in picture.logs
        if task in (None, line.task) and region in (None, line.region)
    ]
    if picture.unreadable:
        parts.append(Text(f"{picture.unreadable} messages could not be read", style="dim"))
    return Group(*parts)


def _text(said: str, style: str = "") -> Text:
    # A plain str would be read as markup: `[torch]` vanishes, `[/srv]` is an error.
    return Text(harmless_line(said), style=style)


def _services(picture: Picture, region: str | None) -> Text:
    line = Text.assemble("server ", _presence(picture.server))
    for name in picture.regions:
        if region in (None, name):
            line.append_text(
                Text.assemble("   gateway ", _text(name, "bold"), " ", _presence(picture.gateways.get(name)))
            )
    return line


def _presence(state: State | None) -> tuple[str, str]:
    if state is None:
        return ("unknown", "dim")
    return ("online", "green") if state.state is Presence.ONLINE else ("offline", "red")


def _task_line(name: str, task: TaskPicture) -> RenderableType:
    central, now = task.central, task.round
    text = Text.assemble("task ", _text(name, "bold"))
    if central:
        text.append(f"  {central.state}", style=_COLOURS.get(central.state, "cyan"))
    if now and not (central and central.state.ended):
        text.append(_standing(now))
    if central and central.reason:
        # One that stopped early has succeeded, and says why.
        style = "green" if central.state is TaskState.SUCCEEDED else "red"
        text.append_text(_text(f"  {central.reason.message}", style))
    for region, status in sorted(task.statuses.items()):
        if status.verdict:
            text.append("\n").append_text(_text(f"  {region}: {status.verdict.message}", "red"))
    return text


def _standing(now: Round) -> str:
    said = f"  round {now.round} of {now.rounds}  {now.phase}"
    if now.selected:
        said += f"  {now.replied} of {now.selected} replied"
    if now.standby:
        said += f"  {now.standby} standing by"
    return said


def _tree(picture: Picture, task: TaskPicture, shown: str | None) -> Tree:
    """Return the regions that aggregate, each below the tier that it is a member of."""
    regional = task.regional
    above = {
        name: state.parent if (state := picture.gateways.get(name)) and state.parent in regional else None
        for name in regional
    }
    tree = Tree(Text("centre", style="dim"), guide_style="dim")
    nodes: dict[str | None, Tree] = {None: tree}
    waiting = [name for name in regional if shown in (None, name)]
    while waiting:
        ready = [name for name in waiting if above[name] in nodes]
        # A region shown alone hangs at the top, and so do two that call each other parent.
        for name in ready or waiting[:1]:
            nodes[name] = nodes.get(above[name], tree).add(_tier_line(name, regional[name]))
            waiting.remove(name)
    return tree


def _tier_line(region: str, tier: TierPicture) -> Text:
    text = _text(region, "bold")
    execution = tier.execution
    if execution is not None:
        said = str(execution.phase or "") if not execution.state.ended else execution.state.lower()
        text.append(f"  {said}", style=_COLOURS.get(execution.state, "cyan"))
    if tier.round is not None:
        text.append(_standing(tier.round))
        text.append("" if tier.round.loss is None else f"  loss {tier.round.loss:.4f}")
    if execution is not None and execution.reason is not None:
        text.append_text(_text(f"  {execution.reason.message}", "red"))
    return text


def _rounds(task: TaskPicture) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("round", "loss", "accuracy", "replied", "failed", "seconds"):
        table.add_column(name, justify="right")
    for number in sorted(task.done)[-ROUNDS_SHOWN:]:
        one = task.done[number]
        accuracy = accuracy_of(one.metrics)
        table.add_row(
            f"{one.round}",
            _number(one.loss, ".4f"),
            _number(accuracy, ".2%"),
            f"{one.replied} of {one.selected}",
            f"{one.failed + one.lost}",
            _number(one.duration_s, ".1f"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _devices(devices: list[tuple[tuple[str, str], DeviceView]], task: str | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("region", "device", "", "state", "doing", "round", "progress", "loss", "samples", "backend"):
        table.add_column(name, justify="right" if name in {"round", "loss", "samples"} else "left")
    for (region, device), view in devices:
        shown = view.current(task)
        names = (_text(region), _text(device))
        presence = Text("●", style="green" if view.online else "red")
        if shown is None:
            table.add_row(*names, presence, Text("idle" if view.online else "offline", style="dim"))
            continue
        name, execution = shown
        table.add_row(*names, presence, *_execution_cells(execution, view.progress.get(name)))
    return table


def _execution_cells(execution: Execution, progress: Progress | None) -> tuple[RenderableType, ...]:
    state = Text(execution.state.lower(), style=_COLOURS.get(execution.state, "cyan"))
    doing = execution.reason.message if execution.reason else str(execution.phase or "")
    bar: RenderableType = ""
    if progress and progress.steps:
        bar = ProgressBar(total=progress.steps, completed=progress.step, width=16)
    number = execution.round if execution.round is not None else (progress.round if progress else None)
    return (
        state,
        _text(doing),
        "" if number is None else str(number),
        bar,
        "" if progress is None else _number(progress.loss, ".4f"),
        "" if execution.samples is None else str(execution.samples),
        _text(execution.backend or ""),
    )
