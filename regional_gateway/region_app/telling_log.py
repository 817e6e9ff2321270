"""Tells the gateway what the region's app logs, so that it is read where the task is looked at."""

from __future__ import annotations

import logging

from trellis.flower.channel import ServiceChannel
from trellis.task_log import LineHandler, Pace, log_of

LOGGED = ("regional_gateway", "trellis", "models")
"""Whose lines are told; the gateway logs them again under the same names, and publishes what is logged so."""


class LogTeller(LineHandler):
    """Hands lines to the gateway, at most ten a second."""

    def __init__(self, channel: ServiceChannel) -> None:
        super().__init__()
        self._channel, self._pace = channel, Pace()

    def hand_on(self, record: logging.LogRecord) -> None:
        """Hand over `record`; the handler's lock makes it one at a time."""
        line = self._pace.passing(log_of(record))
        if line is not None:
            self._channel.log(line)
