"""Measuring a plan: prepare every implementation at a point, then time them in interleaved rounds."""

from __future__ import annotations

import secrets
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from tnbench.profiling.kernels.compiling import compile_all
from tnbench.profiling.kernels.rows import shape_words
from tnbench.profiling.kernels.store import Block, Line, Records, Store
from tnbench.profiling.kernels.verdicts import fastest, reported_seconds
from tnbench.profiling.pool import Answer, Pool
from tnbench.profiling.progress import Progress, TimeIsUp
from tnbench.profiling.samples import summary
from tnbench.records import now

ROOFLINE = "roofline"
"""Name of the worker that measures the machine itself."""
ROOMY = 4 << 30
"""Bytes that a case moves at least, up to which all implementations of it are judged at the same time."""
SIZES = ("length", "batch", "rows")
"""Axes that peers do not tune themselves for. Some are compiled anew for each of them."""
ROOFLINE_EVERY = 60.0
"""Seconds after which the copy rate is measured again: clocks and temperatures drift."""


SLOW = 30
"""So many times slower than the fastest of its point, an implementation is left after two rounds: softmax
attention and token-by-token forms would take most of a campaign where nothing is left to decide."""
ROUNDS_OF_SLOW = 2


@dataclass(frozen=True)
class Measurement:
    """How a point is measured; a change of any of these is a new measurement."""

    rounds: int
    calls: int
    """Most timed calls of an implementation in a round."""
    seconds: float
    """Time after which a round of an implementation ends early."""


@dataclass(frozen=True)
class Point:
    """One case, with what its rows need to be judged later."""

    case: dict[str, Any]
    """operator, mode, dtype and shape, as in `Case.to_dict`."""
    tokens: int
    floor_bytes: float
    flops: float
    graph: bool
    """Whether CUDA graphs are timed too."""
    implementations: dict[str, str]
    """Name → source (ours, torch, softmax, peer, revision), in the order in which they are printed."""
    kernel_hash: str
    stack: dict[str, str | None]
    """Versions of torch and triton."""
    command: str
    """The command of this point, to which `--implementation NAME` is added."""
    compiles: dict[str, str] = field(default_factory=dict)
    """Name → `once` or `anew`, of those that are compiled (`operators.Implementation`)."""

    def key(self, measurement: Measurement) -> Line:
        """What a block must agree in to be a current measurement of this point."""
        return {
            "case": self.case,
            "measurement": {**asdict(measurement), "graph": self.graph},
            "kernel_hash": self.kernel_hash,
            **self.stack,
        }


