"""Which tasks an evaluation is made of: the shipped one, lm-eval's, named groups of them, and local files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tnbench.config import digest
from tnbench.errors import RequestError, nearest, shown
from tnbench.evaluation import ruler, task_data, task_files
from tnbench.evaluation.cloze import PATH as CLOZE_FILE
from tnbench.evaluation.loading import readable

CLOZE = "cloze"
CLOZE_CONFIG: dict[str, Any] = {
    "task": CLOZE,
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(CLOZE_FILE)}},
    "test_split": "test",
    "fewshot_split": "test",  # said, so that lm-eval leaves the question itself out of its examples
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}

PAPER: dict[str, int] = {
    "boolq": 0,
    "piqa": 0,
    "hellaswag": 0,
    "winogrande": 0,
    "arc_easy": 0,
    "arc_challenge": 0,
    "openbookqa": 0,
    "mmlu": 5,
    "cmmlu": 5,
    "ceval-valid": 5,
}
"""The paper's tasks, and the examples that it gives before a question (arXiv 2307.14995v2, table 9)."""
NORMALISED = ("hellaswag", "arc_challenge", "openbookqa")
"""Tasks for which the paper's number is acc_norm, the likelihood per byte; for all others it is acc
(arXiv 2405.17381)."""
SMALL: dict[str, int] = {"arc_easy": 0, "hellaswag": 0}
"""Tasks that tell models apart at 150M parameters: two models are ranked as their larger relatives are with a
probability of 93 % and 74 %, against 50 % for WinoGrande and 48 % for BoolQ (arXiv 2508.13144)."""
GROUPS = {"paper": PAPER, "small": SMALL}
QUIET = ("lm_eval", "lm-eval", "datasets", "huggingface_hub", "fsspec", "filelock", "sqlitedict")


@dataclass(frozen=True)
class Asked:
    """One task, as a command asks for it."""

    name: str
    fewshot: int | None
    """Examples before a question; None for the task's own number."""
    config: dict[str, Any] | None = None
    """Of a task that lm-eval has not."""
    data: Path | None = None
    """A folder of saved data sets that stands for the hub."""
    content: str | None = None
    """A hash of its files, where they are not lm-eval's."""
    data_content: str | None = None
    """One of the saved data sets."""

    @property
    def spec(self) -> Any:
        """What lm-eval is given."""
        return self.name if self.config is None else dict(self.config)


class Wanted(NamedTuple):
    """What is to be asked."""

    tasks: list[Asked]
    manager: Any
    """lm-eval's index, with which they are loaded."""


@readable()
def wanted(words: str | None, fewshot: int | None, *, include: Path | None, data: Path | None) -> Wanted:
    """The tasks of `--tasks`: names, `paper`, `small`, `cloze`; by default the shipped cloze task.

    Args:
        words: names with commas between them; None for the default.
        fewshot: examples before each question; None for the tasks' own numbers.
        include: a folder of task files.
        data: a folder of saved data sets, as `task_data` finds them.

    Raises:
        RequestError: an empty word, one task twice, an unknown one, one that the folder's files define twice,
            or a folder that is not there.
    """
    found = asked(words, fewshot)
    if data is not None:
        task_data.require(data)
    manager = _manager(found, include)
    return Wanted(identified(found, manager.task_index, include=include, data=data), manager)


def identified(
    tasks: Sequence[Asked], index: Mapping[str, Any], *, include: Path | None, data: Path | None
) -> list[Asked]:
    """The tasks with hashes of what they are made of.

    Args:
        index: lm-eval's, by name; without `include` it is not looked at.
        include, data: as for `wanted`; they are there.

    Raises:
        RequestError: a file of a task cannot be read.
    """
    saved = None if data is None else task_data.fingerprint(data)
    made = []
    for one in tasks:
        if one.config is not None:
            made.append(replace(one, content=_shipped_content()))
        else:
            content = task_files.content(one.name, index, include)
            if content is None and ruler.is_ruler(one.name):
                content = ruler.content()
            made.append(replace(one, data=data, content=content, data_content=saved))
    return made


