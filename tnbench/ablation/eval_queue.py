"""The evaluations of a suite while it is executed: which runs wait for theirs, and whose weights may go."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tnbench.ablation.eval_plan import Questions, Recorded
from tnbench.ablation.eval_worker import Evaluation, Failures, record_failure
from tnbench.ablation.suite import PlannedRun, Suite, Variant
from tnbench.errors import RequestError
from tnbench.profiling.lines import RecordsError

FOR_EVALUATION = "until evaluated"
"""In a manifest: the weights are there for the evaluation alone (--keep none)."""
NO_WEIGHTS = "its weights were not kept (--keep none)"
CHANGED = "its record is not found: the code of the evaluation changed meanwhile; run the suite again"


class Evaluations:
    """Finished runs on their way through their evaluation."""

    def __init__(self, suite: Suite, keep_weights: bool) -> None:
        self._suite, self._plan, self._keep = suite, suite.evals, keep_weights
        self.waiting: deque[PlannedRun] = deque()
        self.asking: dict[str, str] = {}
        """Run id → what the run is asked now."""
        self.ended: dict[str, Failures] = {}
        """Run id → what failed: of runs that are asked nothing more."""
        self._failed: dict[str, Failures] = {}
        self._runs: dict[str, PlannedRun] = {}
        self._elsewhere: list[PlannedRun] = []

    def busy(self) -> bool:
        """Whether there is a run to be evaluated or waited for."""
        return bool(self.waiting or self.asking or self._elsewhere)

    def keeps_weights(self, run: PlannedRun) -> bool:
        """Whether a run's final weights are written, be it for its evaluation alone."""
        return self._keep or self._asks(run)

    def attributes(self, run: PlannedRun) -> dict[str, Any]:
        """What the run's manifest says of it."""
        return {"weights": FOR_EVALUATION} if self._asks(run) and not self._keep else {}

    def recorded(self) -> Recorded:
        """What the records hold now; nothing where nothing is asked."""
        return Recorded.read(self._plan) if self._plan else Recorded()

    def take(self, run: PlannedRun, recorded: Recorded | None = None) -> None:
        """A run has finished: it waits for its evaluation, unless it had it, or has no weights."""
        run_id = run.folder.id
        self._runs[run_id] = run
        failed = self._failed.setdefault(run_id, {})
        missing = self._missing(run, recorded or self.recorded())
        if missing and not run.folder.weights.exists():
            failed.update(dict.fromkeys(missing, ("no_weights", NO_WEIGHTS)))
            missing = []
        if missing:
            self.waiting.append(run)
        else:
            self._end(run)

    def stop(self) -> None:
        """Nothing is asked any more: the command was interrupted."""
        self.asking.clear()

    def job(self) -> Evaluation:
        """The evaluation of the run that has waited longest, for a worker."""
        run = self.waiting.popleft()
        assert self._plan
        missing = tuple(self._missing(run, self.recorded()))
        self.asking[run.folder.id] = ""
        threads = run.config.training.threads
        return Evaluation(run.folder, run.subject, run.variant.name, self._plan, missing, threads)

    def hear(self, job: Evaluation, kind: str, content: Any) -> None:
        """What a worker says of its evaluation."""
        run_id = job.folder.id
        run = self._runs[run_id]
        if kind == "progress":
            self.asking[run_id] = content
            return
        del self.asking[run_id]
        if kind == "unrecorded":
            content = dict.fromkeys(job.names, ("failed", content))
        self._failed[run_id].update(content)
        if kind == "elsewhere":
            self._elsewhere.append(run)
            return
        lost = self._missing(run, self.recorded())
        self._failed[run_id].update(dict.fromkeys(lost, ("failed", CHANGED)))
        self._end(run)

    def bury(self, job: Evaluation, reason: str) -> None:
        """A worker died: what it was asking has failed, and what was still to be asked waits again."""
        run_id, run = job.folder.id, self._runs[job.folder.id]
        name = self.asking.pop(run_id) or next(iter(job.names), "")
        if name in self._missing(run, self.recorded()):
            self._failed[run_id][name] = "failed", reason
            with suppress(RecordsError):
                record_failure(job.plan, job.subject, name, "failed", reason, {"model": job.variant})
        self.take(run)

    def ask_elsewhere(self) -> None:
        """Runs that another command evaluates: they wait again, to see what came of it."""
        waiting, self._elsewhere = self._elsewhere, []
        recorded = self.recorded() if waiting else Recorded()
        for run in waiting:
            self.take(run, recorded)

    def _asks(self, run: PlannedRun) -> bool:
        return self._plan is not None and run.phase == "report"

    def _missing(self, run: PlannedRun, recorded: Recorded) -> list[str]:
        """What the run was not asked yet, but for what has failed in this command."""
        if self._plan is None or not self._asks(run):
            return []
        failed = self._failed[run.folder.id]
        keys = self._plan.requests(run.subject)
        return [name for name, key in keys.items() if name not in failed and not recorded.has(key)]

    def _end(self, run: PlannedRun) -> None:
        """Nothing more is asked: weights that were kept for it go, unless something failed."""
        failed = self._failed[run.folder.id]
        if self._asks(run):
            self.ended[run.folder.id] = failed
        if self._keep or failed:
            return
        with suppress(OSError):
            if (run.folder.read_manifest() or {}).get("weights") == FOR_EVALUATION:
                run.folder.weights.unlink(missing_ok=True)


@dataclass(frozen=True)
class Asked:
    """What is still to be evaluated."""

    questions: dict[str, Questions]
    """Of each task that some run was not asked yet."""
    lacking: list[PlannedRun]
    """Reported runs, as far as they are known, that something is still to be asked of."""


def preflight(suite: Suite) -> Asked | None:
    """Prove before any training that the runs can be asked, as far as it can be known; None: nothing is.

    Raises:
        RequestError: a task is unknown or broken, its data are out of reach, or windows are longer than the
            text.
    """
    plan = suite.evals
    if plan is None:
        return None
    if plan.by_position:
        for variant in suite.variants:
            _require_text(suite, variant)
    recorded = Recorded.read(plan)
    reported = [run for run in suite.runs() if run.phase == "report"]
    lacking: dict[str, list[str]] = {}
    for run in reported:
        if missing := [n for n, key in plan.requests(run.subject).items() if not recorded.has(key)]:
            lacking[run.folder.id] = missing
    names = {name for missing in lacking.values() for name in missing}
    if not reported:  # tuning comes first: which runs are reported depends on it
        names = set(plan.names)
    questions = plan.questions(sorted(names)) if names & {task.name for task in plan.tasks} else {}
    return Asked(questions, [run for run in reported if run.folder.id in lacking])


def _require_text(suite: Suite, variant: Variant) -> None:
    run = suite.planned(variant, suite.seeds[0])
    assert suite.evals
    length = suite.evals.length(run.subject)
    tokens = len(suite.data_of(variant).splits["report"].tokens)
    if tokens < length + 1:
        raise RequestError(
            f"evals.by_position: the report split of {variant.config.data.corpus} has {tokens} tokens, less "
            f"than one window of {length + 1}; give a shorter length"
        )
