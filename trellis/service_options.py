"""Options that server, gateway and device have alike."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class LogLevel(StrEnum):
    """Which log lines are written."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


BaseOption = Annotated[str, typer.Option("--base", metavar="TOPIC", help="The topics' common beginning.")]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="No TLS: loopback only. Tasks must be signed all the same.")
]
KeepHoursOption = Annotated[
    float, typer.Option("--keep-hours", metavar="HOURS", help="How long topics stay after a task's end.")
]
LogLevelOption = Annotated[
    LogLevel,
    typer.Option("--log-level", metavar="LEVEL", case_sensitive=False, help="DEBUG, INFO, WARNING or ERROR."),
]
