"""Puts the ends of all logs below a failed test that had a federation."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from federation import Federation


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for fixture in item.funcargs.values():
            if isinstance(fixture, Federation):
                report.sections.append(("the federation's logs", fixture.last_words()))
    return report
