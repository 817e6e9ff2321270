"""Shows pictures: redrawn in place on a terminal, told in plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

from trellis.cli.watching.narration import narrate
from trellis.cli.watching.picture import Picture
from trellis.cli.watching.rendering import render

REDRAWS_PER_S = 5


class Screen(AbstractContextManager["Screen"]):
    """Shows the picture that it was given last, until it is left.

    Args:
        region: Show this region only.
        task: Show this task only.
        live: Draw; by default if stdout is a terminal.
        quiet: Show nothing.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        task: str | None = None,
        live: bool | None = None,
        quiet: bool = False,
    ) -> None:
        self._region, self._task = region, task
        self._live = sys.stdout.isatty() if live is None else live
        self._quiet = quiet
        self._shown = Picture()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._live and not self._quiet:
            # rich.live costs start-up time, and plain lines need none of it.
            from rich.live import Live  # noqa: PLC0415

            self._stack.enter_context(
                Live(
                    get_renderable=lambda: render(self._shown, region=self._region, task=self._task),
                    refresh_per_second=REDRAWS_PER_S,
                )
            )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.close()

    def show(self, picture: Picture) -> None:
        """Show `picture` from now on."""
        before, self._shown = self._shown, picture
        if not self._live and not self._quiet:
            for line in narrate(before, picture, task=self._task):
                print(line, flush=True)
