"""The outer edge: what is raised inside becomes one line on stderr and an exit code, here and nowhere else.

0    done                          1    it failed; what was asked for did not come about
2    mend the input                130  interrupted (Ctrl-C)
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click

from trellis.cli.root import root
from trellis.errors import TrellisError, leaves
from trellis.foreign_text import harmless

INTERRUPTED = 130
PROGRAM = "trellis"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # What matters is raised: beside its result only a service says anything, in a log that it configures.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone (`trellis watch | head`): Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = root.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except TrellisError as error:
        return _failed(str(error), error.exit_code)
    except click.UsageError as error:
        hint = f"\n  see: {error.ctx.command_path} --help" if error.ctx else ""
        return _failed(f"{_sentence(error)}{hint}", error.exit_code)
    except click.ClickException as error:
        return _failed(_sentence(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BaseExceptionGroup as group:
        # A TaskGroup wraps what its tasks raise. Ours are answers; all else is a bug and keeps its traceback.
        found = list(leaves(group))
        if any(isinstance(leaf, BrokenPipeError) for leaf in found):
            raise BrokenPipeError from None
        ours = [leaf for leaf in found if isinstance(leaf, TrellisError)]
        if len(ours) < len(found):
            raise
        return max(_failed(str(error), error.exit_code) for error in ours)
    # A command says its exit code with `typer.Exit`, which arrives here as a number, or by returning it.
    return result if isinstance(result, int) else 0


def _failed(message: str, code: int) -> int:
    print(f"error: {harmless(message)}", file=sys.stderr)
    return code


def _sentence(error: click.ClickException) -> str:
    text = error.format_message().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}"
