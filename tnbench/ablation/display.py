"""What the terminal shows of a suite: the plan, the live table, the status; plain lines in a pipe."""

from __future__ import annotations

import math
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tnbench.ablation.eval_plan import POSITIONS, EvalPlan, Recorded
from tnbench.ablation.eval_queue import Asked
from tnbench.ablation.eval_results import scores_said
from tnbench.ablation.eval_worker import Failures
from tnbench.ablation.execute import Ledger
from tnbench.ablation.suite import PlannedRun, Suite, Variant
from tnbench.config import NO_TOKENIZER
from tnbench.records import read_metrics
from tnbench.report import words
from tnbench.report.results import METRICS

MARKS = {"finished": "●", "diverged": "✗", "out_of_memory": "✗", "failed": "!", None: "○"}
STYLES = {"finished": "green", "diverged": "yellow", "out_of_memory": "yellow", "failed": "red", None: "dim"}
LEGEND = "● finished  ◐ running  ◌ running elsewhere  ○ waiting  ✗ diverged or out of memory  ! failed"
ASKED = "◑ being evaluated  "
"""Before the legend, where runs are evaluated."""


def plan_table(
    suite: Suite, outcomes: dict[str, str], seconds: dict[str, float | None] | None = None
) -> Table:
    """The suite's variants: what each costs, and how many of its runs are there."""
    table = Table(
        title=f"{suite.file.title or suite.name}", title_justify="left", box=None, header_style="bold"
    )
    for name in ("variant", "differs in"):
        table.add_column(name, overflow="fold")
    for name in ("parameters\nnon-embedding", "MFLOP per token\nforward", "state\nvalues", "runs\nthere"):
        table.add_column(name, justify="right")
    if seconds is not None:
        table.add_column("time per run\non this machine", justify="right")
    if suite.file.match:
        table.add_column(f"{suite.file.match.by}\nto base", justify="right")
    planned = suite.runs()
    done = Counter(run.variant.name for run in planned if run.folder.id in outcomes)
    expected = Counter(run.variant.name for run in planned)
    if all(run.phase == "tune" for run in planned):  # the reported runs are not known yet
        expected.update({variant.name: len(suite.seeds) for variant in suite.variants})
    for variant in suite.variants:
        cells = [
            variant.name,
            _change(variant, suite.base),
            words.short(variant.parameters["non_embedding"]),
            f"{variant.flops_per_token / 1e6:.3g}",
            words.short(variant.state_size),
            f"{done[variant.name]}/{expected[variant.name]}",
        ]
        if seconds is not None:
            estimate = seconds[variant.name]
            cells.append("not estimated" if estimate is None else f"about {words.duration(estimate)}")
        if suite.file.match:
            cells.append(words.percent(variant.matched.residual) if variant.matched else "base")
        table.add_row(*cells)
    return table


def _change(variant: Variant, base: str) -> str:
    """The diff, and the widths that were solved for."""
    change = words.diff(variant.diff, variant.name == base)
    solved = variant.matched.changed if variant.matched else {}
    return f"{change}; matched: {words.diff(solved, is_base=False)}" if solved else change


def plan_line(suite: Suite) -> str:
    """What every run of the suite has in common."""
    config = next(variant for variant in suite.variants if variant.name == suite.base).config
    training, data = config.training, config.data
    tokens = training.total_steps * training.batch_tokens
    return (
        f"{len(suite.variants)} variants × {len(suite.seeds)} seeds, {words.short(tokens)} tokens each "
        f"({training.total_steps} steps of {training.batch_tokens}), {data.corpus}, "
        f"{'' if data.tokenizer == NO_TOKENIZER else f'{data.tokenizer}, '}context {data.context}, "
        f"{training.device}"
    )


