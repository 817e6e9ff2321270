"""Curves by round as one SVG file that needs nothing else, drawn on the axes of a task's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from central_server.report.axes import Rounds, Values
from central_server.report.markup import Html, element

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 700, 56, 376
COLORS = ("#0b63b0", "#b8480b", "#16776b")
_FONT = "14px system-ui, sans-serif"


def svg(title: str, across: str, curves: Mapping[str, Sequence[float]]) -> str:
    """Return a drawing of shares from 0 to 1, the first value of each curve being that of round 1."""
    rounds = Rounds(1, max(map(len, curves.values())))
    values = Values.around((0.0, 1.0), lowest=0.0, highest=1.0)
    drawn: list[Html] = [element("title", title), element("rect", width=WIDTH, height=HEIGHT, fill="#fff")]
    for tick in values.ticks:
        y = _y(values, tick)
        drawn.append(element("path", d=f"M{LEFT} {y:.1f}H{RIGHT}", stroke="#d5dae0"))
        drawn.append(_text(f"{tick:.0%}", LEFT - 8, y + 5, "end"))
    drawn += [_text(str(number), _x(rounds, number), BOTTOM + 20, "middle") for number in rounds.ticks()]
    drawn.append(_text(across, (LEFT + RIGHT) / 2, BOTTOM + 38, "middle"))
    for place, ((name, points), color) in enumerate(zip(curves.items(), COLORS, strict=False)):
        placed = (f"{_x(rounds, n):.1f} {_y(values, point):.1f}" for n, point in enumerate(points, 1))
        path = "M" + "L".join(placed)
        drawn.append(element("path", d=path, fill="none", stroke=color, stroke_width=2.5))
        left = LEFT + place * 330
        drawn.append(element("path", d=f"M{left} 30h24", stroke=color, stroke_width=2.5))
        drawn.append(_text(f"{name}: {points[-1]:.1%}", left + 32, 35, "start"))
    size = {"width": WIDTH, "height": HEIGHT, "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    return element("svg", *drawn, xmlns="http://www.w3.org/2000/svg", role="img", **size) + "\n"


def _x(rounds: Rounds, number: int) -> float:
    return LEFT + rounds.x(number) / 100 * (RIGHT - LEFT)


def _y(values: Values, value: float) -> float:
    return TOP + values.y(value) / 100 * (BOTTOM - TOP)


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text_anchor": anchor}
    return element("text", text, fill="#3c4650", style=f"font:{_FONT}", **place)
