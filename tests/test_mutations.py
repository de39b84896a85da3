"""Suite files with any mistake: each plans its runs, or is refused in one line with exit status 2."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from mutated_suites import EVERY_KEY, RAW, mutated_files, originals

from tnbench import cli
from tnbench.ablation.suite_file import TUNABLE

LONGEST = 60
"""Seconds after which a plan counts as hanging."""


class Hanging(BaseException):
    """A plan took too long."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """A working folder with a corpus in it; no step is timed, for huge models are planned too."""
    folder = tmp_path_factory.mktemp("mutations")
    (folder / "words.txt").write_text(corpus.read_text())
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr("tnbench.ablation.plan.seconds_per_run", lambda suite, variant: 1.0)
        yield folder


def plan(content: bytes) -> tuple[int, str, str]:
    """Exit status, output and errors of `tnbench ablate suite.yaml --plan`."""
    Path("suite.yaml").write_bytes(content)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)

    def give_up(*_: Any) -> None:
        raise Hanging

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(["ablate", "suite.yaml", "--plan", "--device", "cpu"])
    except SystemExit as ended:
        status = ended.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert isinstance(status, int)
    return status, *(file.buffer.getvalue().decode() for file in (out, err))  # type: ignore[attr-defined]


def checked(content: bytes) -> int:
    """The exit status, after the promise about every file: a plan or one line, and nothing written."""
    status, out, err = plan(content)
    assert "Traceback" not in out + err
    if status == 0:
        assert "forward" in out, "the table of the plan"
        assert err == ""
        assert out.replace("\n", "").isprintable(), "no control characters"
    else:
        assert status == 2, err
        assert out == ""
        assert err.startswith("tnbench: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable(), "one line, and no control characters"
        assert len(err) < 1000
    assert set(os.listdir()) == {"words.txt", "suite.yaml"}, "nothing is written"
    return status


@pytest.mark.parametrize("name", sorted(originals()))
def test_originals_are_planned(name: str):
    assert checked(originals()[name].encode()) == 0


STEPS_50 = [float(step) for step in range(1, 51)]
EXCESSIVE = {
    "layers": {"base": {"model.layers": 10**6}},
    "heads": {"base": {"model.heads": 2**16, "model.width": 2**16}},
    "width": {"base": {"model.width": 10**30}},
    "channel width": {"base": {"model.channel_width": 10**400}},
    "context": {"base": {"data.context": 2**40}},
    "steps": {"base": {"training.steps": 10**400, "training.batch_tokens": 64}},
    "batch": {"base": {"training.batch_tokens": 64 * 10**400}},
    "name": {"base": {"model.mixer": "x" * 10**5}},
    "corpus": {"base": {"data.corpus": "x" * 10**5}},
    "report seeds": {"seeds": 10_000},
    "one huge seed": {"seeds": [10**400]},
    "number of seeds": {"seeds": 10**400},
    "tune seeds": {"seeds": {"report": 3, "tune": list(range(100, 10_100))}},
    "grid": {"tune": {"grid": dict.fromkeys(TUNABLE, STEPS_50), "widen": 10}},
    "widening": {"tune": {"grid": {TUNABLE[0]: [1.0, 2.0]}, "widen": 10**9}},
    "alpha": {"analysis": {"alpha": 1e-300}},
    "margin": {"analysis": {"margin": 10**400}},
    "title": {"title": "x" * 10**5},
    "control characters": {"title": "\x1b[2Jgone"},
    "half a character": {"fixed": "\ud800"},
    "variant's name": {"variants": {"x" * 10**5: {}}},
}


@pytest.mark.parametrize("name", EXCESSIVE)
def test_what_is_far_too_much_is_refused(name: str):
    tree = yaml.safe_load(EVERY_KEY)
    base = {**tree["base"], "data.corpus": "words.txt", **EXCESSIVE[name].get("base", {})}
    if "training.steps" in base:
        del base["training.tokens"]
    content = yaml.safe_dump({**tree, **EXCESSIVE[name], "base": base})
    assert checked(content.encode()) == 2


@pytest.mark.parametrize("number", range(len(RAW)))
def test_anything_that_yaml_can_say_is_planned_or_refused(number: int):
    base = "base: {data.corpus: words.txt, model.size: 0.1m, data.context: 64, training.steps: 9"
    for text in (
        RAW[number],
        f"{base}}}\nvariants: {{a: {{}}}}\ntitle: {RAW[number]}",
        f"{base}, model.decay: {RAW[number]}}}\nvariants: {{a: {{}}}}",
        f"{base}}}\nvariants: {{a: {{}}, b: {RAW[number]}}}",
        f"{base}}}\nvariants: {{a: {{}}}}\nseeds: {RAW[number]}",
    ):
        checked(text.encode())


def mutations(count: int) -> Any:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=checks)


@mutations(75)
@given(mutated_files())
def test_a_mutated_suite_is_planned_or_refused(content: bytes):
    checked(content)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@mutations(2000)
@given(mutated_files())
def test_two_thousand_mutated_suites_are_planned_or_refused(content: bytes):
    checked(content)
