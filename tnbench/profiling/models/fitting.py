"""`tnbench profile-model --fit`: the largest size, context and batch by the memory model, as a table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tnbench.model.presets import SIZES
from tnbench.profiling.models import fit, planning
from tnbench.profiling.models.variants import Variant
from tnbench.profiling.texts import place
from tnbench.report.words import NOTHING, memory

ASKED = {"cuda": ("385m", "1b", "3b", "7b"), "cpu": ("0.8m", "10m", "100m", "385m")}
"""Sizes that are asked about by default."""
HEADS = ("mode", "variant", "largest", "size", "context", "batch", "memory")


def show_fit(
    wanted: planning.Wanted, budget: int, device: str, suites: planning.SuiteLoader, console: Console
) -> int:
    """Print what fits `budget` bytes; nothing is run. The device need not be there: `auto` is a GPU.

    Steps are eager unless `--set training.compile=true` asks for what the compiler makes of them: that takes
    a few per cent less memory, and ten times as long to predict.

    Returns:
        The exit status, 0.

    Raises:
        RequestError: the request is wrong.
    """
    device = "cpu" if device == "cpu" else "cuda"
    jobs, chosen = list(_jobs(wanted, device, suites)), planning.DEFAULTS[device]
    vocabulary = wanted.vocabulary or chosen.vocabulary
    parts = [field.name for field in fields(fit.Memory)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, head in enumerate((*HEADS, *parts)):
        table.add_column(head, justify="left" if index < 4 else "right", no_wrap=True)
    peers = set()
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(console.status("predicting")) if console.is_terminal else None
        for mode, context, batch, questions, variants in jobs:
            name = next(iter(variants.values())).name
            if status:
                status.update(f"predicting {mode} of {name}")
            if any(variant.peer for variant in variants.values()):
                peers.add(name)
                continue
            sizes = {size: variant.at(context, batch).config for size, variant in variants.items()}
            rows = fit.answers(
                sizes,
                budget,
                mode,  # type: ignore[arg-type]
                batch=batch,
                vocab_size=vocabulary,
                questions=questions,
            )
            for found in rows:
                table.add_row(*map(Text, _row(found, name, parts)))
    console.print(
        f"What fits {memory(budget)} on a {'GPU' if device == 'cuda' else 'CPU'} by prediction, in "
        f"{wanted.precision or chosen.precision} with a vocabulary of {vocabulary:,} tokens, "
        "steps eager unless set otherwise:",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    for name in sorted(peers):
        console.print(f"note: {name} is left out: the memory of other packages' models is not predicted")
    return 0


def _jobs(
    wanted: planning.Wanted, device: str, suites: planning.SuiteLoader
) -> Iterator[tuple[str, int, int, set[str], dict[str, Variant]]]:
    """Mode, context, batch, what is asked there, and a variant by size, from the smallest.

    The largest context is asked for once for each batch, the largest batch once for each context.
    """
    chosen = planning.DEFAULTS[device]
    asked: Sequence[str | None] = wanted.sizes or ((None,) if wanted.suite else ASKED[device])
    ordered = sorted(asked, key=lambda size: list(SIZES).index(size) if size else 0)
    by_size = {}
    for size in ordered:
        variants = planning.variants_at(wanted, size, device, suites, compiled=False)
        by_size[size or variants[0].config.model.size] = variants
    contexts, batches = wanted.contexts or chosen.contexts[:1], wanted.batches or (1,)
    for mode in wanted.modes:
        for index in range(len(next(iter(by_size.values())))):
            variants = {size: found[index] for size, found in by_size.items()}
            for number, context in enumerate(contexts):
                for batch in batches:
                    questions = {"size"}
                    questions |= {"context"} if number == 0 else set()
                    questions |= {"batch"} if batch == batches[0] else set()
                    yield mode, context, batch, questions, variants


def _row(found: fit.Fit, name: str, parts: Sequence[str]) -> list[str]:
    held = found.memory
    context = "any" if found.context >= fit.LONGEST else place(found.context)
    answer = {"size": found.size, "context": context, "batch": str(found.batch)}
    if held is None:
        answer[found.question] = "nothing fits"
    shown = [NOTHING] * (len(parts) + 1)
    if held is not None:
        shown = [memory(held.total), *(memory(getattr(held, part)) for part in parts)]
    return [found.mode, name, found.question, *answer.values(), *shown]
