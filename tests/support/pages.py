"""What stands on a Markdown page: code blocks and tables by the comment above them, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pages() -> list[Path]:
    """Every Markdown page of the project, tests and hidden folders left out."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]
    return sorted(found)


def read(page: str) -> str:
    """The text of a page, by its path from the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def block(text: str, marker: str) -> str:
    """The code block below `<!-- marker -->`."""
    found = re.findall(
        rf"^<!-- {re.escape(marker)} -->\n```[a-z]+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, f"{len(found)} blocks are marked {marker!r}"
    return str(found[0])


def table(text: str, marker: str) -> list[list[str]]:
    """The rows of the table below `<!-- marker -->`, without its head; cells as they are written."""
    found = re.findall(rf"^<!-- {re.escape(marker)} -->\n+((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} tables are marked {marker!r}"
    return rows(found[0])


def rows(text: str) -> list[list[str]]:
    """The rows of the only table in `text`, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert re.fullmatch(r"[| -]+", lines[1]), lines[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} sections are called {heading!r}"
    return str(found[0])


def codes(cell: str) -> list[str]:
    """What stands between backquotes in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def links(text: str) -> Iterator[str]:
    """The targets of a page's links and pictures."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", outside):
        yield str(target)


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
