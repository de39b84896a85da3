"""Tables of made-up suites: what the CSV files hold, what the cells say, in every format."""

import doctest
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from made_up import DIFFS, LOST, RATES, suite
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from rich.console import Console

from tnbench import statistics
from tnbench.errors import RequestError
from tnbench.report import captions, formats, frames, tables, terminal_table, words
from tnbench.report.results import Choice, Frame, Matching, SuiteResults
from tnbench.statistics import paired_difference

MATCHED = {
    "matched_by": "flops",
    "matching": {"no-gate": Matching({"model.channel.width": 344}, -0.00312), "softmax": Matching({}, 0.0)},
}


def texts(results: SuiteResults, head: str) -> dict[str, str]:
    """Variant → the cell under `head`."""
    grid = tables.table(results)
    place = [column.head for column in grid.columns].index(head)
    return {row[0].text: row[place].text for row in grid.rows}


def tex_cells(source):
    """The cells of every line of every tabular."""
    parts = re.findall(r"\\toprule(.*?)\\bottomrule", source, re.DOTALL)
    lines = [line for part in parts for line in part.splitlines() if " & " in line]
    return [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines]


def printed(results):
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_table(results))
    return console.export_text()


def with_differences(*rows, **fields):
    """A suite whose variants differ from the base by given amounts, seed by seed."""
    diffs = {"base": {}, **{f"v{index}": {"model.width": index} for index in range(len(rows))}}
    results = suite(diffs, seeds=range(len(rows[0])), **fields)
    base = results.values("base").to_numpy()
    for index, row in enumerate(rows):
        results.runs.loc[results.runs["variant"] == f"v{index}", "val_bits_per_byte"] = base + row
    return results


def test_summary_holds_the_paired_difference():
    results = suite(lost=LOST)
    table = frames.summary(results).set_index("variant")
    base, other = results.values("transnormerllm"), results.values("no-decay")
    expected = paired_difference(other, base, 0.05)
    row = table.loc["no-decay"]
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )
    assert row["difference_p"] == pytest.approx(expected.p)
    assert (row["n"], row["difference_pairs"], row["planned"], row["verdict"]) == (3, 3, 3, "worse")
    assert table.loc["no-gate", ["finished", "diverged", "missing", "n"]].tolist() == [2, 1, 0, 2]
    assert table.loc["softmax", "difference_pairs"] == 2
    assert table.loc["no-decay", "speed_ratio"] == pytest.approx(16_150 / 17_050)
    assert table["peak_memory_bytes"].iloc[0] == 410 * 2**20
    assert list(table.index) == list(DIFFS)
    assert table.loc["transnormerllm", ["difference", "verdict", "trials"]].isna().all()


def test_the_whole_table_is_one_family_of_comparisons():
    results = suite(lost=LOST, margin=0.005)
    found = [one.comparison for one in results.summaries if one.comparison]
    p = [one.difference.p for one in found]
    assert [one.p_holm for one in found] == pytest.approx(statistics.holm(np.array(p)).tolist())
    table = frames.comparisons(results).set_index("variant")
    assert table.loc["no-gate", "p"] < 0.05 < table.loc["no-gate", "p_holm"]
    assert table.loc["no-gate", "verdict"] == "undecided"
    assert set(table["comparisons"]) == {4}


def test_comparisons_hold_every_number_of_a_comparison():
    results = suite(seeds=range(9), margin=0.005, lost={("no-gate", 3): "diverged"})
    table = frames.comparisons(results)
    assert list(table.columns) == list(frames.COMPARISON_COLUMNS)
    assert list(table["variant"]) == list(DIFFS)[1:]
    row = table.set_index("variant").loc["rmsnorm"]
    one = next(one.comparison for one in results.summaries if one.variant == "rmsnorm")
    assert one is not None
    assert one.bca is not None
    assert row[["n", "difference", "low", "high", "p", "p_holm"]].tolist() == pytest.approx(
        [9, one.difference.mean, one.difference.low, one.difference.high, one.difference.p, one.p_holm]
    )
    assert row[["equivalence_p", "detectable_difference", "sign_flip_p"]].tolist() == pytest.approx(
        [one.equivalence_p, one.detectable, one.sign_flip_p]
    )
    assert row[["bca_low", "bca_high", "bca_coverage"]].tolist() == pytest.approx(
        [one.bca.low, one.bca.high, statistics.bca_coverage(9)]
    )
    gains = ["probability_of_improvement", "correlation", "pairing_gain"]
    assert row[gains].tolist() == pytest.approx([one.improvement, one.correlation, one.pairing_gain])
    assert (row["verdict"], row["margin"], row["base"]) == ("equivalent", 0.005, "transnormerllm")
    assert table.set_index("variant").loc["no-gate", ["n", "diverged", "planned"]].tolist() == [8, 1, 9]


