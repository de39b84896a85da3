"""`tnbench eval`, behind the command line."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tnbench.config import NO_TOKENIZER
from tnbench.errors import INTERRUPTED, RequestError
from tnbench.evaluation import foreign, outcomes, study, tasks
from tnbench.evaluation.asking import Failed
from tnbench.evaluation.loading import find_run, finished, readable
from tnbench.evaluation.study import Model, Store
from tnbench.evaluation.task_loading import load
from tnbench.interop import exported, official_layout
from tnbench.profiling.lines import Line, RecordsError
from tnbench.profiling.machine import installed_version, machine
from tnbench.records import RunFolder, command_line, now, provenance

PACKAGES = ("torch", "triton", "lm-eval", "datasets", "transformers")


def evaluate(
    runs: Sequence[str],
    *,
    words: str | None,
    fewshot: int | None,
    limit: int | None,
    include: Path | None,
    data: Path | None,
    device: str,
    precision: str | None,
    max_length: int | None,
    faithful: bool,
    results: Path,
    console: Console,
) -> int:
    """Ask models the questions of tasks, and tell what they know.

    Args:
        runs: run ids, run folders, manifests or exported folders; the first is what the others are compared
            with.
        words: tasks, as `tasks.wanted` reads them.
        fewshot: examples before each question, None for the tasks' own numbers.
        limit: questions of each task, the first ones; None for all.
        include: a folder of task files.
        data: a folder of saved data sets, as `task_data` finds them.
        device, precision, max_length: as for `HarnessModel`.
        faithful: whether official checkpoints repeat the errors of the official code (docs/checkpoints.md).
        results: where runs are looked for, and in whose folder `evals` the records are written.

    Returns:
        The exit status: 0, 1 if a model failed or a record could not be written, 130 if interrupted.

    Raises:
        RequestError: the request is wrong, or data that it needs are out of reach; what was answered is kept.
    """
    device, name = machine(device)
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    models = [_model(run, results, device, precision, max_length, faithful) for run in runs]
    if faithful and not any(model.identity.get("faithful") for model in models):
        raise RequestError("--faithful is for official checkpoints; none of these is one")
    for index, model in enumerate(models):
        if any(model.identity == other.identity for other in models[:index]):
            raise RequestError(f"run {model.name} is given twice")
    asked, manager = tasks.wanted(words, fewshot, include=include, data=data)
    store = Store(results / study.FOLDER)
    there, problems = store.read()
    pairs = [
        (task, model, study.known(store, there, model, task, limit)) for task in asked for model in models
    ]
    missing = {task.name: task for task, _, found in pairs if not found}
    loaded = {name: load(task, manager) for name, task in missing.items()}
    session = session_on(name)
    status = 0
    shown: list[Line] = []
    opened: dict[str, Any] = {}
    with store.writing():
        try:
            for task, model, found in pairs:
                if not found:
                    console.print(f"{task.name}: {model.name}", highlight=False)
                    try:
                        found = study.evaluate(
                            store, model, task, manager, limit=limit, session=session, opened=opened,
                            loaded=loaded[task.name],
                        )  # fmt: skip
                    except Failed as error:
                        console.print(f"failed: {error}", highlight=False, soft_wrap=True)
                        status = 1
                shown += found
        except KeyboardInterrupt:
            status = INTERRUPTED
        except RecordsError as error:
            console.print(
                f"failed: {error}; what was recorded before is kept", highlight=False, soft_wrap=True
            )
            status = 1
        except RequestError:
            with contextlib.suppress(RecordsError):
                write_tables(store)
            raise
        try:
            problems += write_tables(store)
        except RecordsError as error:
            why = str(error).partition(";")[0]
            console.print(
                f"failed: {why}; the records are kept, and the same command writes these again",
                highlight=False,
                soft_wrap=True,
            )
            status = status or 1
    if shown:
        _show(store, shown, console)
    for problem in dict.fromkeys([*problems, *reservations(shown)]):
        console.print(f"note: {problem}", highlight=False, soft_wrap=True)
    if status == INTERRUPTED:
        console.print("interrupted: answers are kept; the same command goes on from there", highlight=False)
    if shown:
        console.print(f"Records, items and tables: {store.folder}", highlight=False, soft_wrap=True)
    return status


def reservations(lines: Sequence[Line]) -> Iterator[str]:
    """What a reader of the numbers should know."""
    for line in lines:
        where = f"task {line['task']}: "
        if line.get("without_answer"):
            count = f"{line['without_answer']} of {line['items']} questions"
            yield f"{where}{count} have no right answer among their choices, and count as wrong"
        if line.get("cut"):
            yield (
                f"{where}{line['cut']} of {line['items']} questions, with their examples, are longer than "
                f"the {line['max_length']} tokens that are read at a time (--max-length); their beginning is "
                "left out"
            )


def session_on(machine: str) -> Line:
    """What the records of one process have in common, on a machine of that name."""
    return {
        "session": secrets.token_hex(4),
        "started": now(),
        "device": machine,
        "command": command_line(),
        "versions": {package: text for package in PACKAGES if (text := installed_version(package))},
        "provenance": provenance(),
    }


@readable()
def _model(
    name: str, results: Path, device: str, precision: str, max_length: int | None, faithful: bool
) -> Model:
    """A run, an export or an official checkpoint; its weights are read when the first question comes.

    Raises:
        RequestError: there is no such run, it has no final weights, or the folder is of no known kind.
    """
    options = {"device": device, "precision": precision, "max_length": max_length}
    if name.startswith(foreign.HUB):
        return _folder(foreign.of_hub(name), options, name, faithful)
    path = Path(name)
    if path.suffix == foreign.GGUF:
        return _foreign(path, path.stem, options)
    if (path / exported.CONFIG).is_file() and not (path / "manifest.json").is_file():
        return _folder(path, options, path.resolve().name, faithful)
    folder = find_run(name, results)
    manifest = finished(folder)
    if manifest["config"]["data"]["tokenizer"] == NO_TOKENIZER:
        raise RequestError(f"run {folder.id} was trained on examples, whose tokens stand for no text")
    return run_model(folder, manifest.get("variant"), options)


def run_model(
    folder: RunFolder, variant: str | None, options: dict[str, Any], *, quiet: bool = False
) -> Model:
    """A run as a model that can be asked.

    Args:
        folder: the run, which has its final weights by the time that it is asked.
        variant: its name in its suite.
        options: `device`, `precision` and `max_length`, as for `HarnessModel`.
        quiet: whether no progress is shown.
    """

    def opened() -> Any:
        from tnbench.evaluation.harness import HarnessModel

        return HarnessModel(run=str(folder.path), quiet=quiet, **options)

    label = f"{variant} {folder.id}" if variant else folder.id
    return Model(label, {"run": folder.id, **options}, opened)


def _folder(folder: Path, options: dict[str, Any], label: str, faithful: bool) -> Model:
    """A folder that `tnbench export` has written, one of the official checkpoints, or another maker's."""
    kind = exported.model_type(folder)
    if kind not in (exported.TYPE, official_layout.MODEL_TYPE):
        if foreign.is_known(kind):
            return _foreign(folder, label, options)
        raise RequestError(
            f"{folder} holds a model of type {kind or 'unknown'}; known are runs, exports, the official "
            "TransNormerLLM checkpoints, and the causal language models of transformers"
        )
    if kind == exported.TYPE:
        exported.require(folder)
    else:
        from tnbench.interop.official import require

        require(folder)
    content = _content(folder)

    def opened() -> Any:
        from tnbench.evaluation.harness import HarnessModel

        if kind == official_layout.MODEL_TYPE:
            from tnbench.interop.official import context_of, load_official

            model, tokenizer, values = load_official(folder, options["device"], faithful)
            context = context_of(folder, values)
        else:
            model, tokenizer, context = exported.load_exported(folder, options["device"])
        given = {**options, "max_length": options["max_length"] or context}
        return HarnessModel(model=model, tokenizer=tokenizer, **given)

    identity: dict[str, Any] = {"weights": content, **options}
    if faithful and kind == official_layout.MODEL_TYPE:
        identity["faithful"] = "faithful"
    return Model(f"{label} {content}", identity, opened)


