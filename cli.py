"""The command line: parse, call, print. What a command needs is imported when it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tnbench.ablation import options as ablation
from tnbench.commands import leave, run
from tnbench.errors import RequestError
from tnbench.evaluation import options as generation
from tnbench.interop import options as interop
from tnbench.options import (
    Device,
    DeviceOption,
    FieldOption,
    JsonOption,
    Keep,
    KeepOption,
    MeasurePlanOption,
    MeasureReportOption,
    RecordsOption,
    ResultsOption,
    SetOption,
    TimeLimitOption,
    TokenizerOption,
)
from tnbench.paper_figures.shared import options as paper
from tnbench.profiling.kernels import options as kernel_options
from tnbench.profiling.models import options as model_options
from tnbench.version import VERSION

app = typer.Typer(
    name="tnbench",
    help="Which design choices of a linear-attention language model matter, and what they cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(name="data", help="Prepare or describe a corpus.", no_args_is_help=True)
app.add_typer(data_app)


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
    from tnbench.console import console

    return console()


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
    suite: ablation.Suite,
    plan: ablation.Plan = False,
    status: ablation.Status = False,
    report: ablation.Report = False,
    settings: SetOption = None,
    seeds: ablation.Seeds = None,
    workers: ablation.Workers = None,
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

    leave(
        command.ablate(
            suite, settings=_settings(settings), seeds=seeds, workers=workers, device=device.value,
            results=results, keep=keep.value, mode=chosen[0] if chosen else "run", console=_console(),
        )
    )  # fmt: skip


@app.command()
def train(
    context: typer.Context,
    settings: SetOption = None,
    seed: ablation.Seed = 0,
    source: ablation.Source = None,
    device: DeviceOption = Device.auto,
    results: ResultsOption = Path("results"),
    keep: KeepOption = Keep.weights,
) -> None:
    """Train one configuration; a rerun goes on where the last one stopped.

    With --from, the configuration, its seeds and its device are those of an earlier run's manifest.
    """
    if source is not None:
        for name, option in (("settings", "--set"), ("seed", "--seed"), ("device", "--device")):
            if _given(context, name):
                raise RequestError(f"--from repeats a run as it was: {option} does not go with it")
        from tnbench.ablation.repeat import repeat

        leave(repeat(source, results=results, keep=keep.value, console=_console()))
    from tnbench.ablation.train import train as train_one

    leave(
        train_one(
            settings=_settings(settings), seed=seed, device=device.value, results=results, keep=keep.value,
            console=_console(),
        )
    )  # fmt: skip


@app.command()
def generate(
    run: generation.Run,
    prompt: generation.Prompt = "",
    tokens: generation.Tokens = 256,
    temperature: generation.Temperature = 1.0,
    top_k: generation.TopK = None,
    top_p: generation.TopP = None,
    seed: generation.Seed = 0,
    samples: generation.Samples = 1,
    device: DeviceOption = Device.auto,
    precision: generation.PrecisionOption = None,
    results: RecordsOption = Path("results"),
) -> None:
    """Continue a text with a run's model, token by token; Ctrl-C stops it."""
    from tnbench.evaluation import command

    leave(
        command.generate_text(
            run, prompt=prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
            samples=samples, device=device.value, precision=precision.value if precision else None,
            results=results,
        )
    )  # fmt: skip


