"""Speed beside lm-eval's own Hugging Face model: python -m tnbench.evaluation.speed

One model, exported, answers the same requests of one task twice: by ours, and by lm-eval's `hf` model with
each of several batch sizes. Times are those of the answers alone, texts in, likelihoods out; tasks and models
are loaded before. The first round times every batch size and leaves the fastest, the others time that one and
ours in turn. Answers are compared, and so are the times of one forward pass of the model and of its export:
what differs between the two implementations is not to be taken for what differs between two ways to ask.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tnbench.commands import run_alone
from tnbench.data import prepare
from tnbench.errors import RequestError
from tnbench.evaluation import foreign, task_loading, tasks
from tnbench.evaluation.generation import DTYPES
from tnbench.evaluation.harness import HarnessModel
from tnbench.evaluation.loading import load_run
from tnbench.interop import export
from tnbench.model import LanguageModel
from tnbench.profiling.lines import Line, Lines
from tnbench.profiling.machine import installed_version, machine
from tnbench.profiling.speedups import speedup
from tnbench.records import command_line, now, provenance
from tnbench.resolution import resolve

FOLDER = "eval-speed"
PACKAGES = ("torch", "triton", "lm-eval", "transformers")
PASS = (4, 1024)
"""Rows and tokens of the forward pass that is compared."""


class Store(Lines):
    command = "tnbench.evaluation.speed"


def main(
    run: Annotated[str | None, typer.Option(help="A finished run. Default: random weights.")] = None,
    preset: Annotated[str, typer.Option(help="Of random weights.")] = "transnormerllm",
    size: Annotated[str, typer.Option(help="Of random weights.")] = "10m",
    task: Annotated[str, typer.Option(help="As --tasks of tnbench eval; one.")] = "cloze",
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions, the first ones.")] = None,
    task_data: Annotated[Path | None, typer.Option(help="Folder of saved data sets.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens read at a time, by both.")] = 2048,
    batch_sizes: Annotated[str, typer.Option(help="Of lm-eval's model.")] = "1,4,16,64",
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on a GPU.")] = None,
    results: Annotated[Path, typer.Option(help="Where the record is written.")] = Path("results"),
) -> None:
    """Time a task with our model and with lm-eval's on its export, in one run."""
    place, name = machine(device)
    precision = precision or ("bf16" if place == "cuda" else "fp32")
    if precision not in DTYPES:
        raise RequestError(f"--precision {precision}: known are {', '.join(DTYPES)}")
    sizes = _numbers(batch_sizes)
    if len(tasks.asked(task, num_fewshot)) != 1:
        raise RequestError(f"--task {task}: give one task")
    asked, manager = tasks.wanted(task, num_fewshot, include=None, data=task_data)
    requests, kind = _requests(task_loading.load(asked[0], manager), limit)
    model, tokenizer, manifest = _model(run, preset, size, max_length, results)
    store = Store(results / FOLDER)
    with store.writing(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "exported"
        export(model, tokenizer, folder, manifest)
        ours = HarnessModel(
            model=model, tokenizer=tokenizer, device=place, precision=precision, max_length=max_length,
            quiet=True,
        )  # fmt: skip
        theirs = {size: _theirs(folder, place, precision, max_length, size) for size in sizes}
        found = _measure(ours, theirs, requests, kind, rounds)
        passes = _passes(ours.model, next(iter(theirs.values())).model, place, rounds)
        line = {
            "kind": "speed",
            "measured": now(),
            "device": name,
            "threads": torch.get_num_threads() if place == "cpu" else None,
            "model": {"run": run} if run else {"preset": preset, "size": size, "weights": "random"},
            "parameters": model.parameter_counts()["total"],
            "task": asked[0].name,
            "num_fewshot": num_fewshot,
            "requests": len(requests),
            "limit": limit,
            "max_length": max_length,
            "precision": precision,
            **found,
            "forward": {"rows": PASS[0], "tokens": min(PASS[1], max_length), **passes},
            "versions": {package: text for package in PACKAGES if (text := installed_version(package))},
            "command": command_line(),
            "provenance": provenance(),
        }
        store.append([line])
    _show(line)
    typer.echo(f"record: {store.path}")


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise RequestError(f"--batch-sizes {text}: give numbers from 1, with commas between them")
    return list(dict.fromkeys(found))


def _model(run: str | None, preset: str, size: str, length: int, results: Path) -> tuple[Any, Any, Any]:
    """(model, tokenizer, manifest)."""
    if run is not None:
        loaded = load_run(run, results)
        return loaded.model, loaded.tokenizer, loaded.manifest
    config = resolve(
        {"model.preset": preset, "model.size": size, "data.context": length, "training.steps": 1}
    )
    tokenizer = prepare(config.data).tokenizer
    torch.manual_seed(0)
    return LanguageModel(config.model, tokenizer.vocab_size, length), tokenizer, None


def _requests(loaded: Sequence[Any], limit: int | None) -> tuple[list[Any], str]:
    """What a task asks, in its order, and the kind of request."""
    (one,) = loaded
    if not hasattr(one, "instances"):
        raise RequestError("--task names a group of tasks: give one of them")
    with task_loading.without_bars():
        one.build_all_requests(limit=limit)
    requests = list(one.instances)
    return requests, requests[0].request_type


def _theirs(folder: Path, device: str, precision: str, length: int, size: int) -> Any:
    from lm_eval.models import huggingface

    theirs: Any = huggingface.HFLM
    with task_loading.without_bars():
        return theirs(
            pretrained=str(folder), trust_remote_code=True, device=device, max_length=length, batch_size=size,
            dtype=foreign.DTYPES[precision],
        )  # fmt: skip


def _measure(
    ours: Any, theirs: dict[int, Any], requests: list[Any], kind: str, rounds: int
) -> dict[str, Any]:
    """Times in seconds, the speed-up over the best batch size, and how far answers are apart."""
    own, others = [], {size: [] for size in theirs}
    answers: dict[Any, list[Any]] = {}
    left = list(theirs)
    for number in range(rounds):
        seconds, answers["ours"] = _timed(lambda: getattr(ours, kind)(requests))
        own.append(seconds)
        for size in left:
            try:
                with task_loading.without_bars():
                    seconds, answers[size] = _timed(lambda size=size: getattr(theirs[size], kind)(requests))
            except torch.OutOfMemoryError:
                seconds = float("inf")
                torch.cuda.empty_cache()
            others[size].append(seconds)
        if number == 0:
            best = min(left, key=lambda size: others[size][0])
            if others[best][0] == float("inf"):
                raise RequestError("lm-eval's model runs out of memory with every batch size")
            left = [best]
    ratio = speedup(own, others[left[0]])
    return {
        "ours_seconds": own,
        "hf_seconds": {str(size): times for size, times in others.items()},
        "best_batch_size": left[0],
        "speedup": ratio.ratio,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        **_agreement(answers["ours"], answers[left[0]]),
    }


def _agreement(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """Of likelihoods in nats, or of texts."""
    if isinstance(ours[0], str):
        return {"different_texts": sum(a != b for a, b in zip(ours, theirs, strict=True))}
    pairs = [(a[0], b[0]) if isinstance(a, tuple) else (a, b) for a, b in zip(ours, theirs, strict=True)]
    return {"largest_difference_nats": max(abs(a - b) for a, b in pairs)}


def _passes(ours: LanguageModel, theirs: Any, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of one forward pass with all logits: the model's and its export's."""
    length = min(PASS[1], ours.position.limit or PASS[1])
    ids = torch.randint(ours.vocab_size, (PASS[0], length), device=device)
    calls: list[Callable[[], Any]] = [lambda: ours(ids), lambda: theirs(ids).logits]
    times: list[list[float]] = [[], []]
    with torch.no_grad():
        for call in calls:
            call()
        for _ in range(max(5, rounds)):
            for taken, call in zip(times, calls, strict=True):
                taken.append(_timed(call, device)[0])
    ratio = speedup(times[0], times[1])
    return {
        "ours_seconds": times[0],
        "exported_seconds": times[1],
        "speedup": ratio.ratio,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
    }


def _timed(call: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    found = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, found


def _show(line: Line) -> None:
    shots = "" if line["num_fewshot"] is None else f", {line['num_fewshot']} examples"
    typer.echo(f"{line['task']}{shots}: {line['requests']} requests, {line['precision']}, {line['device']}")
    typer.echo(f"  ours                {min(line['ours_seconds']):8.2f} s")
    for size, times in line["hf_seconds"].items():
        typer.echo(f"  lm-eval hf, {size:>3} rows {min(times):7.2f} s")
    typer.echo(
        f"ours is {line['speedup']:.2f} times as fast as lm-eval's model at its best batch size "
        f"[{line['speedup_low']:.2f}, {line['speedup_high']:.2f}] (95 % t interval over rounds)"
    )
    apart = line.get("largest_difference_nats")
    typer.echo(
        f"answers: {line['different_texts']} of {line['requests']} texts differ"
        if apart is None
        else f"answers: at most {apart:.1e} nats apart"
    )
    forward = line["forward"]
    typer.echo(
        f"one forward pass: ours {forward['speedup']:.2f} times as fast as the export "
        f"[{forward['speedup_low']:.2f}, {forward['speedup_high']:.2f}]"
    )


if __name__ == "__main__":
    run_alone(main)
