"""Figures of made-up suites: what is drawn, and that texts have room."""

import doctest
import itertools

import numpy as np
import pytest
from made_up import LOST, RATE, RATES, TOKENS, suite

from tnbench.report import drawing, plots, tuning_plot
from tnbench.report.results import Choice
from tnbench.statistics import mean_interval


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_figure_shows_what_its_table_says():
    results = suite(lost=LOST)
    figure, table = plots.curves(results)
    final = table[(table["panel"] == "final") & (table["kind"] == "mean")].set_index("variant")
    interval = mean_interval(results.values("rmsnorm"), 0.05)
    assert final.loc["rmsnorm", ["value", "low", "high", "n"]].tolist() == pytest.approx(
        [interval.mean, interval.low, interval.high, 3]
    )
    means = table[(table["panel"] == "curves") & (table["kind"] == "mean")]
    last = means[means["tokens"] == TOKENS[-1]]
    ends = results.curves[results.curves["tokens"] == TOKENS[-1]].groupby("variant")["value"].mean()
    mean = last.set_index("variant")["value"]
    assert mean["no-decay"] == pytest.approx(ends["no-decay"])
    diverged = table[(table["variant"] == "no-gate") & (table["outcome"] == "diverged")]
    assert diverged["tokens"].max() == TOKENS[5]  # nothing beyond the last finite value

    curves, dots = figure.axes
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in curves.lines]
    drawn = means[means["variant"] == "softmax"]
    assert any(len(line) == 20 and np.allclose(line, drawn["value"].astype(float)) for line in lines)
    points = [np.asarray(line.get_xdata())[0] for line in dots.lines if line.get_marker() == "o"]
    assert points == pytest.approx(final["value"].tolist())


def test_every_seed_is_a_dot():
    results = suite(seeds=range(7), lost={("softmax", 2): "diverged"})
    figure, _ = plots.curves(results)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "."]
    drawn = [sorted(np.asarray(line.get_xdata(), dtype=float)) for line in dots]
    assert drawn == [sorted(results.values(variant)) for variant in results.variants]
    assert [len(row) for row in drawn] == [7, 7, 6, 7, 7]


def test_differences_stand_with_their_verdicts():
    diffs = {
        "base": {},
        "again": {},
        "no-decay": {"model.decay": None},
        "softmax": {"model.mixer": "softmax"},
    }
    results = suite(diffs, lost={("softmax", 1): "missing"}, margin=0.05, repeats=frozenset({"again"}))
    shown = texts(plots.curves(results)[0].axes[1])
    assert "worse, but within ±0.05" in shown[shown.index("no-decay") :]
    assert any(text.startswith("+0.0") and text.endswith("]") for text in shown)
    assert "again (A/A)" in shown
    assert "softmax (2/3)" in shown
    alone = texts(plots.curves(suite(seeds=(0,)))[0].axes[1])
    assert alone.count("undecided (one pair)") == 4


def test_a_variant_keeps_its_colour_and_no_two_look_alike():
    results = suite({"base": {}, **{f"v{i}": {"a": i} for i in range(11)}}, tune=RATES)
    looks = drawing.looks(results)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 12
    for axes in plots.curves(results)[0].axes:
        assert {look["color"] for look in looks.values()} <= {line.get_color() for line in axes.lines}
    panels = tuning_plot.tuning(results)[0].axes
    for axes, look in zip(panels, looks.values(), strict=True):
        assert look["color"] in {line.get_color() for line in axes.lines}


@pytest.mark.parametrize("variants", [1, 5, 12])
@pytest.mark.parametrize("seeds", [1, 3])
def test_texts_do_not_overlap(variants, seeds):
    diffs = {f"variant-{i}": {"a": i} if i else {} for i in range(variants)}
    figure, _ = plots.curves(suite(diffs, seeds=range(seeds), margin=0.001))
    figure.canvas.draw()
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == variants
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    beside = [text.get_window_extent() for text in figure.axes[1].texts]
    assert max(box.x1 for box in boxes) <= min(box.x0 for box in beside)
    assert all(box.x1 <= figure.bbox.x1 for box in beside)
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.texts)
    right = sorted((box for box in beside if box.x0 > figure.axes[1].bbox.x1), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(right))


