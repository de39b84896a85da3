"""What a suite asks its reported runs after their training, and what of it the records hold already.

Evaluations are those of `tnbench eval`, in the same records (`tnbench.evaluation.study`): what either command
has made, the other does not make again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from tnbench.ablation.eval_keys import Evals
from tnbench.config import digest
from tnbench.errors import RequestError
from tnbench.evaluation import by_position, study, task_data, tasks
from tnbench.evaluation.task_loading import load, without_bars
from tnbench.profiling.lines import Line

FIRST = 8
"""Questions of a task by which its length is judged."""
POSITIONS = "loss by position"
"""Stands for the reading by position among the names of tasks."""
OPTIONS = re.compile(r"--(tasks|num-fewshot|limit|include-path|task-data|max-length|precision|by-position)\b")


@contextmanager
def as_keys() -> Iterator[None]:
    """Within the block, what is told of an option of `tnbench eval` is told of the suite's key."""
    try:
        yield
    except RequestError as error:
        raise RequestError(in_keys(str(error))) from error


def in_keys(text: str) -> str:
    """The same, of a text.

    >>> in_keys("give a folder (--task-data)")
    'give a folder (evals.task_data)'
    """
    return OPTIONS.sub(lambda found: "evals." + found[1].replace("-", "_"), text)


class Questions(NamedTuple):
    """How much a task asks of a model."""

    count: int
    bytes_read: float
    """Of contexts, each once, and answers to choose from; NaN where texts are made."""


@dataclass(frozen=True)
class Subject:
    """A run, as far as an evaluation has to know it."""

    run_id: str
    context: int
    """Tokens of a training window."""
    reach: int | None
    """Tokens that its positions reach; None for any number."""


@dataclass(frozen=True)
class EvalPlan:
    """What each reported run is asked."""

    folder: Path
    """Where the records of evaluations lie."""
    tasks: tuple[tasks.Asked, ...]
    include: Path | None
    """A folder of task files."""
    data: Path | None
    """A folder of saved data sets."""
    limit: int | None
    options: Mapping[str, Any]
    """`device`, `precision` and `max_length`, as for `HarnessModel`."""
    by_position: str | None
    """Length of the windows, as `by_position.length_of` reads it; None: losses are not read by position."""

    @classmethod
    def of(cls, evals: Evals, beside: Path, results: Path, device: str) -> Self:
        """The plan of a suite file.

        Args:
            evals: its keys.
            beside: the folder of the suite file, to which paths are relative.
            results: the folder that results go to.
            device: where the runs take place, and their evaluations.

        Raises:
            RequestError: a task is asked for twice, or a folder is missing.
        """
        data, include = (
            None if path is None else beside / path for path in (evals.task_data, evals.include_path)
        )
        with as_keys():
            asked = _asked(evals, include, data) if evals.tasks else []
            if evals.by_position is not None:
                by_position.length_of(evals.by_position, 2)
        precision = evals.precision or ("bf16" if device == "cuda" else "fp32")
        options = {"device": device, "precision": precision, "max_length": evals.max_length}
        return cls(
            folder=results / study.FOLDER,
            tasks=tuple(asked),
            include=include,
            data=data,
            limit=evals.limit,
            options=options,
            by_position=evals.by_position,
        )

    @property
    def store(self) -> study.Store:
        """The records."""
        return study.Store(self.folder)

    @property
    def names(self) -> list[str]:
        """What a run is asked, in order."""
        return [*(task.name for task in self.tasks), *([POSITIONS] if self.by_position else [])]

    @cached_property
    def _keys(self) -> dict[str, Line]:
        """Task → what a record of it must agree in, but for the model."""
        nobody = study.Model("", {}, lambda: None)
        return {task.name: study.key_of(nobody, task, self.limit) for task in self.tasks}

    def identity(self, run_id: str) -> dict[str, Any]:
        """What a run's answers follow from."""
        return {"run": run_id, **self.options}

    def length(self, subject: Subject) -> int:
        """Targets of the windows in which a run is read: no more than its positions reach.

        Raises:
            RequestError: the plan's length cannot be read, with this context.
        """
        assert self.by_position is not None
        with as_keys():
            length = by_position.length_of(self.by_position, subject.context)
        return length if subject.reach is None else min(length, subject.reach)

    def window(self, subject: Subject) -> dict[str, Any]:
        """What a run's losses by position follow from."""
        settings = {name: self.options[name] for name in ("precision", "device")}
        return {"run": subject.run_id, **settings, "length": self.length(subject)}

    def requests(self, subject: Subject) -> dict[str, str]:
        """Each name, and the key under which its record is found."""
        model = self.identity(subject.run_id)
        found = {name: digest({**key, "model": model}) for name, key in self._keys.items()}
        if self.by_position:
            found[POSITIONS] = digest(self.window(subject))
        return found

    def questions(self, names: Sequence[str]) -> dict[str, Questions]:
        """How much there is to answer of the tasks with these names, whose data are read.

        Raises:
            RequestError: a task is unknown or broken, or its data are out of reach.
        """
        found = {}
        with as_keys():
            manager = self.manager()
            for task in self.tasks:
                if task.name in names:
                    leaves = [leaf for one in load(task, manager) for leaf in _leaves(one)]
                    found[task.name] = _counted(leaves, self.limit)
        return found

    def manager(self) -> Any:
        """lm-eval's index with the plan's tasks; reading it takes seconds.

        Raises:
            RequestError: a task is unknown.
        """
        words = ",".join(task.name for task in self.tasks)
        return tasks.wanted(words, None, include=self.include, data=self.data).manager


