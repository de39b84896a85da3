"""The options of `tnbench ablate`, `train` and `compare`; imported when the command line starts, so nothing
heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Suite = Annotated[
    str, typer.Argument(metavar="SUITE", help="A shipped suite (tnbench list suite) or a YAML file.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Show what it would cost; run nothing.")]
Status = Annotated[bool, typer.Option("--status", help="Show where its runs stand; run nothing.")]
Report = Annotated[bool, typer.Option("--report", help="Rewrite the reports from the records; run nothing.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Use seeds 0 … N-1.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Runs at a time.")]

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and data order.")]
Source = Annotated[
    Path | None,
    typer.Option("--from", metavar="MANIFEST", help="Repeat the run of a manifest.json, and compare."),
]

A = Annotated[
    str, typer.Argument(metavar="A", help="A run id or folder, SUITE/VARIANT, or a results folder.")
]
B = Annotated[str, typer.Argument(metavar="B", help="As A; differences are A minus B.")]
Metric = Annotated[
    str,
    typer.Option("--metric", help="val_bits_per_byte, val_loss_nats, val_loss_bits or train_loss_nats."),
]
Margin = Annotated[
    float | None, typer.Option("--margin", help="Differences up to it are equivalent; metric's unit.")
]
Alpha = Annotated[float, typer.Option("--alpha", help="Level of the verdicts.")]
