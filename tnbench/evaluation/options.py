"""The options of `tnbench generate`; imported when the command line starts, so nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Precision(StrEnum):
    """Of the weights, for inference."""

    fp32 = "fp32"
    bf16 = "bf16"


Run = Annotated[str, typer.Argument(metavar="RUN", help="A run id, a run folder or its manifest.json.")]
Prompt = Annotated[
    str,
    typer.Option("--prompt", metavar="TEXT", help="What to go on from; - reads stdin. Default: a new text."),
]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a sample at most.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the most probable token.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from the K most probable.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Draw from the most probable that have the share P.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Sample n draws with seed + n.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Samples, made together.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Default: bf16 on a GPU, fp32 elsewhere.")
]