def test_comparisons_of_one_variant_have_their_columns():
    table = frames.comparisons(suite({"base": {}}))
    assert list(table.columns) == list(frames.COMPARISON_COLUMNS)
    assert table.empty


def test_only_seeds_that_both_finished_are_pairs():
    results = suite(lost={("transnormerllm", 0): "failed", ("no-decay", 1): "out_of_memory"})
    row = frames.summary(results).set_index("variant").loc["no-decay"]
    assert (row["n"], row["difference_pairs"]) == (2, 1)
    values, base = results.values("no-decay"), results.values("transnormerllm")
    assert row["difference"] == pytest.approx(values[2] - base[2])
    assert pd.isna(row["difference_low"])
    assert texts(results, "verdict")["no-decay"] == "undecided (one pair)"


def test_a_finished_run_without_a_value_is_shown_and_not_averaged():
    results = suite()
    results.runs.loc[results.runs["run_id"] == "0101abcd", "val_bits_per_byte"] = math.nan
    n = texts(results, "n")
    assert n["no-decay"] == "2/3, 1 without a value"
    assert n["no-gate"] == "3/3"


def test_pairs_are_told_where_they_are_fewer_than_the_runs():
    results = suite(seeds=range(4), lost={("transnormerllm", 3): "missing"})
    differences = list(texts(results, "difference to base").values())[1:]
    assert all(text.endswith("(3 pairs)") for text in differences)
    assert "A seed that did not finish on both sides" in captions.caption(results)


def test_the_base_comes_first_and_the_others_in_the_order_of_the_suite():
    results = suite({"z": {"model.gate": False}, "base": {}, "a": {"model.gate": None}}, base="base")
    assert results.variants == list(texts(results, "variant")) == ["base", "z", "a"]


def test_runs_are_sorted_and_whole():
    lines = frames.runs(suite(lost=LOST)).to_csv(index=False).splitlines()
    assert lines[0].startswith("variant,seed,run_id,outcome,")
    keys = [line.split(",")[:2] for line in lines[1:]]
    assert len(keys) == 15
    assert keys == sorted(keys)
    assert any(line.startswith("no-gate,1,0401abcd,diverged,loss is not finite,120,") for line in lines)
    assert ",400,2048000,1.4," in lines[1]


def test_tuning_runs_are_sorted_by_point():
    results = suite(tune=RATES)
    shuffled = suite(tuning=results.tuning.sample(frac=1, random_state=0), choices=results.choices)
    table: Frame = frames.tuning(shuffled)
    assert len(table) == 5 * 4 * 2
    assert table.equals(frames.tuning(results))
    mine = table[table["variant"] == "no-gate"]
    assert mine["training.learning_rate"].tolist() == sorted(2 * RATES)
    assert mine["seed"].tolist() == [100, 101] * 4
    assert mine[mine["value"].isna()]["outcome"].tolist() == ["diverged"]


def test_verdicts_and_what_they_lack():
    noise = np.array([-0.0010, 0.0006, 0.0004, -0.0002, 0.0002])
    results = with_differences(
        0.020 + noise, -0.020 + noise, 0.002 + noise, noise, 12 * noise, 0 * noise + 0.01, margin=0.005
    )
    found = list(texts(results, "verdict").values())
    assert found[:5] == ["–", "worse", "better", "worse, but within ±0.005", "equivalent within ±0.005"]
    assert re.fullmatch(r"undecided \(needs about \d+ seeds\)", found[5])
    assert found[6] == "undecided (no spread to test against)"
    p = list(texts(results, "p (Holm)").values())
    assert (p[0], p[1], p[6]) == ("–", "< 0.001", "–")
    far = with_differences(np.array([0.3, -0.3, 0.3, -0.29999]))
    assert texts(far, "verdict")["v0"] == "undecided (needs more than 10,000 seeds)"


def test_a_p_value_is_never_rounded_across_alpha():
    assert words.p(0.0496) == "0.050"
    assert words.p(0.0504) == "0.0504"
    assert words.p(0.0104, alpha=0.01) == "0.0104"
    assert words.p_is(1e-9) == "p < 0.001"


