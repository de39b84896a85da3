"""The paper's figures: every module from the committed records and from none, their files, the command."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import figure_records
import pandas as pd
import pytest
import yaml

from tnbench import cli
from tnbench.paper_figures import registry
from tnbench.paper_figures.shared import checking, outputs, published, spans
from tnbench.paper_figures.shared.page import page
from tnbench.paper_figures.shared.printing import latex, plain, relative
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import COLUMNS, Built, frame
from tnbench.paper_figures.shared.verdicts import Verdict
from tnbench.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
NAMES = list(registry.MODULES)


@pytest.fixture(scope="module")
def committed() -> dict[str, Built]:
    """Every figure from the committed records."""
    return {name: registry.module(name).build(Records(REFERENCE)) for name in NAMES}


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Every figure from an empty folder."""
    empty = Records(tmp_path_factory.mktemp("empty"))
    return {name: registry.module(name).build(empty) for name in NAMES}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["figures", *arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_from_no_records(name: str, nothing: dict[str, Built]):
    """Only the paper's numbers, and every claim not measured yet, with what would measure it."""
    built, about = nothing[name], registry.module(name).ABOUT
    assert about.name == name
    assert built.findings
    if about.measure.arithmetic:
        assert built.measured
        return
    assert {finding.verdict for finding in built.findings} == {Verdict.missing}
    assert not built.measured
    assert not built.runs
    for finding in built.findings:
        assert finding.command in about.measure.command
        assert finding.command or finding.because


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_from_the_committed_records(name: str, committed: dict[str, Built]):
    built = committed[name]
    table = frame(built.rows)
    assert list(table) == list(COLUMNS)
    ours = table[table["source"] == "ours"]
    assert (ours["runs"] != "").all()
    assert (ours["where"].map(lambda where: (REFERENCE / where).is_dir())).all()
    for row in table[table["source"] != "ours"].to_dict("records"):
        source = row["source"].removeprefix("paper ")
        assert source in published.sources(), row
        assert row["unit"], row
        assert row["where"], row
    measured = [finding for finding in built.findings if finding.verdict != Verdict.missing]
    assert bool(measured) == built.measured
    for finding in measured:
        assert finding.because
        assert set(finding.runs) <= set(built.runs)


def test_the_committed_figures_and_pages_are_what_the_records_give(committed: dict[str, Built]):
    """But for staleness, which `tnbench figures --check` tells: the code may change before records do."""
    for name, built in committed.items():
        for ending, text in outputs.texts(registry.module(name).ABOUT, built).items():
            path = REFERENCE / "figures" / f"{name}.{ending}"
            assert path.read_text() == text, f"run tnbench figures: {path}"
    for path in checking.pages(REFERENCE):
        text = path.read_text()
        assert not spans.differences(text, REFERENCE), f"run tnbench figures: {path}"
        assert not spans.outside(text), path


def test_claims_and_variants_are_those_of_the_suites():
    """A claim that names a variant its suite does not have would never be measured."""
    suites = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "ablations").glob("*.yaml")}
    for name in NAMES:
        module = registry.module(name)
        suite = module.ABOUT.measure.suite
        if not suite or not hasattr(module, "NAMES"):
            continue
        variants = suites[suite]["variants"]
        assert {claim.variant for claim in module.CLAIMS} <= set(module.NAMES) <= set(variants)
        if module.ABOUT.table:
            rows = published.ablation(module.ABOUT.table)["rows"]
            assert {claim.row for claim in module.CLAIMS if claim.row} <= set(rows)


def test_commands_of_figures_are_commands(capsys: pytest.CaptureFixture[str]):
    """What a figure says would measure it is understood: options and values, down to a plan."""
    from tnbench.profiling.kernels import planning as kernels
    from tnbench.profiling.models import planning as models

    for name in NAMES:
        measure = registry.module(name).ABOUT.measure
        if measure.kernels:
            kernels.operators(measure.kernels)
            others = ("implementation", "energy")
            axes = {key.replace("-", "_"): value for key, value in measure.axes.items() if key not in others}
            axes["shape"] = [axes["shape"]] if "shape" in axes else None
            assert kernels.axes(**axes)
        if measure.models:
            axes = dict(measure.axes)
            wanted = dict.fromkeys(("context", "batch", "vocabulary", "precision", "suite"))
            wanted |= {key: axes[key] for key in ("mode", "size", "context") if key in axes}
            assert models.wanted(**wanted, presets=axes["preset"], variants=[], settings={})


