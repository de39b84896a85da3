"""`tnbench profile-model` on a GPU: every mode of small models, out of memory, and the peer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tnbench import cli
from tnbench.profiling.models import peers, rows
from tnbench.profiling.models.store import Store
from tnbench.report.results import Frame

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

SMALL = ["--size", "10m", "--vocabulary", "4096", "--rounds", "2", "--device", "cuda"]
EAGER = ["--set", "training.compile=false"]


def measured(folder: Path, *arguments: str) -> Frame:
    with pytest.raises(SystemExit) as left:
        cli.main(["profile-model", *SMALL, *arguments, "--results", str(folder)])
    assert left.value.code == 0
    (path,) = (folder / "models").glob("*/records.jsonl")
    return rows.models(Store(path.parent).read())


def test_every_mode_gives_whole_rows(tmp_path: Path) -> None:
    frame = measured(
        tmp_path, "--mode", "train,prefill,decode", "--context", "1k", "--preset", "transnormerllm",
        "--preset", "transformer", *EAGER, "--energy", "0.3",
    )  # fmt: skip
    assert len(frame) == 6
    assert set(frame["status"]) == {"ok"}
    assert frame["interleaved"].all()
    decode = frame["mode"] == "decode"  # a capture has a workspace of its own, larger than this model
    assert (frame[~decode]["memory_error"].abs() < 0.15).all()
    assert (frame["joules_per_token"] > 0).all()
    assert (frame["floor_share"] > 0).all()
    assert frame[~decode]["counted_ratio"].between(0.8, 2.5).all()
    assert set(frame[decode]["form"]) == {"graph"}
    assert set(frame[~decode]["form"]) == {"eager"}


def test_a_compiled_step(tmp_path: Path) -> None:
    """The one compilation here: others take minutes."""
    compiled = ["--set", "training.compile=true"]
    frame = measured(tmp_path, "--context", "1k", "--preset", "transnormerllm", *compiled)
    (row,) = frame.to_dict("records")
    assert (row["status"], row["form"]) == ("ok", "compiled")
    assert abs(row["memory_error"]) < 0.15


def test_a_step_that_does_not_fit_is_a_row(tmp_path: Path) -> None:
    frame = measured(
        tmp_path, "--context", "1k", "--batch", "1,65536", "--preset", "transnormerllm",
        *EAGER, "--set", "training.loss=logits",
    )  # fmt: skip
    assert list(frame["status"]) == ["ok", "oom"]


@pytest.mark.skipif(peers.obstacle("cuda") is not None, reason=str(peers.obstacle("cuda")))
def test_the_peer_runs_in_every_mode_with_the_same_parameters(tmp_path: Path) -> None:
    frame = measured(
        tmp_path, "--mode", "train,prefill,decode", "--context", "1k", "--preset", "transnormerllm",
        "--preset", "fla-retnet", *EAGER,
    )  # fmt: skip
    assert set(frame["status"]) == {"ok"}
    parameters = frame.groupby("variant")["parameters"].first()
    assert abs(parameters["fla-retnet"] / parameters["transnormerllm"] - 1) < 0.005
    assert (frame[frame["variant"] == "fla-retnet"]["tokens_per_second"] > 0).all()


def test_the_largest_context_is_found_within_a_limit(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(
            [
                "profile-model", *SMALL[:4], "--device", "cuda", "--largest", "context", "--batch", "1",
                "--fit", "4GB",
                "--preset", "transnormerllm", *EAGER, "--results", str(tmp_path),
            ]
        )  # fmt: skip
    assert left.value.code == 0
    (path,) = (tmp_path / "models").glob("*/records.jsonl")
    (found,) = rows.largest(Store(path.parent).read()).to_dict("records")
    assert found["status"] == "ok"
    assert 0 < found["peak_memory_bytes"] < 4e9
    assert abs(found["prediction_error"]) < 0.15