def test_the_caption_states_the_rule():
    text = captions.caption(suite(margin=0.005, alpha=0.01))
    assert "p ≤ 0.01, Holm-corrected for 4 comparisons, else equivalent where two one-sided t-tests" in text
    assert "within ±0.005 bits per byte, else undecided" in text
    assert "Intervals are not widened for the number of comparisons." in text
    assert re.search(r"Without pairing the same precision would take [\d.]+ to [\d.]+ times the seeds", text)
    assert "Learning rate not tuned per variant." in text
    bare = captions.caption(suite())
    assert "No margin is set, so equivalence is not tested." in bare
    assert "equivalent where" not in bare
    assert "Verdict" not in captions.caption(suite({"base": {}}))


def test_outliers_are_counted_and_stay():
    results = suite(seeds=range(6))
    odd = (results.runs["variant"] == "softmax") & (results.runs["seed"] == 4)
    results.runs.loc[odd, "val_bits_per_byte"] = 2.5
    counted = {one.variant: one.outliers for one in results.summaries}
    assert counted["softmax"] == 1
    assert re.search(r"Outliers, counted and kept: .*softmax 1", captions.caption(results))
    assert results.summaries[2].metric.mean > 1.9
    assert frames.comparisons(results).set_index("variant").loc["softmax", "n"] == 6
    assert "Outliers" not in captions.caption(suite())


def test_tuning_stands_beside_each_result():
    results = suite(tune=RATES)
    assert texts(results, "learning rate")["transnormerllm"] == "0.002"
    assert texts(results, "learning rate")["rmsnorm"] == "0.004 (edge)"
    assert set(texts(results, "trials").values()) == {"8"}
    assert float(texts(results, "sensitivity")["no-gate"]) > 0.5  # one point diverged
    text = captions.caption(results)
    assert "Learning rate tuned per variant on the same grid, with seeds 100, 101" in text
    assert "(edge): the best point lies at an end" in text
    assert "not tuned" not in text
    summary = frames.summary(results).set_index("variant")
    assert summary.loc["rmsnorm", "chosen"] == "training.learning_rate = 0.004"
    assert summary.loc["rmsnorm", "edge"] == "training.learning_rate at its largest, 0.004"


def test_tuning_that_found_nothing_or_has_not_ended_is_told():
    lost = Choice({"training.learning_rate": 0.001}, math.inf, 8, "no point of the grid has finished", 0.0)
    results = suite(tune=RATES)
    failed = suite(tuning=results.tuning, choices={**results.choices, "no-gate": lost})
    assert texts(failed, "learning rate")["no-gate"] == "none finished"
    waiting = suite(tuning=results.tuning)
    assert "learning rate" not in [column.head for column in tables.table(waiting).columns]
    assert "Tuning of the learning rate has not ended." in captions.caption(waiting)
    other = results.tuning.rename(columns={"training.learning_rate": "training.weight_decay"})
    decay = {name: Choice({"training.weight_decay": 0.1}, 1.8, 8, "", 0.01) for name in results.choices}
    text = captions.caption(suite(tuning=other, choices=decay))
    assert "Learning rate not tuned per variant. Weight decay tuned per variant" in text


def test_matching_shows_its_residual_and_widths():
    results = suite(**MATCHED)
    assert texts(results, "residual")["no-gate"] == "−0.31 %"
    assert texts(results, "residual")["softmax"] == "0 %"
    assert texts(results, "residual")["transnormerllm"] == "–"
    assert texts(results, "change")["no-gate"] == "model.gate = false; matched: model.channel.width = 344"
    assert "matched by FLOPs per token" in captions.caption(results)
    assert "residual (of FLOPs per token)" in formats.markdown(results)
    assert frames.summary(results).set_index("variant").loc["no-gate", "matching_residual"] == -0.00312


def test_a_repeat_is_named_as_such():
    diffs = {"base": {}, "again": {}, "once-more": {"model.gate": False}}
    results = suite(diffs, repeats=frozenset({"again", "once-more"}))
    change = texts(results, "change")
    assert change == {
        "base": "base",
        "again": "A/A: the base again",
        "once-more": "model.gate = false, once more (A/A)",
    }
    assert "A/A: again, once-more differ in nothing but the initialisation seeds." in captions.caption(
        results
    )
    assert "(A/A)" in printed(results)
    assert frames.comparisons(results)["repeat"].tolist() == [True, True]