@pytest.mark.parametrize(
    ("name", "row", "version", "loss"),
    [
        ("transformer", "Transformer, 1B", "v2", 2.061),
        ("positional-encoding", "LRPE-d", "v1", 2.247),
        ("positional-encoding", "LRPE-d", "v2", 2.236),
        ("feature-map", "1+elu", "v2", 2.252),
        ("gating", "without gate", "v2", 2.263),
    ],
)
def test_published_losses(name, row, version, loss):
    assert published.loss(published.ablation(name)["rows"][row], version) == loss


def test_published_perplexities_fit_their_losses_but_for_the_one_that_is_noted():
    """Losses are in bits: the perplexity is about 1.004 · 2^loss."""
    odd = []
    for name, table in yaml.safe_load((published.FOLDER / "ablations.yaml").read_text()).items():
        for row, values in table["rows"].items():
            for version in published.VERSIONS:
                if version in values:
                    loss, perplexity = values[version]
                    odd += [] if abs(perplexity / 2**loss / 1.004 - 1) < 0.004 else [(name, row)]
    assert set(odd) == {("transformer", "Transformer, 1B")}
    assert "one-billion-perplexity" in published.ablation("transformer")["inconsistent"]


def test_every_inconsistency_is_known_and_shown():
    known = yaml.safe_load((published.FOLDER / "inconsistencies.yaml").read_text())
    files = [
        yaml.safe_load((published.FOLDER / f"{name}.yaml").read_text())
        for name in ("ablations", "efficiency")
    ]
    named = {one for tables in files for table in tables.values() for one in table["inconsistent"]}
    named |= set(published.downstream()["inconsistent"]) | {"decay-formula"}
    assert named == set(known)


def test_rows_unchanged_from_v1_say_so(nothing: dict[str, Built]):
    rows = {(row.subject, row.source): row for row in nothing["positional-encoding"].rows}
    assert "v1" in rows["APE", "paper v2"].note
    assert not rows["LRPE-d", "paper v2"].note
    assert rows["APE", "paper v1"].difference.mean == pytest.approx(2.387 - 2.247)
    assert rows["APE", "paper v2"].difference.mean == pytest.approx(2.387 - 2.248)
    assert rows["APE", "paper v2"].relative.mean == pytest.approx(2.387 / 2.248 - 1)


def test_texts_of_a_figure_name_the_runs(committed: dict[str, Built]):
    about, built = registry.module("transnormer").ABOUT, committed["transnormer"]
    texts = outputs.texts(about, built)
    table: Any = pd.read_csv(io.StringIO(texts["csv"]), keep_default_na=False)
    named = {one for cell in table["runs"] for one in cell.split()}
    assert named == set(built.runs)
    assert len(named) == 15
    assert {f"% record {one}" for one in named} <= set(texts["tex"].splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_sound(name: str, committed: dict[str, Built]):
    text = latex(name, registry.module(name).ABOUT.title, committed[name])
    assert text.isascii(), sorted({character for character in text if not character.isascii()})
    stack = []
    for word, environment in re.findall(r"\\(begin|end)\{(\w+\*?)\}", text):
        if word == "begin":
            stack.append(environment)
        else:
            assert stack.pop() == environment
    assert not stack
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    body = [line for line in text.splitlines() if line.endswith((r" \\", r" \tabularnewline"))]
    counts = {len(re.findall(r"(?<!\\)&", line)) for line in body}
    assert len(counts) == 1
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles(committed: dict[str, Built], tmp_path: Path):
    body = "".join(
        latex(name, registry.module(name).ABOUT.title, built) + "\\clearpage\n"
        for name, built in committed.items()
    )
    packages = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,longtable}"
    (tmp_path / "all.tex").write_text(f"{packages}\\begin{{document}}\n{body}\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers_are_printed_as_they_were():
    assert plain(2.248) == "2.248"
    assert relative(Interval(0.0507, math.nan, math.nan, 1)) == "+5.1 %"
    assert relative(Interval(-0.04039, -0.1151, 0.0407, 5)) == "−4.0 % [−11.5, +4.1]"


def test_the_page_is_whole(tmp_path: Path):
    """One file: nothing is loaded, tags are closed, every figure has its section, links lead to records."""
    figure_records.suite(tmp_path, "gating", {"gate": [1.0, 1.1, 1.05], "no-gate": [1.2, 1.31, 1.24]})
    names = ("gating", "stress-test")
    built = {
        name: (registry.module(name).ABOUT, registry.module(name).build(Records(tmp_path))) for name in names
    }
    text = page(built, tmp_path, tmp_path)
    assert not re.search(r"<(script|img|link|iframe)[^>]* (src|href)=", text)
    assert "default-src 'none'" in text
    for name in names:
        assert f'<h3 id="{name}">' in text
    assert 'href="gating/runs.csv"' in text
    assert "confirmed at this scale" in text
    assert "not measured yet" in text
    assert "several GPUs" in text
    bare = re.sub(r"<(svg|style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    for tag in ("table", "tr", "td", "th", "section", "details", "ul", "li", "figure", "div"):
        assert len(re.findall(rf"<{tag}\b", bare)) == bare.count(f"</{tag}>"), tag
    elsewhere = page(built, tmp_path, tmp_path / "page")
    assert 'href="../gating/runs.csv"' in elsewhere


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gatin"], "did you mean gating?"),
        (["gating", "--records", "{tmp}/none"], "none is no folder of records"),
        (["gating", "--records", "{tmp}", "--out", "{tmp}/file"], "cannot write to"),
        (["--run"], "measures what is named"),
        (["gating", "--run", "--check"], "exclude each other"),
        (["stress-test", "--run"], "several GPUs are needed"),
        (["downstream", "--run"], "only you can say"),
    ],
)
def test_bad_requests_end_in_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert run(*(one.format(tmp=tmp_path) for one in arguments)) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(outputs, "write_atomic", full)
    assert run("stress-test", "--records", str(tmp_path)) == 2
    assert "no space left on device" in capsys.readouterr().err


