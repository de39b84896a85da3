"""lm-eval's tasks with their data, and what has to be right about them before a model is asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tnbench.data import hub
from tnbench.errors import RequestError, first_line, nearest, shortened, shown
from tnbench.evaluation import items, ruler, task_data, tasks

SEED = 1234
"""Of the examples that lm-eval draws: its own default."""
ANY = "EleutherAI/lambada_openai"
"""Asked for to see whether the hub answers."""
FIRST = 20
"""Questions that are looked at for a right answer."""
ELSEWHERE = (
    "give a folder of saved data sets (--task-data), or a task of your own that reads local files "
    "(--include-path)"
)


def load(task: tasks.Asked, manager: Any) -> list[Any]:
    """lm-eval's task, its group or its members, with their data: before a model is loaded.

    Raises:
        RequestError: the task cannot be had: its data are out of reach, its file is broken, or names a metric
            that there is not, or there are not enough examples.
    """
    found = _read(task, manager, examples=bool(task.fewshot))
    if task.data is not None and task.fewshot is None and any(map(_own_shots, found["tasks"].values())):
        found = _read(task, manager, examples=True)
    for name, one in found["tasks"].items():
        with _told(f"task {name}", "cannot be asked"), without_bars():
            _require_askable(name, one)
            _set_examples(name, one, task.fewshot)
            one.set_fewshot_seed(SEED)
            one.build_all_requests(limit=1)
            _require_right_answers(name, one)
    group = found["groups"].get(task.name)
    return [group] if group is not None else list(found["tasks"].values())


def _read(task: tasks.Asked, manager: Any, *, examples: bool) -> Any:
    local = contextlib.nullcontext(True) if task.config is not None else hub.reach(ANY, "dataset")
    where = f"task {task.name}"
    with (
        _told(where, "cannot be read"),
        local as reached,
        hub.datasets_offline(not reached),
        task_data.local(task.data, examples),
        without_bars(),
        ruler.quiet() if ruler.is_ruler(task.name) else contextlib.nullcontext(),
    ):
        try:
            return manager.load([task.spec])
        except (task_data.OutOfReach, ConnectionError) as error:
            why = str(error) if isinstance(error, task_data.OutOfReach) else first_line(error)
            away = getattr(error, "hub", True)
            if away and not reached:
                why = "the Hugging Face hub cannot be reached"
                why += f", and {task.data} does not hold them" if task.data else ""
            cure = f"; {ELSEWHERE}" if away else ""
            raise RequestError(f"{where}: its data cannot be had: {why}{cure}") from error


@contextlib.contextmanager
def _told(where: str, what: str) -> Iterator[None]:
    """What a task's own templates and functions raise, which may be anything, told in a line."""
    try:
        yield
    except RequestError:
        raise
    except KeyError as error:
        said = str(error.args[0]) if error.args else ""
        said = said if " " in said else f"there is no {shown(said)} in its data or its file"
        raise RequestError(f"{where} {what}: {said.splitlines()[0]}") from error
    except Exception as error:
        said = first_line(error)
        if said == "TypeError":  # what lm-eval raises for a key that it needs
            said = "its file lacks one of doc_to_text, doc_to_target and doc_to_choice"
        raise RequestError(f"{where} {what}: {said}") from error


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Within the block no bars are shown: lm-eval has one for each of its steps."""
    from tqdm import tqdm

    start = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **options: start(self, *args, **{**options, "disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = start


def _own_shots(task: Any) -> bool:
    return bool(task.get_config("num_fewshot"))


def _require_askable(name: str, task: Any) -> None:
    from lm_eval.api.registry import aggregation_registry, metric_registry

    if getattr(task, "MULTIMODAL", False):
        raise RequestError(f"task {name} shows pictures or plays sounds: our models read text")
    if getattr(task, "UNSAFE_CODE", False):
        raise RequestError(f"task {name} runs code that a model has written, which tnbench does not")
    computed = task.get_config("process_results") is not None
    for metric, function in {} if computed else getattr(task, "_metric_fn_list", {}).items():
        if function is None:
            raise RequestError(
                f"task {name}: metric {shown(metric)}, {nearest(metric, metric_registry.keys())}"
            )
    for metric, function in getattr(task, "_aggregation_list", {}).items():
        if function is None:
            near = ", ".join(sorted(aggregation_registry.keys()))
            raise RequestError(
                f"task {name}: metric {shown(metric)} has no known aggregation (known: {near})"
            )


def _require_right_answers(name: str, task: Any) -> None:
    """Where no question has a right answer, every model is wrong."""
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
        return
    found = [items.choices_of(task, document) for document in islice(task.eval_docs, FIRST)]
    if any(isinstance(right, list) or items.index_of(right, choices) is not None for choices, right in found):
        return
    choices, right = found[0]
    raise RequestError(
        f"task {name}: the right answer is none of the choices: {shortened(right)} of {shortened(choices)}; "
        "doc_to_target gives an index or one of the choices"
    )


def _set_examples(name: str, task: Any, asked: int | None) -> None:
    """Give a task its number of examples, and keep a question out of its own.

    lm-eval leaves a question out of its examples only where the task's file says that both come from the same
    split; where they do without its saying so, an answer could stand in its own prompt.
    """
    own = task.get_config("num_fewshot")
    if asked and own == 0:
        raise RequestError(f"--num-fewshot {asked}: task {name} takes no examples (its num_fewshot is 0)")
    count = own or 0 if asked is None else asked
    task.set_config(key="num_fewshot", value=count)
    sampler = getattr(task, "sampler", None)
    if not count or sampler is None:
        return
    pool = list(sampler.df)
    left = len(pool)
    if set(map(_text, task.eval_docs)) <= set(map(_text, pool)):
        task.fewshot_cfg.split = task.config.test_split  # lm-eval's sign that the question is left out
        left -= 1
    if count > left:
        raise RequestError(
            f"task {name}: {count} examples before a question are asked for, and there are {max(left, 0)}; "
            "give a smaller --num-fewshot"
        )


def _text(document: Any) -> str:
    return json.dumps(document, sort_keys=True, default=str)
