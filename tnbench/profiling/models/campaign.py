"""Measuring points: every variant is prepared alone, then all are timed in interleaved rounds.

Each variant at a point is a process of its own, which ends with the point. Where the device cannot hold all
of them beside the one that works, they are timed one after the other: those rounds are not paired, so that no
verdict is given.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tnbench.config import digest
from tnbench.profiling.lines import Line
from tnbench.profiling.models.arms import Spec
from tnbench.profiling.models.store import FAILED, Records, Store
from tnbench.profiling.models.variants import Variant
from tnbench.profiling.pool import Answer, Pool
from tnbench.profiling.progress import Progress, TimeIsUp
from tnbench.profiling.samples import summary
from tnbench.profiling.texts import number, place
from tnbench.records import now

Job = TypeVar("Job")

LIMITS = {"prepare": 1800.0, "time": 600.0, "energy": 300.0, "roofline": 180.0}
"""Seconds after which a silent process counts as hung: compiling a large model takes many minutes."""
ROOFLINE = "roofline"
"""Name of the process that measures the machine itself."""


@dataclass(frozen=True)
class Measurement:
    """How a point is measured; a change of any of these is a new measurement."""

    rounds: int
    calls: int
    """Most timed calls of a variant in a round."""
    seconds: float
    """Time after which a round of a variant ends early."""
    energy: float = 0.0
    """Seconds over which energy is counted; 0: not at all."""


@dataclass(frozen=True)
class Point:
    """One case, with the variants that are compared at it."""

    case: dict[str, Any]
    """mode, size, context, batch, vocabulary, precision, device, threads, suite, limit."""
    variants: tuple[Variant, ...]
    code: str
    """Hash of the source behind the numbers."""
    stack: dict[str, str | None]
    """Versions of torch and triton."""
    command: str
    """The command that measures this point alone."""

    def key(self, measurement: Measurement) -> Line:
        """What a block must agree in to be a current measurement of this point."""
        return {
            "case": self.case,
            "measurement": asdict(measurement),
            "code": self.code,
            **self.stack,
        }

    @property
    def arms(self) -> dict[str, str]:
        """Variant → digest of its configuration, in the order in which they are printed."""
        return {variant.name: config_digest(variant) for variant in self.variants}

    def spec(self, variant: Variant) -> Spec:
        """What is sent to the variant's process."""
        case = self.case
        return Spec(
            mode=case["mode"],
            batch=case["batch"],
            vocabulary=case["vocabulary"],
            config=variant.config,
            peer=variant.peer,
            limit=case["limit"],
        )


def config_digest(variant: Variant) -> str:
    """Of all that its numbers depend on."""
    return digest({"peer": variant.peer, "config": variant.config.identity()})


def words(case: Mapping[str, Any]) -> str:
    """`train 385m, context 2k, batch 16, bf16`."""
    text = f"{case['mode']} {case['size']}, context {place(case['context'])}, batch {case['batch']}"
    return f"{text}, {case['precision']}" + (f", {case['suite']}" if case["suite"] else "")


