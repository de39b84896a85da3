"""The options of `tnbench export`; imported when the command line starts, so nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """What is written."""

    hf = "hf"


Folder = Annotated[str, typer.Argument(metavar="DIR", help="A folder that is new or empty.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="hf: a folder for Hugging Face's AutoModelForCausalLM.")
]
