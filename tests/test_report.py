"""Reports of made-up suites: what is drawn, what the cells say, what the page holds."""

import doctest
import io
import itertools
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tnbench.errors import RequestError
from tnbench.report import html, plots, tables, terminal_table, words, write_reports
from tnbench.report.results import CURVE_COLUMNS, RUN_COLUMNS, SuiteResults
from tnbench.statistics import mean_interval, paired_difference

TOKENS = np.arange(1, 21) * 102_400
FACTS = {
    "corpus": "synthetic numbers (no training)",
    "context": "256 tokens",
    "tokens per run": "2.05M",
    "device": "cpu, 1 thread",
    "command": "tnbench ablate quickstart --results 'results & more'",
}
DIFFS = {
    "transnormerllm": {},
    "no-decay": {"model.decay": None},
    "softmax": {"model.mixer.name": "softmax", "model.position.name": "rope"},
    "rmsnorm": {"model.norm": "rmsnorm"},
    "no-gate": {"model.gate": False},
}
SHIFTS = {"no-decay": 0.034, "softmax": -0.012, "rmsnorm": 0.0004, "no-gate": 0.019}


def made_up(diffs=None, seeds=(0, 1, 2), lost=None, **fields) -> SuiteResults:
    """A suite of synthetic numbers; `lost` gives (variant, seed) an outcome other than finished."""
    diffs = DIFFS if diffs is None else diffs
    lost = lost or {}
    runs, curves = [], []
    for index, variant in enumerate(diffs):
        shift = SHIFTS.get(variant, 0.008 * index)
        for seed in seeds:
            noise = np.random.default_rng([index, seed])
            shared = 0.006 * np.random.default_rng(seed).normal()
            final = 1.82 + shift + shared + 0.002 * noise.normal()
            path = (
                final
                + 0.9 * ((TOKENS / TOKENS[0]) ** -0.7 - 20**-0.7)
                + 0.002 * noise.normal(size=len(TOKENS))
            )
            outcome = lost.get((variant, seed), "finished")
            finished = outcome == "finished"
            run_id = f"{index:02d}{seed:02d}abcd" if outcome != "missing" else None
            run = dict.fromkeys(RUN_COLUMNS, np.nan)
            run |= {"variant": variant, "seed": seed, "run_id": run_id, "outcome": outcome, "host": "made-up"}
            run |= {"parameters": 204_800 + 512 * index, "non_embedding_parameters": 108_032 + 512 * index}
            run |= {
                "flops_per_token": 4.1e5,
                "state_size": 8192,
                "attempts": 1,
                "started": "2024-01-01T00:00:00Z",
            }
            if finished:
                run |= {"val_bits_per_byte": final, "val_loss_nats": final * 0.69, "train_seconds": 120.5}
                run |= {"steps": 400, "tokens": TOKENS[-1], "epochs": 1.4}
                run |= {"tokens_per_second": 17_000 - 900 * index + 50 * seed}
                run |= {"peak_memory_bytes": (410 + 9 * index) * 2**20}
            if outcome == "diverged":
                run |= {"reason": "loss is not finite", "stopped_step": 120}
            runs.append(run)
            if outcome in ("missing", "out_of_memory", "failed"):
                continue
            if outcome == "diverged":
                path = np.where(
                    np.arange(20) < 6, path + 0.02 * np.exp(np.arange(20.0).clip(max=6)) / 20, np.nan
                )
            curves += [
                (
                    variant,
                    seed,
                    run_id,
                    "val_bits_per_byte",
                    "tune",
                    "bits per byte",
                    20 * step,
                    tokens,
                    value,
                )
                for step, (tokens, value) in enumerate(zip(TOKENS, path, strict=True), start=1)
            ]
    given = {"facts": FACTS, "title": "Parts of TransNormerLLM", "fixed": "one corpus, one size", **fields}
    return SuiteResults(
        name="quickstart",
        base=given.pop("base", next(iter(diffs))),
        diffs=diffs,
        runs=pd.DataFrame(runs, columns=list(RUN_COLUMNS)),
        curves=pd.DataFrame(curves, columns=list(CURVE_COLUMNS)),
        **given,
    )


