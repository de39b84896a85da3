"""The options of `tnbench profile-kernels`; imported when the command line starts, so nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

Operators = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OPERATOR]...", help="linear_attention, norm, … (default: all)."),
]
Length = Annotated[str | None, typer.Option("--length", metavar="1k,2k,…", help="Lengths.")]
Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="B,H", help="A pair of batch and heads. Repeatable."),
]
Batch = Annotated[str | None, typer.Option("--batch", metavar="B,…", help="Batch sizes.")]
Heads = Annotated[str | None, typer.Option("--heads", metavar="H,…", help="Numbers of heads.")]
HeadDim = Annotated[str | None, typer.Option("--head-dim", metavar="D,…", help="Head dims.")]
Rows = Annotated[str | None, typer.Option("--rows", metavar="4k,…", help="Rows of a norm.")]
Width = Annotated[str | None, typer.Option("--width", metavar="1k,…", help="Width of a norm.")]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="NAME,…", help="bfloat16, float16, float32.")]
Mode = Annotated[
    str | None, typer.Option("--mode", metavar="NAME,…", help="forward, backward, both, decode.")
]
Form = Annotated[
    str | None,
    typer.Option("--form", metavar="NAME,…", help="srmsnorm, rmsnorm, layernorm, cosine, rotation."),
]
Implementation = Annotated[
    list[str] | None,
    typer.Option("--implementation", metavar="NAME", help="Default: all that run here. Repeatable."),
]
Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Interleaved rounds at each point. GPU: 5, CPU: 3.")
]
Energy = Annotated[
    float | None,
    typer.Option("--energy", metavar="SECONDS", min=0, help="Window per row; 0: none. GPU: 0.3."),
]
Against = Annotated[
    str | None, typer.Option("--against", metavar="GITREF", help="Compare with this revision's kernels.")
]
