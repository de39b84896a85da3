"""The options of `tnbench profile-model`; imported when the command line starts, so nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Largest(StrEnum):
    """What `--largest` searches along."""

    context = "context"
    batch = "batch"


Mode = Annotated[
    str | None, typer.Option("--mode", metavar="NAME,…", help="train, prefill, decode. Default: train.")
]
Preset = Annotated[
    list[str] | None,
    typer.Option("--preset", metavar="NAME", help="A variant; the first is the base. fla-retnet is a peer."),
]
Diff = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="'NAME: KEY=VALUE …'", help="A diff to the first preset. Repeatable."),
]
SuiteName = Annotated[
    str | None, typer.Option("--suite", metavar="SUITE", help="The variants of a suite, in place of presets.")
]
Size = Annotated[str | None, typer.Option("--size", metavar="385m,1b,…", help="Sizes of tnbench list.")]
Context = Annotated[str | None, typer.Option("--context", metavar="2k,8k,…", help="Tokens of context.")]
Batch = Annotated[
    str | None,
    typer.Option(
        "--batch", metavar="N,…", help="Sequences. Default: train 32k tokens a step (CPU: 2k), else 1."
    ),
]
Vocabulary = Annotated[
    int | None,
    typer.Option(
        "--vocabulary",
        metavar="N",
        min=2,
        max=1 << 31,
        help="Tokens known, which are random. GPU: 50272, CPU: 4096.",
    ),
]
Precision = Annotated[
    str | None, typer.Option("--precision", metavar="NAME", help="fp32 or bf16. GPU: bf16, CPU: fp32.")
]
Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Interleaved rounds at each point. Default: 5.")
]
Energy = Annotated[
    float | None,
    typer.Option("--energy", metavar="SECONDS", min=0, help="Window per row; 0: none. GPU: 1."),
]
LargestOption = Annotated[
    Largest | None,
    typer.Option("--largest", help="Search for the largest that fits, each trial in a fresh process."),
]
Fit = Annotated[
    str | None,
    typer.Option(
        "--fit", metavar="80GB", help="What fits by the memory model; runs nothing. With --largest: a limit."
    ),
]