class Session:
    """One run of the command: its processes, its deadline, its id in the records."""

    def __init__(
        self,
        command: Callable[[str], list[str]],
        store: Store,
        *,
        time_limit: float | None = None,
        watch: Callable[[Progress], None] = lambda progress: None,
        limits: Mapping[str, float] = LIMITS,
    ) -> None:
        """`command(name)` gives the command line of a variant's process; `time_limit` is the number of
        seconds after which no more is started."""
        self.command, self.store, self.watch, self.limits = command, store, watch, limits
        self.id = secrets.token_hex(4)
        self.deadline = None if time_limit is None else time.monotonic() + time_limit

    def begin(self, line: Line) -> None:
        """Record the session, with what `line` says of it."""
        self.store.append([{"kind": "session", "session": self.id, "started": now(), **line}])

    def pool(self) -> Pool:
        return Pool(self.command, self.limits)

    def ask(self, pool: Pool, name: str, do: str, **rest: Any) -> Answer:
        """An answer whose status is `ok`, `oom`, `unsupported` or `failed`.

        Raises:
            TimeIsUp: the time limit has been reached.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeIsUp
        answer = pool[name].ask({"do": do, **rest})
        if answer["status"] in ("ok", "oom", "unsupported"):
            return answer
        kind = "" if answer["status"] == "error" else f"{answer['status']}: "
        return {**answer, "status": FAILED, "reason": f"{kind}{answer.get('reason')}"}

    def show(self, progress: Progress, doing: str) -> None:
        progress.doing = doing
        self.watch(progress)

    def go_through(
        self,
        jobs: Sequence[Job],
        known: Callable[[Job], object],
        do: Callable[[Job, Progress], None],
        line: Line,
    ) -> Progress:
        """Do the jobs of which nothing is known yet, in order.

        Args:
            line: what the session's line says beside its id and start.

        Raises:
            RecordsError: a record could not be written; what was written before is kept.
        """
        progress = Progress(len(jobs))
        there = [bool(known(job)) for job in jobs]
        if all(there):
            progress.done = progress.skipped = len(jobs)
            return progress
        self.begin(line)
        try:
            for job, skipped in zip(jobs, there, strict=True):
                if skipped:
                    progress.skipped += 1
                else:
                    do(job, progress)
                    progress.first = progress.first or time.monotonic()
                progress.done += 1
                self.watch(progress)
        except KeyboardInterrupt:
            progress.stopped = "interrupted"
        except TimeIsUp:
            progress.stopped = "time limit"
        return progress


class Campaign:
    """Measures points into a store."""

    def __init__(self, session: Session, measurement: Measurement) -> None:
        self.session, self.measurement = session, measurement

    def run(self, points: Sequence[Point], records: Records, line: Line) -> Progress:
        """Measure what is not current yet: see `Session.go_through`."""

        def known(point: Point) -> object:
            return records.current(point.key(self.measurement), point.arms)

        return self.session.go_through(points, known, self._measure, line)

    def _measure(self, point: Point, progress: Progress) -> None:
        """Prepare and time all variants of a point, and record its block."""
        progress.point = words(point.case)
        identity = {"block": secrets.token_hex(6), "session": self.session.id}
        with self.session.pool() as pool:
            if point.case["device"] == "cuda":  # on a CPU their imports would slow what is measured first
                pool.start([ROOFLINE, *point.arms])
            self._measure_roofline(pool, progress)
            arms = _Arms(self.session, pool, point, self.measurement, progress)
            rows, interleaved = arms.measure()
        line: Line = {
            "kind": "block",
            **identity,
            "time": now(),
            "rows": len(rows),
            **point.key(self.measurement),
            "command": point.command,
            "interleaved": interleaved,
        }
        self.session.store.append([{"kind": "row", **identity, **row} for row in rows] + [line])
        for row in rows:
            progress.rows[row["status"]] = progress.rows.get(row["status"], 0) + 1
        progress.result = outcome(rows)

    def _measure_roofline(self, pool: Pool, progress: Progress) -> None:
        """In a process that is gone before the first variant is prepared."""
        self.session.show(progress, "copy and matmul rate of the machine")
        answer = self.session.ask(pool, ROOFLINE, "roofline")
        pool[ROOFLINE].close()
        line = {"kind": "roofline", "session": self.session.id, "time": now(), **answer}
        self.session.store.append([line])


class _Arms:
    """The variants of one point, on their way from processes to rows."""

    def __init__(
        self, session: Session, pool: Pool, point: Point, measurement: Measurement, progress: Progress
    ) -> None:
        self.session, self.pool, self.point = session, pool, point
        self.measurement, self.progress = measurement, progress
        self.variants = {variant.name: variant for variant in point.variants}
        self.alive: list[str] = []
        """Variants whose processes are prepared."""
        self.rows: dict[str, Line] = {}
        self.samples: dict[str, list[list[float]]] = {}

    def measure(self) -> tuple[list[Line], bool]:
        """The rows, and whether their rounds were interleaved."""
        beside = True
        for name in self.variants:
            beside = self._prepare(name) and beside
        for name in self._ok():  # what was ended for one that did not fit alone either
            if beside and name not in self.alive:
                beside = self._prepare(name)
        interleaved = beside and self._rounds()
        if not interleaved:
            for name, row in self.rows.items():
                if row["status"] == "ok":
                    self._alone(name)
        else:
            for name in self._ok():
                self._count_energy(name)
        for name in self._ok():
            self.rows[name]["times"] = summary(self.samples[name])
        return list(self.rows.values()), interleaved

    def _ok(self) -> list[str]:
        return [name for name, row in self.rows.items() if row["status"] == "ok"]

    def _prepare(self, name: str) -> bool:
        """Prepare a variant; False where it only fits without the others, which are ended for it."""
        variant = self.variants[name]
        beside = True
        answer = self._ask_to_prepare(name)
        if answer["status"] == "oom" and self.alive:
            self._end_all()
            answer = self._ask_to_prepare(name)
            beside = answer["status"] != "ok"
        if answer["status"] == "ok":
            self.alive.append(name)
        else:
            self.pool[name].close()
        self.rows[name] = {
            "variant": name,
            "source": variant.source,
            "diff": variant.diff,
            "config": self.point.arms[name],
            **answer,
        }
        return beside

    def _ask_to_prepare(self, name: str) -> Answer:
        compiles = bool(self.variants[name].config.training.compile) or bool(self.variants[name].peer)
        slow = " (the first call compiles: minutes for a large model)" if compiles else ""
        self.session.show(self.progress, f"preparing {name}{slow}")
        spec = self.point.spec(self.variants[name])
        return self.session.ask(self.pool, name, "prepare", arm=spec.to_dict())

    def _end_all(self) -> None:
        for name in self.alive:
            self.pool[name].close()
        self.alive.clear()

    def _rounds(self) -> bool:
        """Interleaved rounds over what is prepared; False if one runs out of memory beside the others."""
        names = self._ok()
        self.samples = {name: [] for name in names}
        for number_ in range(self.measurement.rounds):
            turn = number_ % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                if self.rows[name]["status"] != "ok":
                    continue
                self.session.show(self.progress, f"round {number_ + 1} of {self.measurement.rounds}: {name}")
                if not self._time(name) and self.rows[name]["status"] == "oom" and len(self.alive) > 1:
                    self.rows[name].update(status="ok", reason=None)
                    return False
        return True

    def _time(self, name: str) -> bool:
        answer = self.session.ask(
            self.pool, name, "time", calls=self.measurement.calls, seconds=self.measurement.seconds
        )
        if answer["status"] == "ok":
            self.samples[name].append(answer["seconds"])
            return True
        self.rows[name].update(status=answer["status"], reason=answer.get("reason"))
        return False

    def _alone(self, name: str) -> None:
        """All rounds of a variant that has the device to itself."""
        self.samples[name] = []
        if self.alive != [name]:
            self._end_all()
            answer = self._ask_to_prepare(name)
            if answer["status"] != "ok":
                self.rows[name].update(status=answer["status"], reason=answer.get("reason"))
                return
            self.alive.append(name)
        for number_ in range(self.measurement.rounds):
            self.session.show(
                self.progress, f"round {number_ + 1} of {self.measurement.rounds}: {name}, alone"
            )
            if not self._time(name):
                return
        self._count_energy(name)

    def _count_energy(self, name: str) -> None:
        if self.measurement.energy > 0:
            self.session.show(self.progress, f"energy of {name}")
            answer = self.session.ask(self.pool, name, "energy", seconds=self.measurement.energy)
            self.rows[name]["energy"] = answer


def outcome(rows: Sequence[Line]) -> str:
    """`fastest transnormerllm 65,100 tokens/s; 2 ok, 1 oom`."""
    counts = Counter(row["status"] for row in rows)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    ok = [row for row in rows if row["status"] == "ok"]
    if not ok:
        return said
    best = max(ok, key=lambda row: row["tokens"] / row["times"]["median"])
    speed = best["tokens"] / best["times"]["median"]
    shown = f"{speed:,.0f}" if speed >= 1000 else number(speed)
    return f"fastest {best['variant']} {shown} tokens/s; {said}"
