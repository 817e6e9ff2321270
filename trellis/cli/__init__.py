"""The command line: one root whose commands are imported only when they run."""

from __future__ import annotations

from trellis.cli.edge import main

__all__ = ["main"]
