"""`tnbench profile-kernels`: wrong requests, other revisions, and commands that repeat a point."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.profiling.kernels import planning
from tnbench.profiling.kernels.against import commit_of, kernels_at
from tnbench.profiling.kernels.store import kernel_hash
from tnbench.profiling.lines import slug


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["linear_atention"], "no operator 'linear_atention', did you mean linear_attention?"),
        (
            ["linear_attention", "--length", "1k,x"],
            "--length: 'x' is no size; write whole numbers, as 1k,2k,4096",
        ),
        (
            ["linear_attention", "--length", "0"],
            "--length: '0' is no size; write whole numbers, as 1k,2k,4096",
        ),
        (["--shape", "4"], "--shape 4: write batch and heads, as 4,16"),
        (
            ["--shape", "4,16", "--heads", "2"],
            "--shape gives batch and heads together: leave out --batch and --heads",
        ),
        (["--mode", "forwards"], "--mode forwards: did you mean forward?"),
        (["--dtype", "bf16"], "--dtype bf16: did you mean bfloat16?"),
        (["linear_attention", "--width", "4k"], "--width: linear_attention has no such axis"),
        (
            ["linear_attention", "--mode", "decode"],
            "linear_attention has no mode decode: it has forward, backward, both",
        ),
        (["norm", "--mode", "forward,decode"], "norm has no mode decode: it has forward, backward, both"),
        (
            ["norm", "lrpe", "--implementation", "liger,x"],
            "--implementation liger,x: did you mean liger?",
        ),
        (
            ["decode_step", "linear_attention", "--device", "cpu", "--implementation", "chunked"],
            "decode_step has no implementation chunked: it has triton, torch, torch-compiled, copy",
        ),
        (
            ["--report", "--length", "1k"],
            "--report rewrites what is in the records: only --results goes with it",
        ),
        (["--implementation", "chunkd"], "--implementation chunkd: did you mean chunked?"),
        (
            ["--device", "cpu", "--implementation", "fla-chunk"],
            "--implementation fla-chunk: it needs an NVIDIA GPU",
        ),
        (["--plan", "--report"], "--plan and --report exclude each other"),
        (["--report"], "results/kernels holds no records of kernels; run tnbench profile-kernels"),
        (
            ["--against", "no-such-ref"],
            "--against no-such-ref: git knows no such revision; git log --oneline lists some",
        ),
    ],
)
def test_wrong_requests(arguments: list[str], said: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["profile-kernels", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"tnbench: {said}\n"
    assert not list(tmp_path.iterdir())


def test_against_needs_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a git checkout of tnbench"):
        commit_of("HEAD", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "one.py").write_text("ONE = 1\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    (tmp_path / "kernels" / "one.py").write_text("ONE = 2\n")
    commit = commit_of("HEAD", tmp_path)
    with kernels_at(commit, tmp_path) as folder:
        assert (folder / "kernels" / "one.py").read_text() == "ONE = 1\n"
    assert not folder.exists()
    with pytest.raises(RequestError, match="no such revision"):
        commit_of("--help", tmp_path)


def test_every_default_point_can_be_asked_for_again() -> None:
    """The command of each point, read as the CLI reads it, gives that point and no other."""
    import typer

    command = typer.main.get_command(cli.app).commands["profile-kernels"]  # type: ignore[attr-defined]
    for device in ("cpu", "cuda"):
        for one in planning.points(planning.Wanted(), device, {}, "again"):
            words = one.command.split()[2:]
            read = command.make_context("profile-kernels", words).params
            options = (option[2:].replace("-", "_") for option in planning.AXIS_OPTIONS.values())
            axes = planning.axes(**{name: read[name] for name in options})
            wanted = planning.Wanted(tuple(read["operators"]), axes)
            assert [found.case for found in planning.points(wanted, device, {}, "again")] == [one.case]


def test_pairs_stay_pairs_where_batch_and_heads_are_axes() -> None:
    wanted = planning.Wanted(("decode_step",), planning.axes(shape=["2,4", "3,8"]))
    shapes = [one.case["shape"] for one in planning.points(wanted, "cpu", {}, "again")]
    assert [(shape["batch"], shape["heads"]) for shape in shapes] == [(2, 4), (3, 8)]


def test_points_know_what_is_compiled() -> None:
    """What is plain torch is not, what another revision runs is as its twin."""
    names = ("chunked", "chunked-compiled")
    for commit, compiled in (("", {"chunked-compiled"}), ("ab", {"chunked-compiled", "chunked-compiled@ab"})):
        wanted = planning.Wanted(("linear_attention",), implementations=names, commit=commit)
        assert {
            name: how for one in planning.points(wanted, "cpu", {}, "") for name, how in one.compiles.items()
        } == dict.fromkeys(compiled, "anew")


def test_what_operators_share_makes_their_measurements_old(tmp_path: Path) -> None:
    folder = tmp_path / "kernels" / "lrpe"
    folder.mkdir(parents=True)
    before = kernel_hash("lrpe", tmp_path)
    (folder.parent / "tune.py").write_text("1")
    assert kernel_hash("lrpe", tmp_path) == before
    (folder.parent / "compiled.py").write_text("1")
    assert kernel_hash("lrpe", tmp_path) != before


def test_names_of_machines() -> None:
    assert slug("Intel(R) Xeon(R) Processor") == "intel-xeon-processor"
