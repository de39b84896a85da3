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
from tnbench.errors import RequestError, first_line
from tnbench.evaluation import items, tasks
from tnbench.evaluation.asking import ask, cut, drop_damaged, metrics, told
from tnbench.evaluation.task_loading import SEED, load
from tnbench.profiling.lines import Line, Lines, RecordsError
from tnbench.records import now, write_atomic

FOLDER = "evals"
ITEMS = "items"
SHOWN = ("key", "request", "model", "items", "chance", "gold_bits_per_byte", "gold_bits_per_byte_stderr")
"""What tables are made of, beside the metrics."""


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
                _require_whole(line)
                found[digest({**asked, "fewshot": line["asked"]["fewshot"]})] = line

        problems = self.each(take)
        return list(found.values()), problems

    def positions(self) -> list[Line]:
        """The last record of losses by position of each model and length."""
        found: dict[str, Line] = {}

        def take(line: Line) -> None:
            if line["kind"] == "positions":
                if not {"model", "trained_context", "windows", "bytes_per_token"} <= line.keys():
                    raise ValueError("a part is missing")
                if not len(line["bits"]) == len(line["stderr"]) == len(line["edges"]) - 1:
                    raise ValueError("bins and their edges differ in number")
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
        "task_loading.py",
        "asking.py",
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
        "config": task.content,
        "data": task.data_content,
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
    loaded: list[Any] | None = None,
) -> list[Line]:
    """Ask a model, and record what came of it: one line for the task, or for each that a group holds.

    Args:
        opened: models that are open, by name; this one is added.
        loaded: the task as `load` gives it, if that was done before.

    Raises:
        RequestError: the task cannot be had: its data are out of reach, or its file is broken.
        Busy: another process makes the evaluation.
        Failed: the model has no answer: its memory does not suffice, or its training has diverged.
        RecordsError: the record cannot be written.
    """
    short = digest(key_of(model, task, limit))
    with store.alone(short):
        made = known(store, store.read()[0], model, task, limit)  # perhaps meanwhile, by another process
        return made or _made(store, model, task, manager, limit, session, opened, loaded)


def _made(
    store: Store,
    model: Model,
    task: tasks.Asked,
    manager: Any,
    limit: int | None,
    session: Line,
    opened: dict[str, Any],
    loaded: list[Any] | None,
) -> list[Line]:
    """The lines of a new evaluation, recorded."""
    key = key_of(model, task, limit)
    short = digest(key)
    started = time.perf_counter()
    loaded = load(task, manager) if loaded is None else loaded
    with told(f"task {task.name}, {model.name}"):
        if model.name not in opened:
            opened[model.name] = model.open()
        with _writing(store):
            drop_damaged(store.answers_of(short))
            store.items_of(short).parent.mkdir(parents=True, exist_ok=True)
        found = ask(opened[model.name], loaded, task, manager, limit, store.answers_of(short))
        by_name = {one.task_name: one for group in loaded for one in _leaves(group)}
        answered = {
            name: items.of_samples(samples, found["configs"][name]["output_type"], by_name.get(name))
            for name, samples in sorted(found["samples"].items())
        }
    lines = []
    for name, asked in answered.items():
        config = found["configs"][name]
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
                "metrics": metrics(found["results"][name], found["higher_is_better"].get(name) or {}),
                **summary.__dict__,
                "max_length": opened[model.name].max_length,
                "cut": cut(opened[model.name], found["samples"][name], config["output_type"]),
                "without_answer": sum(bool(item.choices) and item.gold_nats is None for item in asked),
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


def _leaves(one: Any) -> list[Any]:
    return one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one]


def _require_whole(line: Line) -> None:
    """Raises KeyError, TypeError, ValueError or AttributeError for a record that tables cannot be made of."""
    missing = set(SHOWN) - line.keys()
    for found in line["metrics"].values():
        float(found["value"])
        missing |= {"stderr", "higher_is_better"} - found.keys()
    if missing:
        raise KeyError(*missing)


def read_items(store: Store, line: Line) -> list[items.Item]:
    """The items of a record.

    Raises:
        RequestError: they are not there, cannot be read, or some are missing.
    """
    path = store.items_of(line["key"])
    try:
        found = [items.Item(**json.loads(text)) for text in path.read_text("utf-8").split("\n") if text]
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{path} cannot be read: {first_line(error)}") from error
    if len(found) != line["items"]:
        raise RequestError(f"{path} has {len(found)} items, its record says {line['items']}")
    return found


def known(
    store: Store, lines: Sequence[Line], model: Model, task: tasks.Asked, limit: int | None
) -> list[Line]:
    """The records that answer a request; none where the items of one are lost or damaged."""
    short = digest(key_of(model, task, limit))
    found = [line for line in lines if line["request"] == short]
    try:
        for line in found:
            read_items(store, line)
    except RequestError:
        return []
    return found