@app.command("eval")
def evaluate(
    runs: generation.Runs,
    tasks: generation.Tasks = None,
    fewshot: generation.Fewshot = None,
    limit: generation.Limit = None,
    include: generation.Include = None,
    task_data: generation.TaskData = None,
    device: DeviceOption = Device.auto,
    precision: generation.PrecisionOption = None,
    max_length: generation.MaxLength = None,
    faithful: generation.Faithful = False,
    by_position: generation.ByPosition = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Ask runs the questions of lm-eval's tasks: accuracies with errors, bits per byte, pairs of models.

    What is recorded is not asked again; Ctrl-C is safe.
    """
    from tnbench.evaluation import evaluating, reading

    name = precision.value if precision else None
    if by_position is not None:
        if faithful or any(x is not None for x in (tasks, fewshot, limit, include, task_data, max_length)):
            raise RequestError("--by-position reads the corpus: tasks and their options do not go with it")
        leave(reading.by_position(runs, by_position, device.value, name, results, _console()))
    leave(
        evaluating.evaluate(
            runs, words=tasks, fewshot=fewshot, limit=limit, include=include, data=task_data, precision=name,
            device=device.value, max_length=max_length, faithful=faithful, results=results, console=_console()
        )
    )  # fmt: skip


@app.command()
def export(
    run: generation.Run,
    folder: interop.Folder,
    format: interop.FormatOption = interop.Format.hf,
    results: RecordsOption = Path("results"),
) -> None:
    """Write a run's model as a folder that other programs load, without tnbench."""
    from tnbench.interop import command

    leave(command.export_run(run, folder, results=results))


@app.command()
def compare(
    a: ablation.A,
    b: ablation.B,
    metric: ablation.Metric = "val_bits_per_byte",
    margin: ablation.Margin = None,
    alpha: ablation.Alpha = 0.05,
    results: RecordsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Say whether A is better or worse than B, equivalent or undecided, and how many seeds would decide.

    Two results folders are compared variant by variant. Runs are paired by the seed of their data order.
    """
    from tnbench.ablation.compare import compare as compare_records

    compare_records(
        a, b, metric=metric, margin=margin, alpha=alpha, results=results, as_json=as_json, console=_console()
    )  # fmt: skip


@app.command("profile-kernels")
def profile_kernels(
    context: typer.Context,
    operators: kernel_options.Operators = None,
    length: kernel_options.Length = None,
    shape: kernel_options.Shape = None,
    batch: kernel_options.Batch = None,
    heads: kernel_options.Heads = None,
    head_dim: kernel_options.HeadDim = None,
    rows: kernel_options.Rows = None,
    width: kernel_options.Width = None,
    dtype: kernel_options.Dtype = None,
    mode: kernel_options.Mode = None,
    form: kernel_options.Form = None,
    implementation: kernel_options.Implementation = None,
    rounds: kernel_options.Rounds = None,
    energy: kernel_options.Energy = None,
    against: kernel_options.Against = None,
    time_limit: TimeLimitOption = None,
    plan: MeasurePlanOption = False,
    report: MeasureReportOption = False,
    device: DeviceOption = Device.auto,
    results: ResultsOption = Path("results"),
) -> None:
    """Prove operators right, then time them against their peers: latency, memory, energy, verdicts.

    A rerun goes on where the last one stopped; Ctrl-C is safe.
    """
    if plan and report:
        raise RequestError("--plan and --report exclude each other")
    if report:
        _require_report_alone(context)
    from tnbench.profiling.kernels import command, planning

    axes = planning.axes(
        length=length, shape=shape, batch=batch, heads=heads, head_dim=head_dim, rows=rows,
        width=width, dtype=dtype, mode=mode, form=form
    )  # fmt: skip
    leave(
        command.profile_kernels(
            operators or [], axes=axes, implementations=implementation or [], rounds=rounds, energy=energy,
            against=against, time_limit=time_limit, device=device.value, results=results,
            mode="plan" if plan else "report" if report else "run", console=_console(),
        )
    )  # fmt: skip


@app.command("profile-model")
def profile_model(
    context: typer.Context,
    mode: model_options.Mode = None,
    preset: model_options.Preset = None,
    variant: model_options.Diff = None,
    suite: model_options.SuiteName = None,
    size: model_options.Size = None,
    contexts: model_options.Context = None,
    batch: model_options.Batch = None,
    vocabulary: model_options.Vocabulary = None,
    precision: model_options.Precision = None,
    settings: SetOption = None,
    rounds: model_options.Rounds = None,
    energy: model_options.Energy = None,
    largest: model_options.LargestOption = None,
    fit: model_options.Fit = None,
    time_limit: TimeLimitOption = None,
    plan: MeasurePlanOption = False,
    report: MeasureReportOption = False,
    device: DeviceOption = Device.auto,
    results: ResultsOption = Path("results"),
) -> None:
    """Measure whole models in training, prefill and decoding: tokens/s, MFU, memory, energy, verdicts.

    A rerun goes on where the last one stopped; Ctrl-C is safe.
    """
    console = _console()
    if report:
        _require_report_alone(context)
        from tnbench.profiling.models.command import report_all

        leave(report_all(results, console))
    from tnbench.ablation.profiled import suite_models
    from tnbench.profiling.models import command, planning

    wanted = planning.wanted(
        mode=mode, size=size, context=contexts, batch=batch, vocabulary=vocabulary, precision=precision,
        presets=preset or [], variants=variant or [], suite=suite, settings=_settings(settings), budget=fit
    )  # fmt: skip
    leave(
        command.profile_model(
            wanted, suites=suite_models, largest=largest.value if largest else None, rounds=rounds,
            energy=energy, time_limit=time_limit, device=device.value, results=results, plan=plan,
            console=console,
        )
    )  # fmt: skip


app.command("figures")(paper.figures)


def _require_report_alone(context: typer.Context) -> None:
    given = {name for name in context.params if _given(context, name)}
    if given - {"report", "results"}:
        raise RequestError("--report rewrites what is in the records: only --results goes with it")


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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

    values = {"corpus": corpus, "text_field": text_field}
    values |= {} if tokenizer == "bytes" else {"tokenizer": tokenizer}  # corpora of examples have none
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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something failed, 2 a wrong request, 130 interrupted."""
    run(app, arguments)


if __name__ == "__main__":
    main()
