"""Charts as SVG without script: shapes stretch with the page, words beside them stay legible at any width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from central_server.report.axes import Rounds, Values
from central_server.report.markup import Html, element, joined

_BAR = 0.72
"""A bar's share of its slot; the rest is space."""
_NARROW = 1.0
"""In a slot below it, per cent of the chart, space would be a flicker: there the bars touch."""
_WIDEST = 12.0
"""A bar's greatest width, per cent of the chart: one round is no wall."""


@dataclass(frozen=True)
class Line:
    """A curve: `look` is its class in the style sheet, `points` its values by round."""

    name: str
    look: str
    points: Mapping[int, float]


@dataclass(frozen=True)
class Stack:
    """What bars are made of, from the bottom up: `look` is a class, `heights` the values by round."""

    name: str
    look: str
    heights: Mapping[int, float]


@dataclass(frozen=True)
class Frame:
    """What every chart has.

    Attributes:
        title: Its heading.
        told: What it shows, in a sentence, for those who do not see it.
        note: A line below the heading, "" for none.
        key: Class, name and value of each thing drawn.
        hints: What is said of a round while the pointer is on it.
    """

    title: str
    told: str
    note: str
    key: Sequence[tuple[str, str, str]]
    hints: Mapping[int, str]


def lines(
    frame: Frame, rounds: Rounds, values: Values, curves: Sequence[Line], label: Callable[[float], str]
) -> Html:
    """Return a chart of curves."""
    drawn: list[Html] = []
    for curve in curves:
        placed = [(rounds.x(number), values.y(value)) for number, value in sorted(curve.points.items())]
        path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in placed)
        drawn.append(element("path", d=path, class_=f"curve {curve.look}"))
        # A line of no length with round ends is a dot that no stretching makes an ellipse.
        shown = placed if len(placed) <= 40 else placed[-1:]
        dots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in shown)
        drawn.append(element("path", d=dots, class_=f"dots {curve.look}"))
    return _figure(frame, rounds, values, drawn, label)


def bars(
    frame: Frame,
    rounds: Rounds,
    values: Values,
    stacks: Sequence[Stack],
    label: Callable[[float], str],
    *,
    marks: Mapping[int, float] | None = None,
    level: float | None = None,
) -> Html:
    """Return a chart of stacked bars, with a mark across each and a level across all, if they are given."""
    step = _distance(frame.hints) * rounds.slot
    wide = min(step * _BAR, _WIDEST) if step > _NARROW else step
    drawn: list[Html] = []
    base = dict.fromkeys(frame.hints, 0.0)
    for stack in stacks:
        path = ""
        for number, height in stack.heights.items():
            if height > 0:
                left, bottom = rounds.x(number) - wide / 2, values.y(base[number])
                base[number] += height
                path += f"M{left:.2f} {bottom:.2f}V{values.y(base[number]):.2f}h{wide:.2f}V{bottom:.2f}z"
        if path:
            drawn.append(element("path", d=path, class_=f"bar {stack.look}"))
    if level is not None:
        drawn.append(element("path", d=f"M0 {values.y(level):.2f}H100", class_="level"))
    if marks:
        path = "".join(
            f"M{rounds.x(number) - wide / 2:.2f} {values.y(mark):.2f}h{wide:.2f}"
            for number, mark in marks.items()
        )
        drawn.append(element("path", d=path, class_="mark"))
    return _figure(frame, rounds, values, drawn, label)


def _distance(numbers: Mapping[int, object]) -> int:
    """How many rounds lie between one that is drawn and the next."""
    drawn = sorted(numbers)[:2]
    return drawn[1] - drawn[0] if len(drawn) == 2 else 1


def _figure(
    frame: Frame, rounds: Rounds, values: Values, drawn: Sequence[Html], label: Callable[[float], str]
) -> Html:
    grid = "".join(f"M0 {values.y(tick):.2f}H100" for tick in values.ticks)
    wide = _distance(frame.hints) * rounds.slot
    slots = [
        element(
            "g",
            element("title", hint),
            element("rect", x=f"{rounds.x(number) - wide / 2:.2f}", y=0, width=f"{wide:.2f}", height=100),
            class_="slot",
        )
        for number, hint in frame.hints.items()
    ]
    # Shapes stretch in both directions; strokes do not (vector-effect in the style sheet).
    drawing = element(
        "svg",
        element("path", d=grid, class_="grid"),
        *drawn,
        *slots,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )
    plot = element(
        "div",
        element(
            "div", *(element("span", label(tick)) for tick in values.ticks), class_="y", aria_hidden="true"
        ),
        element("div", drawing, class_="field"),
        element(
            "div",
            *(
                element("span", str(number), style=f"left:{rounds.x(number):.2f}%")
                for number in rounds.ticks()
            ),
            class_="x",
            aria_hidden="true",
        ),
        class_="plot",
        role="img",
        aria_label=frame.told,
    )
    heading = element(
        "figcaption", element("h3", frame.title), element("p", frame.note) if frame.note else ""
    )
    return element("figure", heading, _key(frame.key), plot)


def _key(entries: Sequence[tuple[str, str, str]]) -> Html:
    if not entries:
        return Html()
    return element(
        "ul",
        *(
            element("li", element("i", class_=look), joined([name, " "]), element("b", value))
            for look, name, value in entries
        ),
        class_="key",
    )