def test_another_metric_is_drawn():
    results = suite(metric="val_loss_nats")
    assert set(plots.drawn(results)["panel"]) == {"final"}  # the suite recorded no such curve


def test_the_tuning_figure_shows_what_its_table_says():
    results = suite(tune=RATES)
    figure, table = tuning_plot.tuning(results)
    runs, means = table[table["kind"] == "run"], table[table["kind"] == "mean"]
    assert len(runs) == len(results.tuning)
    point = runs[(runs["variant"] == "softmax") & (runs[RATE] == 0.001)]["value"]
    mean = means[(means["variant"] == "softmax") & (means[RATE] == 0.001)]["value"]
    assert mean.tolist() == pytest.approx([point.mean()])
    assert set(means[means["variant"] == "no-gate"][RATE]) == set(RATES[:3])  # one of two runs diverged
    chosen = means[means["chosen"].astype(bool)].set_index("variant")[RATE]
    assert chosen.to_dict() == {name: choice.point[RATE] for name, choice in results.choices.items()}

    for axes, variant in zip(figure.axes, results.variants, strict=True):
        assert axes.get_xscale() == "log"
        dots = next(line for line in axes.lines if line.get_marker() == ".")
        mine = runs[runs["variant"] == variant]
        assert np.array_equal(dots.get_ydata(), mine["value"].astype(float), equal_nan=True)
        ring = next(line for line in axes.lines if line.get_marker() == "o")
        assert np.asarray(ring.get_xdata()).tolist() == [chosen[variant]]
        crosses = next(line for line in axes.lines if line.get_marker() == "x")
        assert np.asarray(crosses.get_xdata()).tolist() == ([max(RATES)] if variant == "no-gate" else [])
        assert axes.get_title(loc="left").startswith(f"{variant}\nbest: ")
    assert "×: diverged" in figure.texts[-1].get_text()


def test_a_second_tuned_key_makes_further_lines():
    first, decay = suite(tune=RATES).tuning, "training.weight_decay"
    second = first.assign(run_id=first["run_id"] + "b", value=first["value"] + 0.01)
    frame = first.assign(**{decay: 0.1}).merge(second.assign(**{decay: 0.01}), how="outer")
    choice = Choice({RATE: 0.002, decay: 0.1}, 1.84, 16, "", 0.02)
    results = suite(tuning=frame, choices=dict.fromkeys(suite().variants, choice))
    figure, table = tuning_plot.tuning(results)
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    strong = [line for line in lines if line.get_alpha() == 1]
    assert (len(lines), len(strong)) == (2, 1)
    best = table[(table["kind"] == "mean") & (table["variant"] == "transnormerllm") & (table[decay] == 0.1)]
    assert np.asarray(strong[0].get_ydata()).tolist() == best["value"].tolist()
    assert figure.texts[1].get_text() == "learning rate"


def test_tuning_that_has_not_begun_is_drawn_empty():
    frame = suite(tune=RATES).tuning.assign(outcome="missing", value=np.nan)
    figure, table = tuning_plot.tuning(suite(tuning=frame))
    assert set(table["kind"]) == {"run"}
    assert figure.axes[0].get_title(loc="left") == "transnormerllm\nnot chosen yet"


@pytest.mark.parametrize("variants", [1, 4, 5, 8])
def test_panels_of_the_tuning_figure_leave_room_for_their_texts(variants):
    diffs = {f"a-rather-long-variant-{i}": {"a": i} if i else {} for i in range(variants)}
    figure, _ = tuning_plot.tuning(suite(diffs, tune=(0.00025, *RATES, 0.008)))
    figure.canvas.draw()
    ticks = []
    for axes in figure.axes:
        below = [label for label in axes.get_xticklabels() if label.get_visible() and label.get_text()]
        ticks.append([label.get_window_extent() for label in below])
    for boxes in ticks:
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    shown = [axes._left_title.get_window_extent() for axes in figure.axes]  # type: ignore[attr-defined]
    for one, other in itertools.combinations(shown + [box for boxes in ticks for box in boxes], 2):
        assert not one.overlaps(other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in shown)
    assert all(text.get_window_extent().y1 <= figure.bbox.y1 for text in figure.texts)


@pytest.mark.parametrize("module", [drawing, plots, tuning_plot])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