def evaluation_lines(suite: Suite, asked: Asked | None) -> list[str]:
    """What the reported runs are asked after their training, and how much of it is left.

    Args:
        asked: what `eval_queue.preflight` found; None without evaluations.
    """
    plan = suite.evals
    if plan is None or asked is None:
        return []
    questions, parts = asked.questions, []
    for task in plan.tasks:
        shots = "" if task.fewshot is None else f", {task.fewshot} examples each"
        asks = questions.get(task.name)
        parts.append(task.name + (f" ({words.counted(asks.count, 'question')}{shots})" if asks else ""))
    if plan.by_position:
        lengths = {plan.length(suite.planned(one, suite.seeds[0]).subject) for one in suite.variants}
        parts.append(f"{POSITIONS}, in windows of {' or '.join(map(str, sorted(lengths)))} tokens")
    line = f"evaluation of each reported run after its training: {'; '.join(parts)}"
    reported = [run for run in suite.runs() if run.phase == "report"]
    total = len(reported) or len(suite.variants) * len(suite.seeds)
    missing = len(asked.lacking) if reported else total
    if not missing:
        return [line, f"all {total} runs are evaluated"]
    count = missing * sum(asks.count for asks in questions.values())
    each = f", {count:,} questions in all" if count else ""
    return [line, f"{missing} of {words.counted(total, 'run')} still to be evaluated{each}"]


class Watcher:
    """Shows a ledger: a live table on a terminal, a line per ended run elsewhere."""

    def __init__(self, suite: Suite, console: Console) -> None:
        self.suite, self.console = suite, console
        self.metric = METRICS[suite.file.analysis.metric]
        self.values: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        """Run id → when its evaluation began; gone once that is told."""
        self.told: set[str] | None = None
        self.live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Watcher:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, ledger: Ledger) -> None:
        """Show the ledger as it is now."""
        if self.told is None:
            self.told = set()
        for run in ledger.planned:
            run_id = run.folder.id
            if run_id in ledger.running:
                self.began.setdefault(run_id, time.monotonic())
            if run_id in ledger.outcomes and run_id not in self.told:
                self.told.add(run_id)
                self.values[run_id] = self._final_value(run)
                if not self.live and run_id in self.began:
                    self._tell(run, ledger)
            if run_id in ledger.evaluating:
                self.asked.setdefault(run_id, time.monotonic())
            if run_id in ledger.evaluated and run_id in self.asked:
                self._tell_evaluated(run, ledger.evaluated[run_id])
        if self.live:
            self.live.update(self._table(ledger))

    def _final_value(self, run: PlannedRun) -> float:
        if run.phase == "tune":  # what it says on the report split is nobody's affair
            value = self.suite.tuned_value(run)
            return math.nan if value is None else value
        values, _ = read_metrics(run.folder.metrics)
        final = [v["value"] for v in values if v["name"] == self.metric.curve and v.get("split") == "report"]
        return final[-1] if final else math.nan

    def _tell(self, run: PlannedRun, ledger: Ledger) -> None:
        outcome = ledger.outcomes[run.folder.id]
        value = self.values[run.folder.id]
        result = f"{value:.4f} {self.metric.unit}" if outcome == "finished" else outcome.replace("_", " ")
        left = ledger.seconds_left()
        rest = f", about {words.duration(left)} left" if left and ledger.work_left() else ""
        took = words.duration(time.monotonic() - self.began[run.folder.id])
        count = f"[{len(ledger.outcomes)}/{len(ledger.planned)}]"
        self.console.print(
            f"{count} {run.variant.name}{_purpose(run)}, seed {run.seed}: {result} ({took}{rest})",
            highlight=False,
        )

    def _tell_evaluated(self, run: PlannedRun, failed: Failures) -> None:
        took = words.duration(time.monotonic() - self.asked.pop(run.folder.id))
        if self.live:
            return
        lost = [f"not evaluated, {name}: {reason}" for name, (_, reason) in failed.items()]
        what = "; ".join([*scores_said(self.suite, run), *lost]) or "evaluated"
        self.console.print(f"{run.variant.name}, seed {run.seed}: {what} ({took})", highlight=False)

    def _table(self, ledger: Ledger) -> Table:
        left = ledger.seconds_left()
        done, total = len(ledger.outcomes), len(ledger.planned)
        heading = f"{self.suite.name}: {done} of {total} runs"
        if ledger.interrupted:
            heading += ", stopping: writing checkpoints"
        elif left is not None and ledger.work_left():
            heading += f", about {words.duration(left)} left"
        legend = ASKED + LEGEND if self.suite.evals else LEGEND
        table = Table(title=heading, title_justify="left", box=None, header_style="bold", caption=legend)
        for name in ("variant", "seeds", "running"):
            table.add_column(name)
        table.add_column(f"mean {self.metric.label}\n{self.metric.unit}", justify="right")
        for variant in self.suite.variants:
            marks, running, values = Text(), [], []
            for run in ledger.planned:
                if run.variant is not variant and run.variant.name != variant.name:
                    continue
                run_id = run.folder.id
                outcome = ledger.outcomes.get(run_id)
                if run_id in ledger.running:
                    marks.append("◐ ", "cyan")
                    running.append(_where(run, ledger))
                elif run_id in ledger.evaluating:
                    marks.append("◑ ", "cyan")
                    running.append(f"seed {run.seed}: asked {ledger.evaluating[run_id] or 'the tasks'}")
                elif run_id in ledger.elsewhere:
                    marks.append("◌ ", "cyan")
                else:
                    marks.append(MARKS[outcome] + " ", STYLES[outcome])
                if outcome == "finished" and run.phase == "report":
                    values.append(self.values.get(run_id, math.nan))
            mean = f"{sum(values) / len(values):.4f}" if values else "–"
            table.add_row(variant.name, marks, "; ".join(running), mean)
        return table


