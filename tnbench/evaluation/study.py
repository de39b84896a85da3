"""Evaluations of models on tasks, recorded: `records.jsonl`, a line for each model and task, and the items.

An evaluation that is recorded is not made again; one that was interrupted goes on from the answers that the
models gave already.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tnbench.config import digest
from tnbench.data import hub
from tnbench.errors import RequestError, first_line
from tnbench.evaluation import items, task_data, tasks
from tnbench.evaluation.halving import is_out_of_memory
from tnbench.profiling.lines import Line, Lines, RecordsError
from tnbench.records import now, write_atomic

SEED = 1234
"""Of the examples that lm-eval draws: its own default."""
ANY = "EleutherAI/lambada_openai"
"""Asked for to see whether the hub answers."""
FOLDER = "evals"
ITEMS = "items"


class Busy(RequestError):
    """Another process makes the evaluation."""


class Store(Lines):
    """A results folder's evaluations."""

    command = "eval"

    def read(self) -> tuple[list[Line], list[str]]:
        """The last record of each model, task and number of examples and questions, and what was wrong."""
        found: dict[str, Line] = {}

        def take(line: Line) -> None:
            if line["kind"] == "task" and line["metrics"] is not None:
                asked = {name: line[name] for name in ("identity", "task", "group", "limit")}
                found[digest({**asked, "fewshot": line["asked"]["fewshot"]})] = line

        problems = self.each(take)
        return list(found.values()), problems

    def positions(self) -> list[Line]:
        """The last record of losses by position of each model and length."""
        found: dict[str, Line] = {}

        def take(line: Line) -> None:
            if line["kind"] == "positions" and len(line["bits"]) + 1 == len(line["edges"]):
                found[digest(line["identity"])] = line

        self.each(take)
        return list(found.values())

    def failures(self) -> dict[str, Line]:
        """The last failure of each request that has one; a request may have been answered since."""
        found: dict[str, Line] = {}

        def take(line: Line) -> None:
            if line["kind"] == "failed":
                found[line["request"]] = line

        self.each(take)
        return found

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Within the block no other process makes the same evaluation: both would write the same answers.

        Raises:
            Busy: another one does.
        """
        path = self.answers_of(f"{key}.lock")
        with contextlib.ExitStack() as held:
            with _writing(self):
                while True:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # whoever finished last removed the folder
                        lock = held.enter_context(open(path, "w"))
                        break
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another process makes this evaluation ({path}); wait for it") from None
            try:
                yield
            finally:
                if not any(left != path for left in path.parent.glob(f"{key}*")):  # no answers to keep
                    self.forget(key)

    def forget(self, key: str) -> None:
        """Remove the answers of an evaluation that is recorded."""
        place = self.answers_of(key)
        for left in place.parent.glob(f"{key}*"):
            left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.parent.rmdir()

    def items_of(self, key: str) -> Path:
        return self.folder / ITEMS / f"{key}.jsonl"

    def answers_of(self, key: str) -> Path:
        """Answers of an evaluation that is under way."""
        return self.folder / "unfinished" / key


@dataclass(frozen=True)
class Model:
    """A model that can be asked, opened when the first question comes."""

    name: str
    """As it is shown."""
    identity: dict[str, Any]
    """What its answers follow from: run id, precision, …"""
    open: Callable[[], Any]
    """The lm-eval model."""


def code_hash() -> str:
    """Of what turns a model into answers."""
    total = hashlib.sha256()
    folder = Path(__file__).resolve().parent
    for name in (
        "scoring.py",
        "harness.py",
        "continuation.py",
        "tasks.py",
        "task_data.py",
        "cloze.py",
        "items.py",
    ):
        total.update((folder / name).read_bytes())
    return total.hexdigest()[:12]


def key_of(model: Model, task: tasks.Asked, limit: int | None) -> Line:
    """What a record must agree in to be the answer to a request."""
    return {
        "model": model.identity,
        "task": task.name,
        "fewshot": task.fewshot,
        "limit": limit,
        "seed": SEED,
        "config": None if task.config is None else digest(task.config),
        "data": None if task.data is None else task_data.fingerprint(task.data),
        "lm_eval": metadata.version("lm-eval"),
        "code": code_hash(),
    }


def evaluate(
    store: Store,
    model: Model,
    task: tasks.Asked,
    manager: Any,
    *,
    limit: int | None,
    session: Line,
    opened: dict[str, Any],
) -> list[Line]:
    """Ask a model, and record what came of it: one line for the task, or for each that a group holds.

    Args:
        opened: models that are open, by name; this one is added.

    Raises:
        RequestError: the task cannot be had: its data are out of reach, or its file is broken.
        Busy: another process makes the evaluation.
        RecordsError: the record cannot be written.
    """
    short = digest(key_of(model, task, limit))
    with store.alone(short):
        made = known(store.read()[0], model, task, limit)  # perhaps meanwhile, by another process
        return made or _made(store, model, task, manager, limit, session, opened)


def _made(
    store: Store,
    model: Model,
    task: tasks.Asked,
    manager: Any,
    limit: int | None,
    session: Line,
    opened: dict[str, Any],
) -> list[Line]:
    """The lines of a new evaluation, recorded."""
    key = key_of(model, task, limit)
    short = digest(key)
    started = time.perf_counter()
    loaded = load(task, manager)
    if model.name not in opened:
        opened[model.name] = model.open()
    answers = store.answers_of(short)
    with _writing(store):
        store.items_of(short).parent.mkdir(parents=True, exist_ok=True)
        try:
            found = _ask(opened[model.name], loaded, task, manager, limit, answers)
        except ValueError as error:
            raise RequestError(f"task {task.name}, {model.name}: {first_line(error)}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RequestError(
                f"task {task.name}, {model.name}: a single question needs more memory than there is; try a "
                "shorter --max-length, or --precision bf16"
            ) from error
    lines = []
    for name, samples in sorted(found["samples"].items()):
        config = found["configs"][name]
        asked = items.of_samples(samples, str(config["output_type"]))
        summary = items.summarise(asked)
        own = short if name == task.name else digest({**key, "member": name})
        with _writing(store):
            text = "".join(json.dumps(item.to_dict(), ensure_ascii=False) + "\n" for item in asked)
            write_atomic(store.items_of(own), text)
        lines.append(
            {
                "kind": "task",
                "key": own,
                "request": short,
                **session,
                "time": now(),
                "model": model.name,
                "identity": model.identity,
                "task": name,
                "group": task.name if name != task.name else None,
                "fewshot": found["n-shot"].get(name),
                "version": found["versions"].get(name),
                "limit": limit,
                "output_type": config["output_type"],
                "metrics": _metrics(found["results"][name], found["higher_is_better"].get(name) or {}),
                **summary.__dict__,
                "asked": key,
                "seconds": time.perf_counter() - started,
            }
        )
    store.append(lines)
    store.forget(short)
    return lines


@contextlib.contextmanager
def _writing(store: Store) -> Iterator[None]:
    """What cannot be written is told as that."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise RecordsError(f"cannot write to {store.folder}: {reason}") from error


