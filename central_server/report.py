"""`report.html`: a task at its end, for people. One file, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from central_server.summary import Summary
from trellis.flower.backchannel import Outcome, RoundRecord

_WIDTH, _HEIGHT, _MARGIN = 640, 220, 48

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2rem; font-size: 1.1rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #dde3ea; }
svg { max-width: 100%; height: auto; } .state { color: #54606e; }
"""


def render(summary: Summary, history: Sequence[RoundRecord]) -> str:
    """Return the page."""
    title = escape(f"Task {summary.task}")
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="state">{_sentence(summary)}</p>',
        _curve("Loss", [(one.round, one.loss) for one in history], "#b3452c"),
        _curve("Accuracy", [(one.round, one.accuracy) for one in history], "#1f6f8b"),
        "<h2>Rounds</h2>",
        _table(_ROUND_HEAD, [_round_row(one) for one in history]),
        "<h2>Devices</h2>",
        _table(
            ("Device", "Region", "State", "Samples"),
            [(one.device, one.region, one.state or "–", _shown(one.samples)) for one in summary.devices],
        ),
        "<h2>Failures</h2>",
        _failures(history),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _sentence(summary: Summary) -> str:
    said = f"{summary.state}: {summary.rounds} rounds in {summary.seconds:.1f} s"
    if summary.accuracy is not None:
        said += f", accuracy {summary.accuracy:.4f}"
    if summary.reason is not None:
        said += f"; {summary.reason.message}"
    if summary.model is not None:
        said += f". Model: {summary.model}"
    return escape(said)


_ROUND_HEAD = ("Round", "Loss", "Accuracy", "Selected", "Replied", "Failed", "Seconds", "kB up", "kB down")


def _round_row(one: RoundRecord) -> tuple[str, ...]:
    return (
        str(one.round),
        _shown(one.loss),
        _shown(one.accuracy),
        str(one.selected),
        str(one.replied),
        str(one.failed),
        f"{one.duration_s:.2f}",
        f"{one.bytes_up / 1000:.1f}",
        f"{one.bytes_down / 1000:.1f}",
    )


def _failures(history: Sequence[RoundRecord]) -> str:
    rows = [
        (
            str(one.round),
            outcome.device,
            outcome.region,
            outcome.phase,
            outcome.outcome,
            outcome.reason or "–",
        )
        for one in history
        for outcome in one.outcomes
        if _failed(outcome)
    ]
    return (
        _table(("Round", "Device", "Region", "Phase", "Outcome", "Reason"), rows) if rows else "<p>None.</p>"
    )


def _failed(outcome: Outcome) -> bool:
    return outcome.outcome != "replied"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        "<table><thead><tr>"
        + "".join(f"<th>{escape(cell)}</th>" for cell in head)
        + f"</tr></thead><tbody>{body}</tbody></table>"
    )


def _curve(name: str, points: Iterable[tuple[int, float | None]], colour: str) -> str:
    known = [(x, y) for x, y in points if y is not None]
    if not known:
        return f"<h2>{name}</h2><p>Not measured.</p>"
    first, last = known[0][0], known[-1][0]
    low, high = min(y for _, y in known), max(y for _, y in known)
    across = (_WIDTH - 2 * _MARGIN) / max(last - first, 1)
    up = (_HEIGHT - 2 * _MARGIN) / ((high - low) or 1.0)
    placed = [(_MARGIN + (x - first) * across, _HEIGHT - _MARGIN - (y - low) * up) for x, y in known]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in placed)
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - _MARGIN
    return (
        f'<h2>{name}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">'
        f"<title>{name} by round: from {known[0][1]:.4g} to {known[-1][1]:.4g}</title>"
        f'<path d="M{_MARGIN} {_MARGIN}V{bottom}H{right}" fill="none" stroke="#9aa5b1"/>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'
        f"{_label(_MARGIN - 6, _MARGIN + 4, f'{high:.4g}', 'end')}"
        f"{_label(_MARGIN - 6, bottom + 4, f'{low:.4g}', 'end')}"
        f"{_label(_MARGIN, bottom + 18, str(first), 'middle')}"
        f"{_label(right, bottom + 18, str(last), 'middle')}</svg>"
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="11" text-anchor="{anchor}" fill="#54606e">{escape(text)}</text>'


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