def _counted(leaves: Sequence[Any], limit: int | None) -> Questions:
    """Questions of lm-eval's tasks, and what is read for them, from the first of each."""
    count, read = 0, 0.0
    for leaf in leaves:
        size = len(leaf.eval_docs)
        asked = min(size, limit or size)
        with without_bars():
            leaf.build_all_requests(limit=min(FIRST, asked))
        contexts = {(one.doc_id, one.args[0]) for one in leaf.instances}
        texts = sum(len(text.encode()) for _, text in contexts)
        if leaf.OUTPUT_TYPE == "generate_until":
            read = math.nan  # how long the texts will be, nobody knows
        elif leaf.OUTPUT_TYPE != "loglikelihood_rolling":
            texts += sum(len(one.args[1].encode()) for one in leaf.instances)
        read += asked * texts / min(FIRST, asked)
        count += asked
    return Questions(count, read)


def _asked(evals: Evals, include: Path | None, data: Path | None) -> list[tasks.Asked]:
    """The tasks as records know them: lm-eval is asked for nothing but task files of the user's own."""
    words = ",".join(evals.tasks)
    if include is not None:
        return tasks.wanted(words, evals.num_fewshot, include=include, data=data).tasks
    if data is not None:
        task_data.require(data)
    return tasks.identified(tasks.asked(words, evals.num_fewshot), {}, include=None, data=data)


def _leaves(found: Any) -> list[Any]:
    """The tasks of a group, or the task itself."""
    return found.get_all_tasks() if hasattr(found, "get_all_tasks") else [found]


@dataclass(frozen=True)
class Recorded:
    """What the records hold, by request."""

    tasks: Mapping[str, list[Line]] = field(default_factory=dict)
    """One line for a task, one for each member of a group."""
    positions: Mapping[str, Line] = field(default_factory=dict)
    failures: Mapping[str, Line] = field(default_factory=dict)
    """The last failure; the request may have been answered since."""
    problems: Sequence[str] = ()
    """Lines that could not be read."""
    store: study.Store | None = None

    @classmethod
    def read(cls, plan: EvalPlan) -> Self:
        """All that the plan's records hold.

        Raises:
            RequestError: the file cannot be read.
        """
        lines, problems = plan.store.read()
        found: dict[str, list[Line]] = {}
        for line in lines:
            found.setdefault(line["request"], []).append(line)
        positions = {digest(line["identity"]): line for line in plan.store.positions()}
        return cls(found, positions, plan.store.failures(), problems, plan.store)

    def has(self, key: str) -> bool:
        """Whether a request is answered, and its items are there."""
        return key in self.positions or (key in self.tasks and all(map(self._is_whole, self.tasks[key])))

    def _is_whole(self, line: Line) -> bool:
        assert self.store
        try:
            return self.store.items_of(line["key"]).read_bytes().count(b"\n") == line["items"]
        except OSError:
            return False