def test_markdown_has_a_cell_for_every_column():
    source = formats.markdown(suite(lost=LOST))
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in source.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {10}
    assert [cell.strip() for cell in rows[3][:3]] == ["no-decay", "model.decay = none", "3/3"]
    assert rows[5][4].strip() == r"+0.0022 \[−0.0028, +0.0071\]"
    assert rows[6][2].strip() == "2/3, 1 diverged"
    assert [cell.strip() for cell in rows[3][5:8]] == ["worse", "0.0014", "109k"]
    assert "95 % t interval" in source
    assert "Holds only for: one corpus, one size." in source


@pytest.mark.parametrize("fields", [{}, {"tune": RATES, "margin": 0.005, **MATCHED}])
def test_latex_is_two_booktabs_tables_in_one_float(fields):
    source = formats.latex(suite(lost=LOST, **fields))
    rules = ("toprule", "bottomrule", "begin{tabular}", "end{tabular}")
    assert all(source.count(f"\\{rule}") == 2 for rule in rules)
    assert source.count(r"\begin{table*}") == source.count(r"\end{table*}") == 1
    rows = tex_cells(source)
    assert len(rows) == 2 * (2 + 5)
    upper, lower = rows[:7], rows[7:]
    assert {len(row) for row in upper} == {7}
    assert {len(row) for row in lower} == {8 if fields else 4}
    assert upper[3][3] == r"1.8551 $\pm$ 0.0055"
    assert upper[5][4] == r"+0.0022 {[}$-$0.0028, +0.0071{]}"
    assert [row[0] for row in upper] == [row[0] for row in lower]
    assert "95~\\% t interval" in source
    assert r"p $\leq$ 0.05" in source
    for layout, row in zip(
        re.findall(r"\\begin\{tabular\}\{(.*)\}", source), (upper[0], lower[0]), strict=True
    ):
        assert len(re.findall(r"[lr]|p\{0\.\d+\\linewidth\}", layout)) == len(row)


def test_latex_columns_fit_the_line():
    """Widths in Computer Modern at 8 points; a page of two columns is 504 points wide."""
    font = FontProperties(family="cmr10", size=8)

    def points(text):
        shown = re.sub("[−±×↓–]", "+", text)  # not in the font, and as wide
        return text_to_path.get_text_width_height_descent(shown, font, ismath=False)[0]

    results = suite(lost=LOST, tune=RATES, margin=0.005, **MATCHED)
    layouts = re.findall(r"\\begin\{tabular\}\{(.*)\}", formats.latex(results))
    for layout, grid in zip(layouts, (tables.quality(results), tables.costs(results)), strict=True):
        columns = re.findall(r"[lr]|p\{[^}]*\}", layout)
        total = 6.0 * len(columns)
        for place, column in enumerate(columns):
            share = re.search(r"0\.\d+", column)
            texts = [grid.columns[place].head, f"({grid.columns[place].unit})"]
            texts += [row[place].text for row in grid.rows]
            total += 504 * float(share[0]) if share else max(map(points, texts))
        assert total < 504


def test_brackets_at_a_row_start_are_not_arguments_of_the_line_break():
    rows = tex_cells(formats.latex(suite({"[1cm]": {}, "*x": {"a": 2}})))
    assert [row[0] for row in rows[-2:]] == ["{[}1cm{]}", "{*}x"]


def test_the_terminal_table_fits_80_columns():
    text = printed(suite({"base": {}, "[bold]x": {"a": 1}, "no-decay": {"a": 2}}))
    assert "[bold]x" in text
    assert "…" not in text
    assert re.search(r"no-decay +3/3 +1\.8\d+", text)
    assert "[+0.0" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_the_terminal_table_keeps_its_numbers_whole(seeds):
    results = suite(seeds=range(seeds), lost={("no-gate", 0): "out_of_memory"}, tune=RATES, margin=0.005)
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    words_of = set(text.split())
    assert {"transnormerllm", "trials", "tokens/s,", f"{seeds}/{seeds}"} <= words_of
    assert "p = –" not in text
    for one in results.summaries:
        if one.difference and one.difference.exists:
            assert f"[{words.ends(one.difference)[1:].split()[0]}" in text


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(RequestError, match="did you mean val_bits_per_byte"):
        suite(metric="val_bit_per_byte")
    with pytest.raises(RequestError, match="between 0 and 1"):
        suite(alpha=5)


def test_another_metric_is_named():
    grid = tables.quality(suite(metric="val_loss_nats"))
    assert grid.columns[3].title == "validation loss ↓ (nats per token)"


@pytest.mark.parametrize("module", [words])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
