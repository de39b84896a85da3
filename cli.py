"""The command line: parse, call, print. What a command needs is imported when it is called."""

from __future__ import annotations

import json
import os
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tnbench.errors import RequestError
from tnbench.version import VERSION

WRONG_REQUEST = 2
INTERRUPTED = 130

app = typer.Typer(
    name="tnbench",
    help="Which design choices of a linear-attention language model matter, and what they cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(name="data", help="Prepare or describe a corpus.", no_args_is_help=True)
app.add_typer(data_app)


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
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a GPU where there is one.")]
KeepOption = Annotated[Keep, typer.Option("--keep", help="What to keep of finished runs beside the records.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="bytes, bpe-N, a tokenizer folder or hf:NAME.")
]
FieldOption = Annotated[str, typer.Option("--text-field", help="The JSONL field that holds the text.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere on the line).")] = False,
) -> None:
    if version:
        typer.echo(f"tnbench {VERSION}")
        raise typer.Exit


def _console() -> Any:
    from rich.console import Console

    class Quiet(Console):
        """Goes on without output where the reader of a pipe has gone: a suite is not stopped by `| head`."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    if sys.stdout.isatty():
        return Quiet(markup=False)
    # Output to a file or pipe is plain, and wide enough for a table's rows to stay on their lines.
    columns = os.environ.get("COLUMNS", "")
    return Quiet(markup=False, width=int(columns) if columns.isdigit() else 160)


def _settings(settings: list[str] | None) -> dict[str, Any]:
    from tnbench.resolution import parse_setting

    parsed: dict[str, Any] = {}
    for text in settings or []:
        key, value = parse_setting(text)
        if key in parsed:
            raise RequestError(f"--set {key} is given twice")
        parsed[key] = value
    return parsed


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="mixer, position, decay, norm, preset, suite, …")] = None,
    as_json: JsonOption = False,
) -> None:
    """List components, presets, sizes, suites and operators."""
    from tnbench import catalogue

    if as_json:
        typer.echo(json.dumps(catalogue.listing(kind), indent=1, ensure_ascii=False))
    else:
        console = _console()
        for table in catalogue.tables(kind):
            console.print(table, "")


@app.command()
def ablate(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A shipped suite (tnbench list suite) or a YAML file.")
    ],
    plan: Annotated[bool, typer.Option("--plan", help="Show what it would cost; run nothing.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show where its runs stand; run nothing.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Rewrite the reports from the records; run nothing.")
    ] = False,
    settings: SetOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Use seeds 0 … N-1.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Runs at a time.")] = None,
    device: DeviceOption = Device.auto,
    results: ResultsOption = Path("results"),
    keep: KeepOption = Keep.weights,
) -> None:
    """Run what is missing of a suite, then write its tables, plots and report.

    A rerun goes on where the last one stopped; Ctrl-C is safe.
    """
    chosen = [name for name, on in (("plan", plan), ("status", status), ("report", report)) if on]
    if len(chosen) > 1:
        raise RequestError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    from tnbench.ablation import command

    _leave(
        command.ablate(
            suite,
            settings=_settings(settings),
            seeds=seeds,
            workers=workers,
            device=device.value,
            results=results,
            keep=keep.value,
            mode=chosen[0] if chosen else "run",
            console=_console(),
        )
    )


@app.command()
def train(
    context: typer.Context,
    settings: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and data order.")] = 0,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="MANIFEST", help="Repeat the run of a manifest.json, and compare."),
    ] = None,
    device: DeviceOption = Device.auto,
    results: ResultsOption = Path("results"),
    keep: KeepOption = Keep.weights,
) -> None:
    """Train one configuration; a rerun goes on where the last one stopped.

    With --from, the configuration, its seeds and its device are those of an earlier run's manifest.
    """
    if source is not None:
        for name, option in (("settings", "--set"), ("seed", "--seed"), ("device", "--device")):
            origin = context.get_parameter_source(name)
            if origin is not None and origin.name == "COMMANDLINE":
                raise RequestError(f"--from repeats a run as it was: {option} does not go with it")
        from tnbench.ablation.repeat import repeat

        _leave(repeat(source, results=results, keep=keep.value, console=_console()))
    from tnbench.ablation.train import train as train_one

    _leave(
        train_one(
            settings=_settings(settings),
            seed=seed,
            device=device.value,
            results=results,
            keep=keep.value,
            console=_console(),
        )
    )


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A run id or folder, SUITE/VARIANT, or a results folder."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="As A; differences are A minus B.")],
    metric: Annotated[
        str,
        typer.Option("--metric", help="val_bits_per_byte, val_loss_nats, val_loss_bits or train_loss_nats."),
    ] = "val_bits_per_byte",
    margin: Annotated[
        float | None, typer.Option("--margin", help="Differences up to it are equivalent; metric's unit.")
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Level of the verdicts.")] = 0.05,
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Where results are looked for.")
    ] = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Say whether A is better or worse than B, equivalent or undecided, and how many seeds would decide.

    Two results folders are compared variant by variant. Runs are paired by the seed of their data order.
    """
    from tnbench.ablation.compare import compare as compare_records

    compare_records(
        a,
        b,
        metric=metric,
        margin=margin,
        alpha=alpha,
        results=results,
        as_json=as_json,
        console=_console(),
    )


@app.command("profile-kernels")
def profile_kernels(
    operators: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPERATOR]...", help="linear_attention, norm, … (default: all)."),
    ] = None,
    length: Annotated[str | None, typer.Option("--length", metavar="1k,2k,…", help="Lengths.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="B,H", help="A pair of batch and heads. Repeatable."),
    ] = None,
    batch: Annotated[str | None, typer.Option("--batch", metavar="B,…", help="Batch sizes.")] = None,
    heads: Annotated[str | None, typer.Option("--heads", metavar="H,…", help="Numbers of heads.")] = None,
    head_dim: Annotated[str | None, typer.Option("--head-dim", metavar="D,…", help="Head dims.")] = None,
    rows: Annotated[str | None, typer.Option("--rows", metavar="4k,…", help="Rows of a norm.")] = None,
    width: Annotated[str | None, typer.Option("--width", metavar="1k,…", help="Width of a norm.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME,…", help="bfloat16, float16, float32.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="NAME,…", help="forward, backward, both, decode.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--form", metavar="NAME,…", help="srmsnorm, rmsnorm, layernorm, cosine, rotation."),
    ] = None,
    implementation: Annotated[
        list[str] | None,
        typer.Option("--implementation", metavar="NAME", help="Default: all that run here. Repeatable."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Interleaved rounds at each point. GPU: 5, CPU: 3.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="SECONDS", min=0, help="Window per row; 0: none. GPU: 0.3."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="GITREF", help="Compare with this revision's kernels.")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", metavar="SECONDS", min=0, help="Start nothing after this; resumable."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be measured; run nothing.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Rewrite tables and plots from the records; run nothing.")
    ] = False,
    device: DeviceOption = Device.auto,
    results: ResultsOption = Path("results"),
) -> None:
    """Prove operators right, then time them against their peers: latency, memory, energy, verdicts.

    A rerun goes on where the last one stopped; Ctrl-C is safe.
    """
    if plan and report:
        raise RequestError("--plan and --report exclude each other")
    asked = (operators, length, shape, batch, heads, head_dim, rows, width, dtype, mode, form)
    if report and any(x is not None for x in (*asked, implementation, rounds, energy, against, time_limit)):
        raise RequestError("--report rewrites what is in the records: only --results goes with it")
    from tnbench.profiling.kernels import command, planning

    axes = planning.axes(
        length=length, shape=shape, batch=batch, heads=heads, head_dim=head_dim, rows=rows,
        width=width, dtype=dtype, mode=mode, form=form
    )  # fmt: skip
    _leave(
        command.profile_kernels(
            operators or [],
            axes=axes,
            implementations=implementation or [],
            rounds=rounds,
            energy=energy,
            against=against,
            time_limit=time_limit,
            device=device.value,
            results=results,
            mode="plan" if plan else "report" if report else "run",
            console=_console(),
        )
    )


