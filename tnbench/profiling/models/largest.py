"""The largest context or batch that fits into memory: found by trying, each trial in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from tnbench.profiling.lines import Line
from tnbench.profiling.models.campaign import Point, Session, config_digest
from tnbench.profiling.models.store import FAILED, Records
from tnbench.profiling.models.variants import Variant
from tnbench.profiling.progress import Progress
from tnbench.profiling.texts import place
from tnbench.records import now

Axis = Literal["context", "batch"]
STEP = {"context": 256, "batch": 1}
"""Values are multiples of these."""
CLOSE = 0.02
"""Share of a value within which the next one that was tried does not fit."""


def search(fits: Callable[[int], bool], guess: int, step: int, most: int = 1 << 26) -> int:
    """The largest multiple of `step` that fits, to within `CLOSE` of itself; 0 if `step` itself does not.

    Args:
        fits: tried from `guess` outwards, at most once for each value.
        guess: where it is expected.
        most: nothing above is tried.

    >>> search(lambda n: n <= 1000, guess=300, step=8)
    992
    """
    top = most // step
    low, high = 0, top + 1  # in steps: `low` fits, `high` does not
    value = min(max(1, guess // step), top)
    stride = max(1, value // 10)
    while high - low > max(1, CLOSE * low):
        if fits(value * step):
            low, value = value, value + stride
        else:
            high, value = value, value - stride
        if low > 0 and high <= top:
            value = (low + high) // 2
        value = min(max(value, low + 1), high - 1)
        stride *= 2
    return low * step


class Search:
    """Searches for all variants of some points, into a store."""

    def __init__(
        self, session: Session, axis: Axis, guess: Callable[[Point, Variant], int | None], device_bytes: int
    ) -> None:
        """`guess` is the prediction for a variant, None where there is none; `device_bytes` the memory that
        there is, for the record."""
        self.session, self.axis, self.guess, self.device_bytes = session, axis, guess, device_bytes

    def words(self, point: Point) -> str:
        """`largest context: train 385m, batch 1, bf16`."""
        case, held = point.case, "batch" if self.axis == "context" else "context"
        where = f"{case['mode']} {case['size']}, {held} {place(case[held])}, {case['precision']}"
        return f"largest {self.axis}: {where}" + (f", {case['suite']}" if case["suite"] else "")

    def key(self, point: Point, variant: Variant) -> Line:
        """What a record of a search must agree in to be current."""
        case = {name: value for name, value in point.case.items() if name != self.axis}
        return {
            "case": {**case, "axis": self.axis},
            "variant": variant.name,
            "config": config_digest(variant.at(*self._place(point, STEP[self.axis]))),
            "code": point.code,
            **point.stack,
        }

    def run(self, points: Sequence[Point], records: Records, line: Line) -> Progress:
        """Search for what is not known yet: see `Session.go_through`."""
        return self.session.go_through(
            self.jobs(points),
            lambda job: records.found(self.key(*job)),
            lambda job, progress: self._search(*job, progress),
            line,
        )

    @staticmethod
    def jobs(points: Sequence[Point]) -> list[tuple[Point, Variant]]:
        """One search for every variant of every point."""
        return [(point, variant) for point in points for variant in point.variants]

    def _place(self, point: Point, value: int) -> tuple[int, int]:
        """Context and batch of a trial."""
        case = {**point.case, self.axis: value}
        return case["context"], case["batch"]

    def _search(self, point: Point, variant: Variant, progress: Progress) -> None:
        case = point.case
        progress.point = f"{self.words(point)}: {variant.name}"
        trials: list[dict[str, Any]] = []

        def fits(value: int) -> bool:
            self.session.show(progress, f"trying {place(value)}")
            answer = self._try(point, variant, value)
            trials.append({"value": value, **{name: answer.get(name) for name in KEPT}})
            if answer["status"] in (FAILED, "unsupported"):
                raise _Impossible(answer)
            return answer["status"] == "ok"

        predicted = self.guess(point, variant)
        status, reason, found = "ok", None, None
        try:
            start = predicted or (case["context"] if self.axis == "context" else case["batch"])
            found = search(fits, start, STEP[self.axis])
        except _Impossible as error:
            status, reason = error.answer["status"], error.answer.get("reason")
        line = {
            "kind": "largest",
            "session": self.session.id,
            "time": now(),
            **self.key(point, variant),
            "source": variant.source,
            "status": status,
            "reason": reason,
            "value": found,
            "predicted": predicted,
            "memory_bytes": case["limit"] or self.device_bytes,
            "trials": trials,
        }
        self.session.store.append([line])
        progress.rows[status] = progress.rows.get(status, 0) + 1
        progress.result = f"{place(found)}" if found else str(reason or "nothing fits")

    def _try(self, point: Point, variant: Variant, value: int) -> Mapping[str, Any]:
        context, batch = self._place(point, value)
        trial = replace(point, case={**point.case, "context": context, "batch": batch})
        spec = trial.spec(variant.at(context, batch))
        with self.session.pool() as pool:
            return self.session.ask(pool, variant.name, "prepare", arm=spec.to_dict())


KEPT = ("status", "reason", "peak_memory_bytes", "predicted_memory_bytes")
"""What is kept of a trial."""


class _Impossible(Exception):
    """A trial ended in another way than by fitting or by too little memory."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(answer.get("reason"))
        self.answer = answer
