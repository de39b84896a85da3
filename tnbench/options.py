"""Options that several commands share; imported when the command line starts, so nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where runs take place."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Keep(StrEnum):
    """What stays of a finished run beside its records."""

    weights = "weights"
    none = "none"


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a configuration key, e.g. model.size=1m. Repeatable."
    ),
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where results are written.")]
RecordsOption = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Where results are looked for.")
]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a GPU where there is one.")]
KeepOption = Annotated[Keep, typer.Option("--keep", help="What to keep of finished runs beside the records.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="bytes, bpe-N, a tokenizer folder or hf:NAME.")
]
FieldOption = Annotated[str, typer.Option("--text-field", help="The JSONL field that holds the text.")]
TimeLimitOption = Annotated[
    float | None,
    typer.Option("--time-limit", metavar="SECONDS", min=0, help="Start nothing after this; resumable."),
]
MeasurePlanOption = Annotated[bool, typer.Option("--plan", help="Show what would be measured; run nothing.")]
MeasureReportOption = Annotated[
    bool, typer.Option("--report", help="Rewrite tables and plots from the records; run nothing.")
]
