"""The four charts of a task: loss, accuracy, participants and time, by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set

from central_server.report.axes import Rounds, Values, plain, thinned
from central_server.report.charts import Frame, Line, Stack, bars, lines
from central_server.report.markup import Html, element
from trellis.durations import in_words
from trellis.flower.backchannel import RoundRecord

_MOST = 400
"""More rounds than a chart has room for are thinned out."""
_SOURCES = (
    ("eval", "devices, evaluated", "a"),
    ("train", "devices, in training", "b"),
    ("server", "server", "c"),
)
_LOOKS = {"failed": "failed-part"}
_PARTS = ("replied", "failed", "lost", "late", "superseded", "standby")


def charts(history: Sequence[RoundRecord]) -> Html:
    """Return the section of the charts, or that there is nothing to draw."""
    heading = element("h2", "Round by round")
    if not history:
        return element("section", heading, element("p", "No round was finished.", class_="none"))
    kept, every = thinned([one.round for one in history], _MOST)
    drawn = [one for one in history if one.round in kept]
    rounds = Rounds(history[0].round, history[-1].round)
    note = "" if every == 1 else f"One round in {every} is drawn."
    figures = [
        _curves("Loss", "loss", drawn, rounds, note),
        _curves("Accuracy", "accuracy", drawn, rounds, note),
        _participants(history, kept, rounds, note),
        _durations(history, kept, rounds, note),
    ]
    return element("section", heading, element("div", *figures, class_="charts"))


def _curves(title: str, measure: str, drawn: Sequence[RoundRecord], rounds: Rounds, note: str) -> Html:
    curves = [
        Line(name, look, points)
        for source, name, look in _SOURCES
        if (
            points := {
                o.round: o.metrics[f"{source}_{measure}"] for o in drawn if f"{source}_{measure}" in o.metrics
            }
        )
    ]
    if not curves:
        spoken = {one.round: value for one in drawn if (value := getattr(one, measure)) is not None}
        curves = [Line(measure, "a", spoken)] if spoken else []
    if not curves:
        absent = element("p", "Not measured.", class_="none")
        return element("figure", element("figcaption", element("h3", title)), absent)
    share = measure == "accuracy"
    values = Values.around(
        (value for curve in curves for value in curve.points.values()),
        **({"lowest": 0.0, "highest": 1.0} if share else {}),
    )
    label = _percent(values) if share else _plain(values)
    shown: Callable[[float], str] = "{:.2%}".format if share else "{:.4g}".format
    told = "; ".join(f"{curve.name} from {shown(_first(curve))} to {shown(_last(curve))}" for curve in curves)
    frame = Frame(
        title=title,
        told=f"{title} by round, rounds {rounds.first} to {rounds.last}: {told}.",
        note=note,
        key=[(curve.look, curve.name, shown(_last(curve))) for curve in curves],
        hints={
            one.round: f"Round {one.round}\n"
            + "\n".join(f"{c.name}: {shown(c.points[one.round])}" for c in curves if one.round in c.points)
            for one in drawn
        },
    )
    return lines(frame, rounds, values, curves, label)


def _participants(history: Sequence[RoundRecord], kept: Set[int], rounds: Rounds, note: str) -> Html:
    found = {one.round: _parts(one) for one in history}
    totals = sum(found.values(), Counter[str]())
    counts = {number: counted for number, counted in found.items() if number in kept}
    stacks = [
        Stack(name, _LOOKS.get(name, name), {number: counted[name] for number, counted in counts.items()})
        for name in _PARTS
        if totals[name]
    ]
    marks = {one.round: one.selected for one in history if one.round in kept}
    selected = sum(one.selected for one in history)
    said = ", ".join(f"{totals[stack.name]} {stack.name}" for stack in stacks) or "none"
    frame = Frame(
        title="Participants",
        told=f"Participants by round: {selected} selected over all rounds; {said}.",
        note=note,
        key=[("line", "selected", f"{selected:,}")]
        + [(stack.look, stack.name, f"{totals[stack.name]:,}") for stack in stacks],
        hints={
            number: f"Round {number}\nselected: {marks[number]}\n"
            + "\n".join(f"{name}: {counted[name]}" for name in _PARTS if counted[name])
            for number, counted in counts.items()
        },
    )
    values = Values.from_zero(
        [*(counted.total() for counted in counts.values()), *marks.values()], whole=True
    )
    return bars(frame, rounds, values, stacks, _plain(values), marks=marks)


def _parts(one: RoundRecord) -> Counter[str]:
    counted = Counter[str](part.outcome for part in one.outcomes if part.phase == "train")
    if not counted:
        counted.update(replied=one.replied, failed=one.failed)
    counted["standby"] = one.standby
    return counted


def _durations(history: Sequence[RoundRecord], kept: Set[int], rounds: Rounds, note: str) -> Html:
    durations = {one.round: one.duration_s for one in history if one.round in kept}
    ordered = sorted(one.duration_s for one in history)
    middle = ordered[len(ordered) // 2]
    values = Values.from_zero(ordered)
    frame = Frame(
        title="Seconds a round",
        told=f"Seconds a round: {in_words(middle)} the median, {in_words(ordered[-1])} the longest.",
        note=note,
        key=[("line level", "median", in_words(middle)), ("a", "longest", in_words(ordered[-1]))],
        hints={number: f"Round {number}\n{in_words(seconds)}" for number, seconds in durations.items()},
    )
    return bars(frame, rounds, values, [Stack("time", "a", durations)], _plain(values), level=middle)


def _plain(values: Values) -> Callable[[float], str]:
    return lambda value: plain(value, values.step)


def _percent(values: Values) -> Callable[[float], str]:
    return lambda value: f"{plain(value * 100, values.step * 100)}%"


def _first(curve: Line) -> float:
    return next(iter(curve.points.values()))


def _last(curve: Line) -> float:
    return next(reversed(list(curve.points.values())))