def load(task: tasks.Asked, manager: Any) -> list[Any]:
    """lm-eval's task, its group or its members, with their data: before a model is loaded.

    Raises:
        RequestError: the task cannot be had: its data are out of reach, or its file is broken.
    """
    local = contextlib.nullcontext(True) if task.config is not None else hub.reach(ANY, "dataset")
    try:
        saved = task_data.local(task.data, examples=bool(task.fewshot))
        with local as reached, hub.datasets_offline(not reached), saved:
            found = manager.load([task.spec])
    except (ConnectionError, OSError, LookupError) as error:
        why = first_line(error) if reached else "the Hugging Face hub cannot be reached"
        raise RequestError(
            f"task {task.name}: its data cannot be had: {why}; give a folder of saved data sets "
            "(--task-data), or a task of your own that reads local files (--include-path)"
        ) from error
    except Exception as error:
        raise RequestError(f"task {task.name} cannot be read: {first_line(error)}") from error
    group = found["groups"].get(task.name)
    return [group] if group is not None else list(found["tasks"].values())


def _ask(
    model: Any, loaded: list[Any], task: tasks.Asked, manager: Any, limit: int | None, answers: Path
) -> dict[str, Any]:
    """lm-eval's results."""
    from lm_eval import evaluator

    with _quiet(evaluator):
        found = evaluator.simple_evaluate(
            model,
            tasks=loaded,
            num_fewshot=task.fewshot,
            limit=limit,
            use_cache=str(answers),
            bootstrap_iters=1000,
            log_samples=True,
            task_manager=manager,
            random_seed=0,
            numpy_random_seed=SEED,
            torch_random_seed=SEED,
            fewshot_random_seed=SEED,
        )
    assert found is not None
    return dict(found)


@contextlib.contextmanager
def _quiet(evaluator: Any) -> Iterator[None]:
    """lm-eval asks git for the commit of the working directory, which complains where there is none, and
    shows a bar for each of its steps."""
    from tqdm import tqdm

    commit, start = evaluator.get_git_commit_hash, tqdm.__init__
    evaluator.get_git_commit_hash = lambda: None
    tqdm.__init__ = lambda self, *args, **options: start(self, *args, **{**options, "disable": True})
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = commit
        tqdm.__init__ = start


def _metrics(results: dict[str, Any], better: dict[str, bool]) -> dict[str, Any]:
    """{metric: {value, stderr, higher_is_better}} of lm-eval's `acc,none` and `acc_stderr,none`."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        metric, _, filtered = name.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        label = metric if filtered == "none" else f"{metric} ({filtered})"
        error = results.get(f"{metric}_stderr,{filtered}")
        found[label] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, int | float) else None,
            "higher_is_better": better.get(metric),
        }
    return found


def read_items(path: Path) -> list[items.Item]:
    """The items of a record.

    Raises:
        RequestError: they are not there or cannot be read.
    """
    try:
        return [items.Item(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{path} cannot be read: {first_line(error)}") from error


def known(lines: Sequence[Line], model: Model, task: tasks.Asked, limit: int | None) -> list[Line]:
    """The records that answer a request."""
    short = digest(key_of(model, task, limit))
    return [line for line in lines if line["request"] == short]
