"""The report as a browser shows it: drawn, at any width and in both colour schemes, and nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium

from central_server.report.page import render
from tests.central_server.parts import Launcher, descriptor
from tests.central_server.test_report import EVIL, history, summary

DRAWN = """[...document.querySelectorAll('figure svg')].map(svg => {
  const shapes = [...svg.querySelectorAll('.curve, .dots, .bar')].map(shape => shape.getBoundingClientRect());
  return [svg.getBoundingClientRect().width, Math.max(...shapes.map(box => box.width), 0), shapes.length];
})"""
SCROLLS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
# Letters on top of each other are no letters: the labels below a chart keep apart.
CROWDED = """[...document.querySelectorAll('.x')].some(axis => {
  const boxes = [...axis.children].map(label => label.getBoundingClientRect());
  return boxes.some((box, index) => box.height > 20 || (index && boxes[index - 1].right > box.left));
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


def complaints(browser: Chromium) -> list[Any]:
    """What the console was told, and what was fetched beside the page itself."""
    fetched = [one["request"]["url"] for one in browser.told("Network.requestWillBeSent")]
    said = [*browser.told("Runtime.consoleAPICalled"), *browser.told("Runtime.exceptionThrown")]
    return [*browser.told("Log.entryAdded"), *said, *fetched[1:]]


async def test_the_report_of_a_task_is_drawn(launch: Launcher, browser: Chromium) -> None:
    launch.script = ["works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")
        page = running.runs / "digits-mlp" / "report.html"
    browser.open(page.as_uri(), width=1400, scheme="light")
    assert browser.evaluate("document.title") == "Task digits-mlp: succeeded"
    assert "97.00%" in browser.evaluate("document.body.innerText")
    drawn = browser.evaluate(DRAWN)
    assert len(drawn) == 4
    for width, widest, shapes in drawn:
        # Three rounds: a curve spans two thirds of the width, three bars of 12 % somewhat more.
        assert width > 400
        assert widest > 0.6 * width
        assert shapes > 0
    assert complaints(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
def test_a_hostile_fleets_report_fits_runs_nothing_and_fetches_nothing(
    browser: Chromium, tmp_path: Path, width: int, scheme: str
) -> None:
    rounds = [one.model_copy(update={"round": number + 1}) for number in range(100) for one in history()[:1]]
    page = tmp_path / "report.html"
    page.write_text(render(summary(tmp_path, rounds), rounds, descriptor(task="x" * 63)), encoding="utf-8")
    browser.open(page.as_uri(), width=width, scheme=scheme)
    assert browser.evaluate("document.querySelector('.reason').innerText") == EVIL
    assert not browser.evaluate(SCROLLS)
    assert not browser.evaluate(CROWDED)
    red = browser.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
    assert (red < 64) == (scheme == "dark")
    assert complaints(browser) == []