def _foreign(path: Path, label: str, options: dict[str, Any]) -> Model:
    """A model of another maker."""
    foreign.require(path)
    content = _content(path)
    return Model(
        f"{label} {content}",
        {"weights": content, **options},
        lambda: foreign.open_foreign(path, **options),
    )


def _content(place: Path) -> str:
    """A hash of the configuration, the tokenizer and the weights: of a folder, or of a file that has all."""
    total = hashlib.sha256()
    try:
        if place.is_file():
            with open(place, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:12]
        for path in sorted(place.iterdir()):
            if path.suffix in (".json", ".model", ".safetensors", ".bin"):
                with open(path, "rb") as file:
                    total.update(f"{path.name} ".encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise RequestError(f"{place} cannot be read: {(error.strerror or str(error)).lower()}") from error
    return total.hexdigest()[:12]


def write_tables(store: Store) -> list[str]:
    """Tables of all that is recorded; gives what could not be compared.

    Raises:
        RecordsError: one cannot be written.
    """
    lines, _ = store.read()
    problems: list[str] = []
    if not lines:
        return problems
    frame, compared = outcomes.rows(lines), outcomes.comparisons(store, lines, problems)
    store.write_files(
        {
            "results.csv": frame.to_csv(index=False),
            "comparisons.csv": compared.to_csv(index=False),
            "table.md": outcomes.markdown(outcomes.cells(frame, compared), outcomes.family(compared)),
        }
    )
    return problems


def _show(store: Store, lines: Sequence[Line], console: Console) -> None:
    """The table of what was asked for now."""
    compared = outcomes.comparisons(store, lines)
    texts = outcomes.cells(outcomes.rows(lines), compared)
    bare = all(line[-1] == texts[0][-1] for line in texts)
    heads = outcomes.HEADS[: -1 if bare else None]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < 3 else "right", overflow="fold")
    for line in texts:
        table.add_row(*map(Text, line[: len(heads)]))
    console.print(table)
    if caption := outcomes.family(compared):
        console.print(caption, highlight=False, soft_wrap=True)