def _purpose(run: PlannedRun) -> str:
    """What a tuning run tries; nothing for a reported one."""
    return f", tuning: {words.point(run.point)}" if run.phase == "tune" else ""


def _where(run: PlannedRun, ledger: Ledger) -> str:
    progress = ledger.running[run.folder.id]
    name = f"seed {run.seed}{_purpose(run)}"
    if progress is None:
        return f"{name}: starting"
    if progress.phase == "evaluating":
        return f"{name}: evaluating"
    share = progress.step / progress.steps
    speed = f"{progress.tokens_per_second:,.0f} tokens/s"
    return f"{name}: {share:.0%}, loss {progress.loss:.3f} nats, {speed}"


def status_table(suite: Suite) -> Table:
    """Every run of the suite and where it stands, from the records alone."""
    table = Table(box=None, header_style="bold")
    recorded = Recorded.read(suite.evals) if suite.evals else Recorded()
    for name in ("variant", "seed", "run id", "state", "started", "attempts"):
        table.add_column(name)
    if suite.evals:
        table.add_column("evaluated")
    for run in suite.runs():
        problem = run.folder.problem()
        manifest = {} if problem else (run.folder.read_manifest() or {})
        state = manifest.get("outcome")
        if problem:
            state = f"waiting: {problem}"
        elif state is None:
            values, _ = read_metrics(run.folder.metrics) if manifest else ([], [])
            step = max((value["step"] for value in values), default=0)
            state = f"at step {step} of {run.config.training.total_steps}" if manifest else "waiting"
        elif manifest.get("reason"):
            state = f"{state.replace('_', ' ')}: {manifest['reason']}"
        if run.phase == "tune":
            state += f" (tuning: {words.point(run.point)})"
        table.add_row(
            run.variant.name,
            str(run.seed),
            run.folder.id,
            state,
            str(manifest.get("started", "")),
            str(manifest.get("attempts", "")),
            *([_evaluated(suite.evals, run, recorded)] if suite.evals else []),
        )
    return table


def _evaluated(plan: EvalPlan, run: PlannedRun, recorded: Recorded) -> str:
    """`1/2; hellaswag: its weights were not kept`: what a run was asked, and why not the rest."""
    if run.phase != "report":
        return ""
    keys = plan.requests(run.subject)
    left = {name: key for name, key in keys.items() if not recorded.has(key)}
    failed = [
        f"{n}: {recorded.failures[key]['reason']}" for n, key in left.items() if key in recorded.failures
    ]
    return "; ".join([f"{len(keys) - len(left)}/{len(keys)}", *failed])
