"""One task put to one model by lm-eval, and what goes wrong there, told in a line."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError, first_line
from tnbench.evaluation import items, tasks
from tnbench.evaluation.continuation import TOKENS
from tnbench.evaluation.halving import is_out_of_memory
from tnbench.evaluation.task_loading import SEED, without_bars
from tnbench.profiling.lines import RecordsError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Of a disk."""


class Failed(RequestError):
    """A model could not answer a task; the answers that it gave before are kept."""


def ask(
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
    """lm-eval asks git for the commit of the working directory, which complains where there is none, lists
    all that is installed, which takes longer than small tasks do, and shows a bar for each of its steps."""
    commit, environment = evaluator.get_git_commit_hash, evaluator.add_env_info
    evaluator.get_git_commit_hash = lambda: None
    evaluator.add_env_info = lambda results: None
    try:
        with without_bars():
            yield
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = commit, environment


def metrics(results: dict[str, Any], better: dict[str, bool]) -> dict[str, Any]:
    """{metric: {value, stderr, higher_is_better}} of lm-eval's `acc,none` and `acc_stderr,none`."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        metric, _, filtered = name.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        label = items.label(metric, filtered)
        error = results.get(f"{metric}_stderr,{filtered}")
        found[label] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, int | float) else None,
            "higher_is_better": better.get(metric),
        }
    return found


def cut(model: Any, samples: Sequence[Mapping[str, Any]], kind: str) -> int:
    """Questions that were too long for a model, so that it did not read their beginning.

    Args:
        model: the `HarnessModel`.
        samples, kind: as for `items.of_samples`.
    """
    if kind == "loglikelihood_rolling":
        return 0
    found = set()
    for sample in samples:
        longest: dict[str, Any] = {}
        for context, following, *_ in items.arguments(sample["arguments"]):
            if kind == "generate_until":
                longest[context] = following.get("max_gen_toks", TOKENS)
            else:
                longest[context] = max(longest.get(context, ""), following, key=len)
        if any(model.loses(context, following) for context, following in longest.items()):
            found.add(sample["doc_id"])
    return len(found)


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """What goes wrong while a task is asked, told in a line.

    Errors of torch are failures; those that lm-eval and a task's own functions raise make the task a wrong
    request.
    """
    try:
        yield
    except (RequestError, RecordsError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise Failed(
                f"{where}: the model and a single question need more memory than there is; try a shorter "
                "--max-length, or --precision bf16"
            ) from error
        if isinstance(error, sqlite3.Error) or getattr(error, "errno", None) in FULL:
            raise RecordsError(f"{where}: answers cannot be kept: {first_line(error)}") from error
        if isinstance(error, OverflowError):
            raise Failed(
                f"{where}: a metric is too large for a number, as the perplexity of words may be in a text "
                "without spaces; leave it out of the task's metric_list"
            ) from error
        kind = Failed if isinstance(error, RuntimeError | FloatingPointError) else RequestError
        plain = str(error) if type(error) is ValueError else ""
        raise kind(f"{where}: {plain or first_line(error)}") from error


def drop_damaged(answers: Path) -> None:
    """Remove kept answers that cannot be read: they are given again."""
    for path in answers.parent.glob(f"{answers.name}*.db"):
        try:
            with contextlib.closing(sqlite3.connect(path)) as kept:
                whole = kept.execute("PRAGMA quick_check").fetchone() == ("ok",)
        except sqlite3.Error:
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
