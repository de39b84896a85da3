"""The options of `tnbench generate` and `tnbench eval`; imported at every start, so nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """Of the weights, for inference."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


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

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN…", help="Run ids, run folders or manifests; the first is the base."),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks", metavar="NAME,…", help="lm-eval's tasks, paper, small, cloze. Default: the shipped cloze."
    ),
]
Fewshot = Annotated[
    int | None, typer.Option("--num-fewshot", min=0, help="Examples before a question. Default: the task's.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task at most.")]
Include = Annotated[
    Path | None, typer.Option("--include-path", metavar="DIR", help="A folder of task files of your own.")
]
TaskData = Annotated[
    Path | None,
    typer.Option("--task-data", metavar="DIR", help="A folder of saved data sets, in place of the hub."),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", min=2, help="Tokens given at a time. Default: the trained context."),
]
Faithful = Annotated[
    bool,
    typer.Option(
        "--faithful", help="Official checkpoints with the official code's errors.", show_default=False
    ),
]
ByPosition = Annotated[
    str | None,
    typer.Option(
        "--by-position",
        metavar="16x",
        help="The loss at each position instead, in windows of so many tokens or trained contexts.",
    ),
]