class Campaign:
    """One session of measuring into a store."""

    def __init__(
        self,
        pool: Pool,
        store: Store,
        measurement: Measurement,
        *,
        energy: float = 0.0,
        side_by_side: bool = False,
        time_limit: float | None = None,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """`energy` is the window in seconds in which energy is counted (0: not at all); `side_by_side`: the
        processor has cores to spare, so that implementations are compiled and judged together; `time_limit`
        is the number of seconds after which no more is started."""
        self.pool, self.store, self.measurement = pool, store, measurement
        self.energy, self.side_by_side, self.watch = energy, side_by_side, watch
        self.session = secrets.token_hex(4)
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self._roofline_at = -ROOFLINE_EVERY
        self._prepared: set[tuple[str, int, str]] = set()
        """Implementation, process and case."""

    def run(self, points: Sequence[Point], records: Records, session: Line) -> Progress:
        """Measure what is not current yet, in order.

        Args:
            session: what the session's line says beside its id and start.

        Raises:
            RecordsError: a record could not be written; what was written before is kept.
        """
        progress = Progress(len(points))
        todo = [
            (point, records.current(point.key(self.measurement), point.implementations)) for point in points
        ]
        if all(not self._lacks(point, block) for point, block in todo):
            progress.done = progress.skipped = len(points)
            return progress
        self.store.append([{"kind": "session", "session": self.session, "started": now(), **session}])
        try:
            names = dict.fromkeys(name for point, _ in todo for name in point.implementations)
            self.pool.start([ROOFLINE, *names])
            if self.side_by_side:
                self._warm([point for point, block in todo if self._lacks(point, block)], progress)
            for point, block in todo:
                if self._lacks(point, block):
                    self._measure(point, block, progress)
                    progress.first = progress.first or time.monotonic()
                else:
                    progress.skipped += 1
                progress.done += 1
                self.watch(progress)
        except KeyboardInterrupt:
            progress.stopped = "interrupted"
        except TimeIsUp:
            progress.stopped = "time limit"
        return progress

    def _lacks(self, point: Point, block: Block | None) -> bool:
        """Whether something of a point is still to be measured: its times, or the energy of its rows."""
        if block is None:
            return True
        timed = {row["implementation"] for row in block.rows if row["status"] == "ok"}
        timed &= point.implementations.keys()
        counted = {name for name, line in block.energy.items() if line["window"] >= self.energy}
        return self.energy > 0 and bool(timed - counted)

    def _measure(self, point: Point, block: Block | None, progress: Progress) -> None:
        case = point.case
        progress.point = f"{case['operator']} {case['mode']} {case['dtype']} {shape_words(case)}"
        self._measure_roofline()
        if block is None:
            block = self._time(point, progress)
        progress.result = outcome(block.rows)
        if self.energy > 0:
            self._count_energy(point, block, progress)

    def _ask(self, name: str, do: str, **rest: Any) -> Answer:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeIsUp
        return self.pool[name].ask({"do": do, **rest})

    def _measure_roofline(self) -> None:
        if time.monotonic() - self._roofline_at < ROOFLINE_EVERY:
            return
        answer = self._ask(ROOFLINE, "roofline")
        self._roofline_at = time.monotonic()
        self.store.append([{"kind": "roofline", "session": self.session, "time": now(), **answer}])

    def _time(self, point: Point, progress: Progress) -> Block:
        """Prepare and time all implementations of a point, and record its block."""
        identity = {"block": secrets.token_hex(6), "session": self.session}
        rows: dict[str, Line] = {}
        for name, answer in self._prepare_all(point, progress).items():
            source = point.implementations[name]
            rows[name] = {"kind": "row", **identity, "implementation": name, "source": source, **answer}
        samples: dict[str, dict[str, list[list[float]]]] = {
            name: {"eager": [], "graph": []} for name, row in rows.items() if row["status"] == "ok"
        }
        names = list(samples)
        request = point.key(self.measurement)["measurement"]
        request.pop("rounds")
        slow: set[str] = set()
        for number in range(self.measurement.rounds):
            if number == ROUNDS_OF_SLOW:
                slow = slowest(samples)
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                if rows[name]["status"] != "ok" or name in slow:
                    continue
                self._show(progress, f"round {number + 1}: {name}")
                answer = self._ask(name, "time", case=point.case, **request)
                if answer["status"] != "ok" or not answer.get("eager_seconds"):
                    rows[name].update(status=answer["status"], reason=answer.get("reason"))
                    continue
                rows[name]["reason"] = answer.get("reason")
                samples[name]["eager"].append(answer["eager_seconds"])
                if answer.get("graph_seconds"):
                    samples[name]["graph"].append(answer["graph_seconds"])
        for name, taken in samples.items():
            if rows[name]["status"] == "ok":
                whole = len(taken["graph"]) == len(taken["eager"])
                rows[name]["eager"] = summary(taken["eager"])
                rows[name]["graph"] = summary(taken["graph"]) if whole else None
        line: Line = {
            "kind": "block",
            **identity,
            "time": now(),
            "rows": len(rows),
            **point.key(self.measurement),
            "tokens": point.tokens,
            "floor_bytes": point.floor_bytes,
            "flops": point.flops,
            "command": point.command,
        }
        self.store.append([*rows.values(), line])
        for row in rows.values():
            progress.rows[row["status"]] = progress.rows.get(row["status"], 0) + 1
        return Block(line, list(rows.values()))

    def _count_energy(self, point: Point, block: Block, progress: Progress) -> None:
        """Energy of the timed rows that were asked for and have none yet, in records of their own."""
        case = block.case
        for row in block.rows:
            name = row["implementation"]
            if name not in point.implementations:
                continue
            known = block.energy.get(name)
            if row["status"] != "ok" or (known is not None and known["window"] >= self.energy):
                continue
            self._show(progress, f"energy of {name}")
            ready = (name, self.pool[name].starts, str(case)) in self._prepared
            answer = {"status": "ok"} if ready else self._prepare(name, case)  # only what it has judged
            if answer["status"] == "ok":
                answer = self._ask(name, "energy", case=case, seconds=self.energy)
            self.store.append(
                [
                    {
                        "kind": "energy",
                        "block": block.id,
                        "session": self.session,
                        "implementation": name,
                        "window": self.energy,
                        "time": now(),
                        **answer,
                    }
                ]
            )

    def _prepare_all(self, point: Point, progress: Progress) -> dict[str, Answer]:
        """Answers by implementation: side by side where the GPU holds them all, else one after the other."""
        names = list(point.implementations)
        if not self.side_by_side or point.floor_bytes > ROOMY:
            answers = {}
            for name in names:
                self._show(progress, f"preparing {name}")
                answers[name] = self._prepare(name, point.case)
            return answers
        self._show(progress, "preparing")
        with ThreadPoolExecutor(len(names)) as threads:
            return dict(
                zip(names, threads.map(lambda name: self._prepare(name, point.case), names), strict=True)
            )

    def _warm(self, points: Sequence[Point], progress: Progress) -> None:
        """Compile before anything is timed, and let peers that tune themselves do so alone on the GPU.

        Processes that are thrown away fill the compilers' caches, as many at a time as there are cores; what
        they found by timing is not kept, for they disturbed each other. Each peer tunes itself once there and
        once alone, not for every length.
        """
        firsts: dict[tuple[str, str], Point] = {}
        rest: list[tuple[str, Line]] = []
        for point in sorted(points, key=lambda point: point.floor_bytes):
            shape = {name: size for name, size in point.case["shape"].items() if name not in SIZES}
            for name, how in point.compiles.items():
                alike = name, str({**point.case, "shape": shape})
                if firsts.setdefault(alike, point) is not point and how == "anew":
                    rest.append((name, point.case))
        progress.point = "before the first point"
        self._show(progress, f"compiling for {len(firsts) + len(rest)} rows side by side")
        # One of each kind first: processes that meet the same kernel at once would all compile it.
        ones = [(name, point.case) for (name, _), point in firsts.items()]
        for jobs in (ones, rest):
            compile_all(self.pool, deque(sorted(jobs, key=lambda job: job[0])), self.deadline)
        for (name, _), point in firsts.items():
            if point.implementations[name] == "peer":
                self._show(progress, f"first calls of {name}")
                self._prepare(name, point.case)

    def _prepare(self, name: str, case: Line) -> Answer:
        answer = self._ask(name, "prepare", case=case)
        self._prepared.add((name, self.pool[name].starts, str(case)))
        return answer

    def _show(self, progress: Progress, doing: str) -> None:
        progress.doing = doing
        self.watch(progress)


def slowest(samples: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> set[str]:
    """Those that are more than `SLOW` times slower than the fastest, by their eager times."""
    medians = {
        name: statistics.median(taken["eager"][-1]) for name, taken in samples.items() if taken["eager"]
    }
    return {name for name, seconds in medians.items() if seconds > SLOW * min(medians.values())}


def outcome(rows: Sequence[Line]) -> str:
    """`fastest chunked 1.2 ms; 3 ok, 1 oom`."""
    counts = Counter(row["status"] for row in rows)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    best = fastest(rows, [row["source"] for row in rows if row["source"] != "copy"])
    return f"fastest {best['implementation']} {1e3 * reported_seconds(best):.3g} ms; {said}" if best else said