def asked(words: str | None, fewshot: int | None) -> list[Asked]:
    """The tasks by name, as `wanted` reads them.

    Raises:
        RequestError: an empty word, or one task twice.
    """
    names = [word.strip() for word in (CLOZE if words is None else words).split(",")]
    found: list[Asked] = []
    for name in names:
        if not name:
            raise RequestError(f"--tasks {shown(words)}: give names with commas between them")
        if name == CLOZE:
            found.append(Asked(CLOZE, fewshot, CLOZE_CONFIG))
        elif name in GROUPS:
            found += [Asked(task, own if fewshot is None else fewshot) for task, own in GROUPS[name].items()]
        else:
            found.append(Asked(name, fewshot))
    seen = [one.name for one in found]
    for name in seen:
        if seen.count(name) > 1:
            raise RequestError(f"--tasks {shown(words)}: {name} is asked for twice")
    return found


def _shipped_content() -> str:
    return digest(
        [CLOZE_CONFIG | {"dataset_kwargs": None}, hashlib.sha256(CLOZE_FILE.read_bytes()).hexdigest()]
    )


def _manager(tasks: Sequence[Asked], include: Path | None) -> Any:
    """lm-eval's index of tasks: its own only where one of them is asked for, for reading them takes seconds.

    Raises:
        RequestError: as `wanted`.
    """
    quieten()
    from lm_eval.tasks import TaskManager

    names = [one.name for one in tasks if one.config is None]
    problems = [] if include is None else _own(include, [one.name for one in tasks])
    path = None if include is None else str(include)
    local = TaskManager(include_path=path, include_defaults=False)
    if not _unknown(names, local.task_index):
        return local
    made = ruler.metadata() if any(map(ruler.is_ruler, names)) else None
    whole = TaskManager(include_path=path, metadata=made)
    missing = _unknown(names, whole.task_index)
    if not missing:
        return whole
    name, owner = next(iter(missing.items()))
    near = nearest(name, [CLOZE, *GROUPS, *whole.all_tasks])
    if not near.startswith("did"):
        near = f"no such task; known are {CLOZE}, {', '.join(GROUPS)}, and lm-eval's (lm_eval ls tasks)"
    problems.sort(key=lambda text: f"/{name}.yaml " not in text)
    skipped = f" ({problems[0]})" if problems else ""
    where = f"--tasks {shown(name)}" if name == owner else f"task {shown(owner)}: its member {shown(name)}"
    raise RequestError(f"{where}: {near}{skipped}")


def _unknown(names: Sequence[str], index: Mapping[str, Any]) -> dict[str, str]:
    """Tasks that are in no index, by name, and which of `names` needs them."""
    return {
        one: name for name in names for one, entry in task_files.closure(name, index).items() if entry is None
    }


def _own(include: Path, names: Sequence[str]) -> list[str]:
    """What is wrong with files of a folder of tasks that may not be needed.

    Raises:
        RequestError: there is no such folder, or one of the names is not a single task's there.
    """
    if not include.is_dir():
        what = "that is a file" if include.exists() else "there is no such folder"
        raise RequestError(f"--include-path {include}: {what}; give a folder of task files")
    defined, problems = task_files.defined(include)
    for name in names:
        if name in defined and (name == CLOZE or name in GROUPS):
            raise RequestError(
                f"--include-path: {defined[name][0]} defines {name}, a name of ours; rename it"
            )
        if len(defined.get(name, [])) > 1:
            first, second, *_ = defined[name]
            raise RequestError(
                f"--include-path: task {name} is defined in {first} and in {second}; rename one"
            )
    return problems


def quieten() -> None:
    """lm-eval and what it calls report each step; their errors arrive as exceptions."""
    import datasets
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