@data_app.command("prepare")
def data_prepare(
    corpus: Annotated[
        str, typer.Argument(help="A shipped corpus, a file or folder, or hf:REPOSITORY[:CONFIG].")
    ],
    tokenizer: TokenizerOption = "bytes",
    text_field: FieldOption = "text",
    as_json: JsonOption = False,
) -> None:
    """Tokenize a corpus into the cache, and describe it."""
    from tnbench import catalogue
    from tnbench.config import DataConfig, check
    from tnbench.data import prepare

    values = {"corpus": corpus, "tokenizer": tokenizer, "text_field": text_field}
    description = prepare(check(DataConfig, values, "data")).describe()
    if as_json:
        typer.echo(json.dumps(description, indent=1, ensure_ascii=False))
    else:
        _console().print(catalogue.data_table(description))


@data_app.command("info")
def data_info(
    corpus: Annotated[str, typer.Argument(help="As in data prepare.")] = "state-of-the-union",
    tokenizer: TokenizerOption = "bytes",
    text_field: FieldOption = "text",
    as_json: JsonOption = False,
) -> None:
    """Describe a corpus: documents, tokens and bytes of each split, and where they come from."""
    data_prepare(corpus, tokenizer, text_field, as_json)


_left: list[int] = []
"""The status with which a command has ended after saying how."""


def _leave(status: int) -> None:
    _left.append(status)
    raise typer.Exit(status)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something failed, 2 a wrong request, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = app(arguments, standalone_mode=False)
        if status == INTERRUPTED and not _left:  # the parser has caught Ctrl-C
            _fail("interrupted before anything was run", INTERRUPTED, debug)
        sys.exit(status if isinstance(status, int) else 0)
    except RequestError as error:
        _fail(str(error), WRONG_REQUEST, debug)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of a pipe has gone, as in `tnbench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser
            _fail(error.format_message(), WRONG_REQUEST, debug)  # type: ignore[attr-defined]
        if type(error).__name__ == "Abort":
            _fail("interrupted", INTERRUPTED, debug)
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _fail(message: str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    typer.echo(f"tnbench: {shown}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
