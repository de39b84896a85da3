"""Training speed of two presets on this machine: python -m tnbench.profiling.training_speed

Each preset is tried in {fp32, bf16} × {eager, compiled}; every round times one optimizer step of every arm,
in an order that turns, so that a slow moment of the machine meets all of them alike. The best arm of each
preset is chosen on the first half of the rounds, and the two are compared on the second half, so that the
choice does not flatter them: the ratio is the geometric mean over rounds, with a t interval on its logarithm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from tnbench.commands import run_alone
from tnbench.config import RunConfig
from tnbench.data import TokenData, prepare
from tnbench.model import LanguageModel
from tnbench.records import command_line, now, provenance, require_writable, write_json
from tnbench.resolution import resolve
from tnbench.statistics import mean_interval
from tnbench.training.optimizer import adamw
from tnbench.training.step import objective, optimizer_step

WARM_UP_STEPS = 3


def training_step(config: RunConfig, data: TokenData) -> Callable[[int], float]:
    """A function that takes one optimizer step (forward, backward, clipping, AdamW) and gives its seconds."""
    training, context = config.training, config.data.context
    torch.manual_seed(training.init_seed)
    model = LanguageModel(config.model, data.vocab_size, context).to(training.device)
    loss = objective(model, training)
    optimizer = adamw(model, training)
    sequences = training.batch_tokens // context

    def step(number: int) -> float:
        batch: Tensor = data.batch(0, number, sequences, context).to(training.device)
        started = time.perf_counter()
        optimizer_step(model, optimizer, batch, training, loss=loss)
        if training.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def compare(
    presets: tuple[str, str], size: str, context: int, sequences: int, rounds: int, threads: int
) -> dict[str, object]:
    """Measure, and return the record: every arm's tokens per second, and the ratio of the best arms."""
    torch.set_num_threads(threads)
    arms: dict[tuple[str, str, bool], Callable[[int], float]] = {}
    parameters: dict[str, int] = {}
    for preset, precision, compiled in product(presets, ("fp32", "bf16"), (False, True)):
        config = resolve(
            {"model.preset": preset, "model.size": size, "data.context": context},
            {"training.steps": rounds, "training.batch_tokens": sequences * context},
            {"training.precision": precision, "training.compile": compiled, "training.threads": threads},
        )
        data = prepare(config.data)
        with torch.device("meta"):
            counted = LanguageModel(config.model, data.vocab_size, context)
        parameters[preset] = counted.parameter_counts()["non_embedding"]
        arms[preset, precision, compiled] = training_step(config, data)
    seconds: dict[tuple[str, str, bool], list[float]] = {key: [] for key in arms}
    for step in arms.values():
        for number in range(WARM_UP_STEPS):
            step(number)
    keys = list(arms)
    for number in range(rounds):
        turn = number % len(keys)
        for key in keys[turn:] + keys[:turn]:
            seconds[key].append(arms[key](number))

    tokens, half = sequences * context, rounds // 2
    best = {
        preset: min((key for key in keys if key[0] == preset), key=lambda key: np.median(seconds[key][:half]))
        for preset in presets
    }
    first, second = (np.array(seconds[best[preset]][half:]) for preset in presets)
    ratio = mean_interval(np.log(second / first), alpha=0.05)
    return {
        "schema": 1,
        "presets": presets,
        "size": size,
        "non_embedding_parameters": parameters,
        "context": context,
        "batch_sequences": sequences,
        "threads": threads,
        "rounds": rounds,
        "arms": [
            {
                "preset": preset,
                "precision": precision,
                "compiled": compiled,
                "tokens_per_second": tokens / float(np.median(times)),
                "tokens_per_second_quartiles": [tokens / float(q) for q in np.quantile(times, [0.75, 0.25])],
                "best": best[preset] == (preset, precision, compiled),
            }
            for (preset, precision, compiled), times in seconds.items()
        ],
        "ratio": float(np.exp(ratio.mean)),
        "ratio_low": float(np.exp(ratio.low)),
        "ratio_high": float(np.exp(ratio.high)),
        "ratio_rounds": ratio.n,
        "measured": now(),
        "command": command_line(),
        "provenance": provenance(),
    }


def main(
    first: Annotated[str, typer.Option(help="Preset whose speed is stated.")] = "transnormerllm",
    second: Annotated[str, typer.Option(help="Preset that it is compared with.")] = "gpt2",
    size: Annotated[str, typer.Option(help="Size of both.")] = "0.8m",
    context: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 256,
    sequences: Annotated[int, typer.Option(min=1, help="Windows in a step.")] = 8,
    rounds: Annotated[int, typer.Option(min=8, help="Timed steps of each arm.")] = 60,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    results: Annotated[Path, typer.Option(help="Where the record is written.")] = Path("results"),
) -> None:
    """Compare two presets of one size, each at its best of {fp32, bf16} x {eager, compiled}."""
    path = results / "models" / "training-speed-cpu.json"
    require_writable(path.parent)
    record = compare((first, second), size, context, sequences, rounds, threads)
    write_json(path, record)
    for arm in json.loads(json.dumps(record))["arms"]:
        form = "compiled" if arm["compiled"] else "eager"
        mark = "  best of its preset" if arm["best"] else ""
        speed = f"{arm['tokens_per_second']:>9,.0f} tokens/s"
        typer.echo(f"{arm['preset']:>15} {arm['precision']} {form:<9} {speed}{mark}")
    typer.echo(
        f"{first} / {second}, each at its best: {record['ratio']:.3f} times the tokens/s "
        f"[{record['ratio_low']:.3f}, {record['ratio_high']:.3f}] "
        f"(95 % t interval, n = {record['ratio_rounds']} rounds)"
    )
    typer.echo(f"record: {path}")


if __name__ == "__main__":
    run_alone(main)
