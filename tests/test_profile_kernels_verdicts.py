"""`tnbench profile-kernels`: speed-ups, verdicts and break-even lengths, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tnbench.profiling.kernels.breakeven import break_even
from tnbench.profiling.kernels.verdicts import compare, fastest
from tnbench.profiling.samples import summary
from tnbench.profiling.speedups import speedup


def test_speedup_by_hand() -> None:
    """log2 of the ratios is 1, 1, 2: mean 4/3, standard error 1/3, t(0.975, 2) = 4.3027."""
    found = speedup([1.0, 1.0, 1.0], [2.0, 2.0, 4.0])
    assert found.ratio == pytest.approx(2 ** (4 / 3))
    assert found.low == pytest.approx(2 ** (4 / 3 - 4.302653 / 3), rel=1e-5)
    assert found.high == pytest.approx(2 ** (4 / 3 + 4.302653 / 3), rel=1e-5)
    assert found.verdict == "undecided"
    assert speedup([1.0, 1.1, 0.9], [0.5, 0.51, 0.49]).verdict == "slower"
    assert speedup([1.0], [9.0]).verdict == "undecided"
    assert speedup([1.0, 1.0], [1.0, 1.0]).verdict == "undecided"


def test_pairs_are_compared_by_graph_times_only_where_both_have_them() -> None:
    def row(eager: float, graph: float | None, **more: str) -> dict[str, Any]:
        times = {"median": eager, "rounds": [eager, eager]}
        graphed = graph and {"median": graph, "rounds": [graph, graph]}
        return {"status": "ok", "eager": times, "graph": graphed, **more}

    assert compare(row(4, 1), row(8, 3)).ratio == pytest.approx(3)
    assert compare(row(4, 1), row(8, None)).ratio == pytest.approx(2)
    one = row(4, 1, source="peer", implementation="one")
    two = row(2, None, source="peer", implementation="two")
    assert fastest([one, two, {**two, "status": "wrong", "source": "torch"}], ("peer", "torch")) is one
    assert fastest([one, two], ("peer",), but="one") is two
    assert fastest([one], ("softmax",)) is None


def test_break_even_by_hand() -> None:
    """Times 100 and 25 n^2 / 1000^2 cross at 2,000; straight lines in log-log hit that exactly."""
    softmax = {length: 25 * (length / 1000) ** 2 for length in (1000, 1500, 3000, 4000)}
    own = dict.fromkeys(softmax, 100.0)
    assert break_even(own, softmax).length == pytest.approx(2000)
    assert break_even(own, {1000: 1.0}).shown == "above 1,000"
    assert break_even({1000: 0.5}, {1000: 1.0, 2000: 1.0}).shown == "below 1,000"
    assert break_even({1000: 1.0}, {2000: 1.0}).shown == "no length where both ran"
    # ahead, behind, ahead: it counts from where it stays ahead
    assert break_even({1: 1.0, 2: 4.0, 8: 1.0}, {1: 2.0, 2: 2.0, 8: 2.0}).length == pytest.approx(4)
    assert math.isnan(break_even({}, {}).length)


def test_summary_of_calls() -> None:
    found = summary([[1.0, 3.0], [2.0, 4.0, 5.0]])
    assert found == {"median": 3.0, "p10": 1.4, "p90": 4.6, "calls": 5, "rounds": [2.0, 4.0]}
