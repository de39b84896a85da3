"""`tnbench profile-model`: rows, tables and plots from made-up records, and wrong requests."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from model_bench import MEASUREMENT, Bench, point

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.profiling.models import flops, planning, plots, report, rows, table, variants, worker
from tnbench.profiling.models.arms import Spec
from tnbench.profiling.models.largest import Axis, search
from tnbench.profiling.models.planning import DEFAULTS
from tnbench.report import words
from tnbench.report.drawing import save
from tnbench.resolution import resolve


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Four variants in three modes, energy counted, one of them out of memory."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    names = ["fine-1", "fine-2", "fine-4", "oom"]
    points = [point(names, context=context) for context in (1024, 2048)]
    points += [point(names, mode=mode) for mode in ("prefill", "decode")]
    bench.run(points, replace(MEASUREMENT, energy=0.1))
    bench.search([point(["fits-10"])], "context", 9000)
    return bench


def test_rows_are_computed_as_the_docs_say(bench: Bench) -> None:
    frame = rows.models(bench.store.read())
    assert list(frame.columns) == list(rows.COLUMNS)
    row = frame[
        (frame["mode"] == "train") & (frame["context"] == 1024) & (frame["variant"] == "fine-2")
    ].iloc[0]
    seconds = row["latency_seconds"]
    assert seconds == pytest.approx(2 * 1.024e-3, rel=0.05)
    assert row["tokens_per_second"] == pytest.approx(1024 / seconds)
    assert row["mfu"] == pytest.approx(1024e6 / seconds / 989e12)
    assert row["mfu_measured"] == pytest.approx(1024e6 / seconds / 1e12)
    assert row["floor_seconds"] == pytest.approx(1024e6 / 1e12)  # products take longer than 2 kB at 1 GB/s
    assert row["counted_ratio"] == pytest.approx(1.1)
    assert row["memory_error"] == pytest.approx(-0.05)
    assert row["joules_per_token"] == pytest.approx(2 / 1024)
    assert (row["base"], row["verdict"]) == ("fine-1", "slower")
    assert row["ratio"] == pytest.approx(0.5, rel=0.05)
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    base = frame[frame["variant"] == "fine-1"].iloc[0]
    assert base[["ratio", "verdict"]].isna().all()


def test_decoding_is_held_against_reading_alone(bench: Bench) -> None:
    frame = rows.models(bench.store.read())
    row = frame[(frame["mode"] == "decode") & (frame["variant"] == "fine-1")].iloc[0]
    assert row["floor_seconds"] == pytest.approx(2e3 / 1e9)
    assert row[["mfu", "mfu_measured"]].isna().all()


def test_rounds_that_were_not_interleaved_decide_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run([point(["big-1", "big-3"])])
    row = rows.models(bench.store.read()).iloc[1]
    assert row["ratio"] == pytest.approx(1 / 3, rel=0.05)
    assert pd.isna(row["verdict"])  # without an interval there is nothing to judge by
    assert row[["ratio_low", "ratio_high"]].isna().all()
    assert table.cells(row.to_dict())[1] == f"{row['ratio']:.2f} (not paired)"


def test_all_files_are_written_and_repeat(bench: Bench) -> None:
    records = bench.store.read()
    report.write(bench.store, records)
    names = {path.name for path in bench.store.folder.iterdir()}
    stems = [f"0.1m-bf16-v64-{measure}" for measure in plots.MEASURES]
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    expected |= {"models.csv", "comparisons.csv", "largest.csv", "table.md", "records.jsonl", ".lock"}
    assert names - {".lock"} == expected - {".lock"}
    name, figure = next(plots.figures(rows.models(bench.store.read())))
    assert save(figure, "png", dpi=200) == (bench.store.folder / f"{name}.png").read_bytes()
    text = (bench.store.folder / "table.md").read_text()
    assert "because it is oom" in text
    assert "## The largest that fits" in text
    assert "(1.100 of the formula)" in text


def test_every_variant_is_compared_with_the_base(bench: Bench) -> None:
    frame = rows.comparisons(bench.store.read())
    assert set(zip(frame["variant"], frame["against"], strict=True)) == {
        ("fine-2", "fine-1"),
        ("fine-4", "fine-1"),
    }
    assert len(frame) == 8
    assert set(frame["verdict"]) == {"slower"}


def test_peers_are_compared_with_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one = point(["fine-1", "fine-2"])
    peer = replace(one.variants[1], peer="fla-retnet")
    bench.run([replace(one, variants=(one.variants[0], peer))])
    frame = rows.comparisons(bench.store.read())
    assert list(frame["kind"]) == ["peer", "base"]
    assert list(frame["ratio"]) == [pytest.approx(2.0, rel=0.05), pytest.approx(0.5, rel=0.05)]
    assert list(frame["verdict"]) == ["faster", "slower"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "trian"], "--mode trian: did you mean train?"),
        (["--preset", "transnormerlm"], "--preset transnormerlm: did you mean transnormerllm?"),
        (["--size", "386m"], "--size 386m: did you mean 385m?"),
        (["--context", "2k,x"], "--context: 'x' is no size; write whole numbers, as 1k,2k,4096"),
        (["--precision", "fp16"], "--precision fp16: did you mean bf16?"),
        (
            ["--variant", "no-gate"],
            "--variant no-gate: write NAME: KEY=VALUE …, as in 'no-gate: model.gate=false'",
        ),
        (
            ["--variant", "x: model.decayy=none"],
            "--variant x: unknown key model.decayy, did you mean decay?",
        ),
        (["--variant", "x: model.size=1m"], "--variant x model.size: use --size, which lays the grid"),
        (["--set", "data.context=4"], "--set data.context: use --context, which lays the grid"),
        (
            ["--preset", "gpt2", "--preset", "gpt2"],
            "two variants are called gpt2: give each a name of its own",
        ),
        (
            ["--suite", "x", "--preset", "gpt2"],
            "--suite brings its own variants: leave out --preset and --variant",
        ),
        (["--suite", "architectur"], "no suite 'architectur', did you mean architecture?"),
        (["--fit", "80 apples"], "'80 apples' is no amount of memory: give it as 80GB, 24GiB or 512MB"),
        (
            ["--report", "--size", "1m"],
            "--report rewrites what is in the records: only --results goes with it",
        ),
        (["--report"], "results/models holds no records of models; run tnbench profile-model"),
        (["--device", "cuda"], "--device cuda: torch sees no GPU here; use --device cpu"),
        (
            ["--largest", "batch", "--batch", "1,2"],
            "--batch does not go with --largest batch, which tries each value in turn and times nothing",
        ),
        (
            ["--largest", "context", "--context", "2k"],
            "--context does not go with --largest context, which tries each value in turn and times nothing",
        ),
        (
            ["--largest", "context", "--energy", "0"],
            "--energy does not go with --largest context, which tries each value in turn and times nothing",
        ),
        *(
            (
                ["--fit", "1GB", *option],
                f"{option[0]} does not go with --fit alone, which asks the memory model and measures nothing",
            )
            for option in (["--rounds", "2"], ["--energy", "1"], ["--time-limit", "9"], ["--plan"])
        ),
        (["--energy", "1"], "--energy 1: a CPU has no counter of energy; leave it out"),
        (
            ["--vocabulary", "1" + "0" * 18],
            "Invalid value for '--vocabulary': Input should be less than or equal to 2147483648",
        ),
        (["--time-limit", "inf"], "--time-limit inf: give a number of seconds"),
        (
            [*("--largest", "context", "--size", "0.1m"), *("--set", "training.micro_batch_tokens=512")],
            "--largest needs steps of one micro-batch, and training.micro_batch_tokens = 512 in "
            "transnormerllm; --set training.micro_batch_tokens=null",
        ),
        (
            ["--set", "training.micro_batch_tokens=300", "--context", "256"],
            "training.micro_batch_tokens = 300 is no multiple of data.context = 256; 256 would be",
        ),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        cli.main(["profile-model", *arguments])
    assert left.value.code == 2
    assert capsys.readouterr().err == f"tnbench: {said}\n"
    assert not list(tmp_path.iterdir())


def test_the_grid_and_the_commands_that_repeat_it() -> None:
    wanted = planning.wanted(
        mode="train,decode", size="0.1m,0.8m", context="256,1k", batch=None, vocabulary=100, precision=None,
        presets=["transnormerllm", "transformer"], variants=["bare: model.gate=false model.decay=none"],
        suite=None, settings={"training.loss": "logits"},
    )  # fmt: skip
    chosen = DEFAULTS["cpu"]
    found = planning.points(wanted, "cpu", {"torch": "2"}, _no_suites, chosen.measurement, "elsewhere")
    assert len(found) == 8
    assert [one.case["batch"] for one in found[:4]] == [8, 2, 1, 1]
    assert [variant.name for variant in found[0].variants] == ["transnormerllm", "transformer", "bare"]
    bare = found[0].variants[2].config
    assert (bare.model.gate, bare.model.decay.name, bare.training.loss) == (False, "none", "logits")
    for said in ("--variant 'bare: model.gate=false model.decay=none'", "--set training.loss=logits"):
        assert said in found[0].command
    assert "--results elsewhere" in found[0].command


def test_a_search_has_one_value_of_its_axis() -> None:
    """And the others that are asked for: contexts are searched for at one sequence unless there are some."""
    options: dict[str, Any] = {
        "mode": "train,decode", "size": "0.1m", "vocabulary": None, "precision": None, "presets": ["gpt2"],
        "variants": [], "suite": None, "settings": {},
    }  # fmt: skip

    def held(axis: Axis, **asked: str | None) -> list[tuple[str, int]]:
        wanted = planning.along(
            planning.wanted(**{**options, "context": None, "batch": None, **asked}), axis, "cpu"
        )
        found = planning.points(wanted, "cpu", {}, _no_suites, DEFAULTS["cpu"].measurement, "elsewhere")
        other = "batch" if axis == "context" else "context"
        return [(one.case["mode"], one.case[other]) for one in found]

    assert held("context") == [("train", 1), ("decode", 1)]
    assert held("context", batch="2,3") == [(mode, batch) for mode in ("train", "decode") for batch in (2, 3)]
    assert held("batch", context="64,128") == [(mode, n) for mode in ("train", "decode") for n in (64, 128)]


def _no_suites(*_: object) -> list:
    raise AssertionError


def test_a_suite_brings_its_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tnbench.ablation.profiled import suite_models

    monkeypatch.chdir(tmp_path)
    wanted = planning.wanted(
        mode=None, size="0.4m", context="128", batch="2", vocabulary=None, precision=None, presets=[],
        variants=[], suite="quickstart", settings={},
    )  # fmt: skip
    (found,) = planning.points(wanted, "cpu", {}, suite_models, DEFAULTS["cpu"].measurement, "elsewhere")
    assert found.variants[0].diff == {}
    assert len(found.variants) > 2
    for variant in found.variants:
        assert (variant.config.model.size, variant.config.data.context) == ("0.4m", 128)
        assert variant.config.training.batch_tokens == 256


@pytest.mark.parametrize("limit", [1, 7, 100, 999, 12_345])
@pytest.mark.parametrize("guess", [1, 90, 20_000])
def test_search_tries_few_values_and_no_value_twice(limit: int, guess: int) -> None:
    tried: list[int] = []

    def fits(value: int) -> bool:
        tried.append(value)
        return value <= limit

    found = search(fits, guess, 1)
    assert limit - max(1, 0.02 * limit) <= found <= limit
    assert len(tried) == len(set(tried)) <= 22


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
def test_formula_and_counter_agree_as_far_as_they_count_alike(preset: str) -> None:
    """At a short context, where scores are few: within 12 %."""
    config = resolve(
        {"model.preset": preset, "model.size": "0.8m", "data.context": 64},
        {"training.steps": 1, "training.batch_tokens": 128},
    )
    model = LanguageModel(config.model, 512, 64)
    for mode in ("train", "prefill"):
        counted = flops.by_counter(config, 512, mode, 2, "cpu")
        assert counted == pytest.approx(flops.by_formula(model, mode, 64, 2), rel=0.12)
    steps = sum(flops.by_formula(model, "decode", context, 1) for context in range(1, 65))
    assert steps == pytest.approx(64 * model.flops_per_token(64))


def test_peaks_are_those_of_the_data_sheets() -> None:
    assert flops.dense_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert flops.dense_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert flops.dense_peak("NVIDIA H200", "bf16") == 989e12
    assert flops.dense_peak("NVIDIA L40S", "bf16") == 362e12
    assert flops.dense_peak("NVIDIA GeForce RTX 5090", "bf16") is None
    assert flops.dense_peak("NVIDIA H100 80GB HBM3", "fp32") is None


@pytest.mark.parametrize("mode", ["train", "prefill", "decode"])
def test_a_real_worker_prepares_and_times(mode: str) -> None:
    """In this process: memory as predicted to within 15 %, a finite result, times of calls."""
    config = resolve(
        {"model.preset": "transnormerllm", "model.size": "0.1m", "data.context": 64},
        {"training.steps": 1, "training.batch_tokens": 128, "training.threads": 1},
    )
    one = worker.Worker("cpu")
    answer = one.answer({"do": "prepare", "arm": Spec(mode, 2, 128, config).to_dict()})
    assert (answer["status"], answer["reason"]) == ("ok", None)
    assert answer["tokens"] == (2 if mode == "decode" else 128)
    assert answer["predicted_memory_bytes"] == pytest.approx(answer["peak_memory_bytes"], rel=0.15)
    timed = one.answer({"do": "time", "calls": 4, "seconds": 0.05})
    assert len(timed["seconds"]) >= 3
    limited = one.answer({"do": "prepare", "arm": Spec(mode, 2, 128, config, limit=1000).to_dict()})
    assert limited["status"] == "oom"
    foreign = one.answer({"do": "prepare", "arm": Spec(mode, 2, 128, config, peer="fla-retnet").to_dict()})
    assert foreign["status"] == "unsupported"


def test_a_failed_prediction_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: object, **__: object) -> None:
        raise NotImplementedError("no fake kernel")

    monkeypatch.setattr("tnbench.profiling.models.memory.predict", predict)
    config = resolve(
        {"model.preset": "transnormerllm", "model.size": "0.1m", "data.context": 64},
        {"training.steps": 1, "training.batch_tokens": 64, "training.threads": 1},
    )
    request = {"do": "prepare", "arm": Spec("decode", 1, 128, config).to_dict()}
    answer = worker.Worker("cpu").answer(request)
    assert (answer["status"], answer["predicted_memory_bytes"]) == ("ok", None)
    assert answer["unpredicted"] == "NotImplementedError: no fake kernel"


def test_the_examples_in_the_docstrings() -> None:
    tried = doctest.testmod(words)
    assert tried.attempted
    assert not tried.failed


def test_diffs_are_read_as_settings_are() -> None:
    assert variants.parse_variant("a b: x=1 y=none") == ("a b", {"x": 1, "y": "none"})
    for text in (": x=1", "a\nb: x=1", "name:", "name: x", "name: x=1 x=2"):
        with pytest.raises(RequestError):
            variants.parse_variant(text)