def test_some_figures_alone_write_their_files_alone_and_the_same_again(tmp_path, capsys):
    figure_records.suite(tmp_path, "gating", {"gate": [1.0, 1.1], "no-gate": [1.2, None]})
    for out in ("one", "two"):
        assert run("gating", "--records", str(tmp_path), "--out", str(tmp_path / out)) == 0
    one, two = (sorted(path for path in (tmp_path / out).rglob("*.*")) for out in ("one", "two"))
    assert [path.name for path in one] == ["gating.csv", "gating.pdf", "gating.png", "gating.tex"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    told = capsys.readouterr().out
    assert "1 undecided" in told
    assert "1 of 2 runs diverged" in told


def test_damaged_records_are_told(tmp_path, capsys):
    """A broken line is ignored and told; so is a suite whose report is not written yet."""
    folder = figure_records.suite(tmp_path, "gating", {"gate": [1.0, 1.1], "no-gate": [1.2, 1.3]})
    (folder / "comparisons.csv").unlink()
    (tmp_path / "kernels" / "gpu").mkdir(parents=True)
    (tmp_path / "kernels" / "gpu" / "records.jsonl").write_text("{broken\n")
    assert run("gating", "srmsnorm", "--records", str(tmp_path)) == 0
    told = capsys.readouterr().out
    assert "note: gating has no report yet: tnbench ablate gating --report writes it" in told
    assert "note: kernels/gpu: records.jsonl: line 1 is broken and was ignored" in told
    (folder / "comparisons.csv").write_text("variant\n")
    assert run("gating", "--records", str(tmp_path)) == 2
    assert "comparisons.csv cannot be read" in capsys.readouterr().err


def test_the_list_names_all(capsys):
    assert run("--list") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in NAMES)


def test_run_says_the_plan_first_and_then_measures(tmp_path, monkeypatch):
    from tnbench.paper_figures.shared import measuring

    done = []
    monkeypatch.setattr(measuring, "_run", lambda words: done.append(words[3:]) or 0)
    assert run("gating", "--run", "--records", str(tmp_path)) == 0
    command = ["ablate", "gating"]
    assert done == [[*command, "--plan", "--results", str(tmp_path)], [*command, "--results", str(tmp_path)]]
    monkeypatch.setattr(measuring, "_run", lambda words: 130)
    assert run("gating", "--run", "--records", str(tmp_path)) == 130


@pytest.mark.slow
def test_the_whole_set_is_the_same_again(tmp_path):
    for name in ("one", "two"):
        assert run("--records", str(REFERENCE), "--out", str(tmp_path / name)) == 0
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 4 * len(NAMES) + 1
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