LOST = {("no-gate", 1): "diverged", ("softmax", 2): "missing"}
NASTY = r"a_b & <b>50%</b> | $x^2$ \ {c} ~ #1 `q` *"


class Page(HTMLParser):
    """Texts by tag, table rows, and anything that would need a network."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.outside: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        links = [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.outside += [link for link in links if not link.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def page_of(results: SuiteResults) -> Page:
    return Page(html.page(results, plots.curves(results)[0]))


def tex_cells(source: str) -> list[list[str]]:
    body = source[source.index(r"\toprule") : source.index(r"\bottomrule")]
    return [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body.splitlines() if " & " in line]


def test_summary_holds_the_paired_difference():
    results = made_up(lost=LOST)
    table = tables.summary(results).set_index("variant")
    base, other = results.values("transnormerllm"), results.values("no-decay")
    expected = paired_difference(other, base, 0.05)
    row = table.loc["no-decay"]
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )
    assert row["difference_p"] == pytest.approx(expected.p)
    assert (row["n"], row["difference_pairs"], row["planned"]) == (3, 3, 3)
    assert table.loc["no-gate", ["finished", "diverged", "missing", "n"]].tolist() == [2, 1, 0, 2]
    assert table.loc["softmax", "difference_pairs"] == 2
    assert table.loc["no-decay", "speed_ratio"] == pytest.approx(16_150 / 17_050)
    assert table["peak_memory_bytes"].iloc[0] == 410 * 2**20
    assert list(table.index) == list(DIFFS)
    assert pd.isna(table.loc["transnormerllm", "difference"])


def test_only_seeds_that_both_finished_are_pairs():
    results = made_up(lost={("transnormerllm", 0): "failed", ("no-decay", 1): "out_of_memory"})
    row = tables.summary(results).set_index("variant").loc["no-decay"]
    assert (row["n"], row["difference_pairs"]) == (2, 1)
    values, base = results.values("no-decay"), results.values("transnormerllm")
    assert row["difference"] == pytest.approx(values[2] - base[2])
    assert pd.isna(row["difference_low"])


def test_a_finished_run_without_a_value_is_shown_and_not_averaged():
    results = made_up()
    results.runs.loc[results.runs["run_id"] == "0101abcd", "val_bits_per_byte"] = math.nan
    cells = {row[0].text: [cell.text for cell in row] for row in tables.cells(results)}
    assert cells["no-decay"][3] == "2/3, 1 without a value"
    assert cells["no-gate"][3] == "3/3"


def test_pairs_are_told_where_they_are_fewer_than_the_runs():
    results = made_up(seeds=range(4), lost={("transnormerllm", 3): "missing"})
    texts = [row[5].text for row in tables.cells(results)][1:]
    assert all(text.endswith("(3 pairs)") for text in texts)


def test_the_base_comes_first_and_the_others_in_the_order_of_the_suite():
    results = made_up(diffs={"z": {"model.gate": False}, "base": {}, "a": {"model.gate": None}}, base="base")
    assert results.variants == [row[0].text for row in tables.cells(results)] == ["base", "z", "a"]


def test_runs_are_sorted_and_whole():
    lines = tables.runs(made_up(lost=LOST)).to_csv(index=False).splitlines()
    assert lines[0].startswith("variant,seed,run_id,outcome,")
    keys = [line.split(",")[:2] for line in lines[1:]]
    assert len(keys) == 15
    assert keys == sorted(keys)
    assert any(line.startswith("no-gate,1,0401abcd,diverged,loss is not finite,120,") for line in lines)
    assert ",400,2048000,1.4," in lines[1]


def test_markdown_has_a_cell_for_every_column():
    source = tables.markdown(made_up(lost=LOST))
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in source.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {8}
    assert [cell.strip() for cell in rows[3][:4]] == ["no-decay", "model.decay = none", "109k", "3/3"]
    assert rows[5][5].strip() == r"+0.0022 \[−0.0028, +0.0071\]"
    assert rows[6][3].strip() == "2/3, 1 diverged"
    assert "95 % t interval" in source
    assert "Holds only for: one corpus, one size." in source


def test_latex_is_a_booktabs_table():
    source = tables.latex(made_up(lost=LOST))
    rules = ("toprule", "bottomrule", "begin{table*}", "end{table*}", "begin{tabular}", "end{tabular}")
    assert all(source.count(f"\\{rule}") == 1 for rule in rules)
    rows = tex_cells(source)
    assert len(rows) == 2 + 5
    assert rows[3][4] == r"1.8551 $\pm$ 0.0055"
    assert rows[5][5] == r"+0.0022 {[}$-$0.0028, +0.0071{]}"
    assert "95~\\% t interval" in source


def test_special_characters_survive_every_format(tmp_path):
    results = made_up(
        diffs={"base": {}, NASTY: {"model.x": "<script>alert(1)</script>"}},
        title="Loss & <i>costs</i> of 100 %",
        notes=["<img src=x>"],
    )
    write_reports(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert NASTY in [row[0] for row in page.rows]
    assert page.texts["title"] == ["Loss & <i>costs</i> of 100 %"]
    assert "<img src=x>" in "".join(page.texts["li"])
    assert len(page.texts["script"]) == 1
    assert NASTY in pd.read_csv(tmp_path / "summary.csv")["variant"].tolist()
    rows = tex_cells((tmp_path / "table.tex").read_text())
    assert {len(row) for row in rows} == {8}
    assert rows[-1][0] == (
        r"a\_b \& \textless{}b\textgreater{}50\%\textless{}/b\textgreater{} \textbar{} "
        r"\$x\textasciicircum{}2\$ \textbackslash{} \{c\} \textasciitilde{} \#1 `q` {*}"
    )
    markdown = (tmp_path / "table.md").read_text()
    assert {len(re.split(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line[:1] == "|"} == {10}


def test_brackets_at_a_row_start_are_not_arguments_of_the_line_break():
    rows = tex_cells(tables.latex(made_up(diffs={"[1cm]": {}, "*x": {"a": 2}})))
    assert [row[0] for row in rows[-2:]] == ["{[}1cm{]}", "{*}x"]


def test_the_figure_shows_what_its_table_says():
    results = made_up(lost=LOST)
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
    texts = [text.get_text() for text in dots.texts]
    assert "+0.0340 [+0.0313, +0.0367]" in texts
    assert "softmax (2/3)" in texts


def test_a_variant_keeps_its_colour_and_no_two_look_alike():
    results = made_up(diffs={"base": {}, **{f"v{i}": {"a": i} for i in range(11)}})
    figure, _ = plots.curves(results)
    looks = plots.looks(results)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 12
    for axes in figure.axes:
        assert {look["color"] for look in looks.values()} <= {line.get_color() for line in axes.lines}


@pytest.mark.parametrize("variants", [1, 5, 12])
def test_labels_at_line_ends_do_not_overlap(variants):
    results = made_up(diffs={f"variant-{i}": {"a": i} if i else {} for i in range(variants)})
    figure, _ = plots.curves(results)
    figure.canvas.draw()
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == variants
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    beside = [text.get_window_extent() for text in figure.axes[1].texts]
    assert max(box.x1 for box in boxes) <= min(box.x0 for box in beside)
    assert all(box.x1 <= figure.bbox.x1 for box in beside)


def test_the_page_stands_alone_and_says_what_the_table_says():
    results = made_up(lost=LOST, notes=["runs/0001abcd/metrics.jsonl: line 7 is broken and was ignored"])
    page = page_of(results)
    assert page.outside == page.open == []
    assert all([cell.text for cell in cells] in page.rows for cells in tables.cells(results))
    assert sum(row[2].endswith("abcd") for row in page.rows if len(row) == 10) == 14
    said = "".join(page.texts["li"])
    assert "Higher than the base by 0.0340 bits per byte, 95 % interval 0.0313 to 0.0367, 3 pairs" in said
    assert "No difference visible beyond the noise: +0.0022 bits per byte" in said
    assert "Of 3 runs: 1 diverged." in said
    assert "line 7 is broken" in said
    assert FACTS["command"] in page.texts["code"]
    assert any("diverged at step 120: loss is not finite" in row for row in page.rows)


def test_verdicts_follow_the_interval():
    results = made_up(diffs={"base": {}, "lower": {"a": 1}, "same": {"a": 2}})
    base = results.values("base").to_numpy()
    for variant, shift in (("lower", [-0.02, -0.021, -0.022]), ("same", [-0.02, 0.021, 0.001])):
        results.runs.loc[results.runs["variant"] == variant, "val_bits_per_byte"] = base + shift
    _, lower, same = (html.reading(results, one) for one in results.summaries)
    assert lower.startswith("Lower than the base by 0.0210 bits per byte, 95 % interval 0.0185 to 0.0235")
    assert same.startswith("No difference visible beyond the noise: +0.001 bits per byte")


CASES = {
    "nothing finished": made_up(lost={(v, s): "out_of_memory" for v in DIFFS for s in range(3)}),
    "one seed": made_up(seeds=(0,)),
    "a variant diverged": made_up(lost={("no-gate", s): "diverged" for s in range(3)}),
    "the base diverged": made_up(lost={("transnormerllm", s): "diverged" for s in range(3)}),
    "one variant": made_up(diffs={"base": {}}),
    "twelve variants": made_up(diffs={"base": {}, **{f"variant-number-{i}": {"a": i} for i in range(11)}}),
    "long name": made_up(diffs={"base": {}, "a-very-long-name-" * 4: {"model.mixer": ["gla", None]}}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_every_suite_gets_its_reports(case, tmp_path):
    paths = write_reports(CASES[case], tmp_path)
    names = ["runs.csv", "summary.csv", "table.md", "table.tex", "curves.png", "curves.pdf", "report.html"]
    assert [path.name for path in paths] == names
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert paths[4].read_bytes().startswith(b"\x89PNG")
    assert paths[5].read_bytes().startswith(b"%PDF")
    page = Page(paths[6].read_text())
    printed = paths[2].read_text() + "".join(page.texts["li"])
    assert not re.search(r"\b(nan|inf|None|<NA>)\b", printed)


def test_without_intervals_it_is_said():
    results = CASES["one seed"]
    row = [cell.text for cell in tables.cells(results)[1]]
    assert row[3:6] == ["1/1", "1.855 (n = 1: no interval)", "+0.034 (1 pair: no interval)"]
    assert "no interval, so it cannot be told from the noise" in "".join(page_of(results).texts["li"])
    failed = page_of(CASES["the base diverged"]).texts["li"]
    assert "No finished run, so no number. Of 3 runs: 3 diverged." in "".join(failed)
    assert "No seed has finished both here and in the base" in "".join(failed)


def test_the_same_results_give_the_same_bytes(tmp_path):
    first = write_reports(made_up(lost=LOST), tmp_path / "first")
    second = write_reports(made_up(lost=LOST), tmp_path / "second")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_terminal_table_fits_80_columns():
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_table(made_up(diffs={"base": {}, "[bold]x": {"a": 1}, "no-decay": {"a": 2}})))
    text = console.export_text()
    assert "[bold]x" in text
    assert "…" not in text
    assert re.search(r"no-decay +3/3 +1\.8\d+", text)
    assert "[+0.0" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(RequestError, match="did you mean val_bits_per_byte"):
        made_up(metric="val_bit_per_byte")
    with pytest.raises(RequestError, match="between 0 and 1"):
        made_up(alpha=5)


def test_another_metric_is_drawn_and_named():
    results = made_up(metric="val_loss_nats")
    assert set(plots.drawn(results)["panel"]) == {"final"}  # the suite recorded no such curve
    assert tables.columns(results)[4].title == "validation loss ↓ (nats per token)"


@pytest.mark.parametrize("module", [plots, words])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
