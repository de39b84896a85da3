"""The search for hyperparameters: the same trials for all, edges widened for all and flagged, sensitivity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnbench.ablation.tuning import Point, Search, search

RATE = "training.learning_rate"
GRID = {RATE: (0.001, 0.002, 0.004)}


def valley(best: float, depth: float = 2.0) -> Callable[[Point], float]:
    """A score that rises by the squared number of doublings away from its best learning rate."""
    return lambda point: depth + 0.01 * math.log2(point[RATE] / best) ** 2


def run(
    scores: Mapping[str, Callable[[Point], float | None]], widen: int = 1, ceiling: float = 8.0, grid=GRID
) -> Search:
    return search(
        list(scores),
        grid,
        widen,
        lambda name, point: scores[name](point),
        seeds=2,
        ceiling=lambda name: ceiling,
    )


def test_every_variant_takes_its_best_point_from_the_same_grid():
    found = run({"a": valley(0.002), "b": valley(0.0021, depth=3)})
    assert [point[RATE] for point in found.points] == [0.001, 0.002, 0.004]
    assert found.choices["a"].point == found.choices["b"].point == {RATE: 0.002}
    assert found.choices["a"].value == 2.0
    assert (found.choices["a"].trials, found.choices["a"].edge) == (6, "")  # 3 points x 2 seeds


def test_a_best_point_at_the_edge_widens_the_grid_for_all_alike():
    found = run({"inside": valley(0.002), "beyond": valley(0.008)}, widen=2)
    assert [point[RATE] for point in found.points] == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert found.choices["beyond"].point == {RATE: 0.008}
    assert found.choices["inside"].trials == found.choices["beyond"].trials == 10
    assert not found.choices["beyond"].edge


def test_the_grid_is_widened_as_far_as_allowed_and_the_edge_flagged():
    found = run({"a": valley(0.1), "b": valley(1e-6)}, widen=1)
    assert [point[RATE] for point in found.points] == [0.0005, 0.001, 0.002, 0.004, 0.008]
    assert found.choices["a"].edge == f"{RATE} at its largest, 0.008"
    assert found.choices["b"].edge == f"{RATE} at its smallest, 0.0005"
    assert len(run({"a": valley(0.1)}, widen=0).points) == 3


def test_nothing_is_chosen_before_every_score_is_there():
    missing = {RATE: 0.004}
    found = run({"a": valley(0.002), "b": lambda point: None if point == missing else 2.0})
    assert not found.choices
    assert len(found.points) == 3


def test_widening_needs_the_scores_of_the_new_points_first():
    """The search is resumed from records: what was scored before leads to the same next points."""
    known = {0.001: 2.3, 0.002: 2.2, 0.004: 2.1}
    found = run({"a": lambda point: known.get(point[RATE])})
    assert not found.choices
    assert [point[RATE] for point in found.points] == [0.001, 0.002, 0.004, 0.008]
    known[0.008] = 2.15
    assert run({"a": lambda point: known.get(point[RATE])}).choices["a"].point == {RATE: 0.004}


def test_a_diverged_point_is_never_chosen_and_counts_as_a_uniform_prediction():
    scores = {0.001: 2.0, 0.002: 2.1, 0.004: math.inf, 0.0005: 2.3}
    choice = run({"a": lambda point: scores[point[RATE]]}, ceiling=8.0).choices["a"]
    assert choice.point == {RATE: 0.001}
    assert choice.sensitivity == pytest.approx((0 + 0.1 + 6.0 + 0.3) / 4)
    worse = {0.001: 2.0, 0.002: 2.1, 0.004: 9.0, 0.0005: 2.3}
    again = run({"a": lambda point: worse[point[RATE]]}, ceiling=8.0).choices["a"]
    assert again.sensitivity == choice.sensitivity


def test_where_everything_diverges_the_search_goes_down_and_says_so():
    choice = run({"a": lambda point: math.inf}).choices["a"]
    assert choice.point == {RATE: 0.0005}
    assert choice.edge == "no point of the grid has finished"
    assert choice.sensitivity == 0


def test_two_keys_are_searched_together_and_widened_apart():
    grid = {RATE: (0.001, 0.002, 0.004), "training.weight_decay": (0.1, 0.2)}

    def score(point: Point) -> float:
        return valley(0.002)(point) + abs(point["training.weight_decay"] - 0.4)

    found = run({"a": score}, widen=2, grid=grid)
    assert found.choices["a"].point == {RATE: 0.002, "training.weight_decay": 0.4}
    assert sorted({point["training.weight_decay"] for point in found.points}) == [0.1, 0.2, 0.4, 0.8]
    assert sorted({point[RATE] for point in found.points}) == [0.001, 0.002, 0.004]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=5),
    st.integers(0, 3),
    st.lists(st.floats(1e-4, 0.1), min_size=2, max_size=4, unique_by=lambda x: round(math.log(x), 2)),
)
def test_whatever_the_valleys_trials_are_equal_and_choices_best(bests, widen, grid):
    scores = {f"v{index}": valley(best) for index, best in enumerate(bests)}
    found = run(scores, widen, grid={RATE: tuple(sorted(grid))})
    assert len({choice.trials for choice in found.choices.values()}) == 1
    assert len(grid) <= len(found.points) <= len(grid) + 2 * widen
    for name, choice in found.choices.items():
        assert choice.value == min(scores[name](point) for point in found.points)
        assert choice.sensitivity >= 0
        rates = [point[RATE] for point in found.points]
        assert bool(choice.edge) == (choice.point[RATE] in (min(rates), max(rates)))
