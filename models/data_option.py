"""The option by which commands are given one data set."""

from __future__ import annotations

from typing import Annotated

import typer

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="digits, PATH or NAME=PATH (NPZ, IDX, CSV, folder of images by class) or FILE.csv#COLUMN.",
    ),
]
