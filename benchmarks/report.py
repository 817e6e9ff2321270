"""What every benchmark prints and writes: a table, the machine's load, and JSON rows."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ground import Ended, end_on_signals
from rich.console import Console
from rich.table import Table

from trellis.errors import ConfigError
from trellis.files import writable_file

Rows = list[dict[str, Any]]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the module's text as help, with `--json`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--json", type=output_file, metavar="FILE", help="write the rows there, as JSON")
    return made


def output_file(text: str) -> Path:
    """Return the file that an option names; one that cannot be written is told before all else."""
    try:
        return writable_file(Path(text), option="FILE")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def counts(text: str) -> list[int]:
    """Return the numbers, each at least 1, that an option gives as 2,8."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} came, whole numbers from 1 with commas between are due, such as 2,8"
        )
    return numbers


def show(rows: Rows, columns: Sequence[str], *, title: str) -> None:
    """Print rows as a table; what a row lacks is left empty."""
    headings = (column.replace("_", " ") for column in columns)
    table = Table(*headings, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    Console().print(table)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    Console().print(f"load averages at the end: {load}, on {os.cpu_count()} cores", highlight=False)


def write(rows: Rows, file: Path | None) -> None:
    """Write `{"rows": […]}` where a file was asked for."""
    if file is not None:
        file.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; a process that failed and Ctrl-C end in words, not in a traceback."""
    end_on_signals()
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: nothing of the benchmark runs any more", file=sys.stderr)
        sys.exit(130)
    except Ended as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
