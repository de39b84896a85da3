"""Which tasks an evaluation is made of: the shipped one, lm-eval's, named groups of them, and local files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError, nearest, shown
from tnbench.evaluation.cloze import PATH as CLOZE_FILE

CLOZE = "cloze"
CLOZE_CONFIG: dict[str, Any] = {
    "task": CLOZE,
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(CLOZE_FILE)}},
    "test_split": "test",
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
QUIET = ("lm_eval", "lm-eval", "datasets", "huggingface_hub", "fsspec", "filelock")


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

    @property
    def spec(self) -> Any:
        """What lm-eval is given."""
        return self.name if self.config is None else dict(self.config)


def asked(words: str | None, fewshot: int | None) -> list[Asked]:
    """The tasks of `--tasks`: names, `paper`, `small`, `cloze`; by default the shipped cloze task.

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


def manager(tasks: Sequence[Asked], include: Path | None) -> Any:
    """lm-eval's index of tasks: its own only where one of them is asked for, for reading them takes seconds.

    Args:
        include: a folder of task files.

    Raises:
        RequestError: the folder is not there, or a task is unknown.
    """
    quieten()
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise RequestError(f"--include-path {include}: there is no such folder")
    named = [one.name for one in tasks if one.config is None]
    path = None if include is None else str(include)
    local = TaskManager(include_path=path, include_defaults=False)
    if not set(named) - set(local.all_tasks):
        return local
    whole = TaskManager(include_path=path)
    for name in named:
        if name not in whole.all_tasks:
            near = nearest(name, [CLOZE, *GROUPS, *whole.all_tasks])
            if not near.startswith("did"):
                near = (
                    f"no such task; known are {CLOZE}, {', '.join(GROUPS)}, and lm-eval's (lm_eval ls tasks)"
                )
            raise RequestError(f"--tasks {shown(name)}: {near}")
    return whole


def quieten() -> None:
    """lm-eval and what it calls report each step; their errors arrive as exceptions."""
    import datasets
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
