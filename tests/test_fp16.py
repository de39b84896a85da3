"""Training in fp16: steps that overflow are skipped, the loss scale survives a resume, spikes are counted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_runs import manifest, same_run, tiny, values

from tnbench.config import TrainingConfig
from tnbench.data import TokenData
from tnbench.errors import RequestError
from tnbench.records import RunFolder
from tnbench.training.environment import require_device
from tnbench.training.loop import run
from tnbench.training.state import FEW, SKIPPED, LossWatch, Spikes, State
from tnbench.training.step import loss_scale, optimizer_step

pytestmark = pytest.mark.usefixtures("settled_process")


def test_a_run_learns_and_goes_on_from_its_checkpoint(corpus: Path, data: TokenData, tmp_path: Path):
    config = tiny(corpus, precision="fp16")
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    assert run(config, whole, data) == "finished"
    losses = [value[1] for value in values(whole) if value[0] == "train_loss"]
    assert losses[-1] < losses[0] - 0.2
    asked = iter(range(1000))
    assert run(config, cut, data, stop=lambda: next(asked) >= 5) == "interrupted"
    assert run(config, cut, data) == "finished"
    assert same_run(whole, cut)
    assert manifest(whole)["stability"] == manifest(cut)["stability"]


def test_a_resume_has_the_loss_scale(
    corpus: Path, data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tnbench.training import trainer as module

    scalers: list[torch.amp.GradScaler] = []

    def large(training: TrainingConfig) -> torch.amp.GradScaler:
        """So large that every step of the run overflows."""
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**60))
        return scalers[-1]

    monkeypatch.setattr(module, "loss_scale", large)
    config, folder = tiny(corpus, precision="fp16"), RunFolder(tmp_path / "run")
    asked = iter(range(1000))
    run(config, folder, data, stop=lambda: next(asked) >= 8)
    run(config, folder, data)
    assert len(scalers) == 2
    assert manifest(folder)["stability"]["gradient_norm"]["not_finite"] == 12
    assert scalers[1].get_scale() == 2.0**48 < scalers[0].get_scale()


def test_a_step_that_overflows_leaves_the_weights(corpus: Path):
    training = tiny(corpus, precision="fp16").training
    scaler = loss_scale(training)
    assert scaler is not None
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    before, batch = model.weight.detach().clone(), torch.ones(2, 3, dtype=torch.long)
    for factor, moves in ((1e38, False), (1.0, True)):
        _, norm = optimizer_step(
            model,
            optimizer,
            batch,
            training,
            loss=lambda inputs, targets, factor=factor: (model(inputs.float()) * factor).mean(),
            scaler=scaler,
        )
        assert math.isfinite(norm.item()) == moves
        assert torch.equal(model.weight, before) != moves
        assert scaler.get_scale() == 2**15
    assert loss_scale(tiny(corpus, precision="bf16").training) is None


def test_skipped_steps_in_a_row_diverge():
    watch = LossWatch()
    assert watch.reason(3.0, 1.0, 100, skips=True) is None
    for _ in range(SKIPPED - 1):
        assert watch.reason(math.nan, math.inf, 100, skips=True) is None
    assert watch.reason(2.0, 1.0, 100, skips=True) is None
    for _ in range(SKIPPED - 1):
        assert watch.reason(2.0, math.inf, 100, skips=True) is None
    assert "in a row had to be skipped" in str(watch.reason(2.0, math.nan, 100, skips=True))
    assert "gradient norm is inf" in str(LossWatch().reason(2.0, math.inf, 100))


@pytest.mark.parametrize("loss", ["chunked", "liger"])
def test_losses_that_scale_too_late_are_refused(corpus: Path, loss: str):
    with pytest.raises(RequestError, match=r"set training\.loss=logits or auto"):
        require_device(tiny(corpus, precision="fp16", loss=loss))


def test_compiled_on_a_cpu_it_is_refused(corpus: Path):
    with pytest.raises(RequestError, match="precision = fp16 gives NaN"):
        require_device(tiny(corpus, precision="fp16", compile=True))


def test_spikes_stand_out_of_what_came_before():
    watch = Spikes()
    for step in range(200):
        watch.add(5.0 - 0.01 * step + 0.05 * (-1) ** step)
    assert watch.summary() == {"spikes": 0, "not_finite": 0, "largest": 5.05}
    for value in (9.0, math.nan, 3.0, math.inf, 1.0):
        watch.add(value)
    assert watch.summary() == {"spikes": 1, "not_finite": 2, "largest": 9.0}
    young = Spikes()
    for value in [1.0] * (FEW - 1) + [100.0]:
        young.add(value)
    assert young.spikes == 0


def test_a_state_comes_back_whole_and_from_before_there_were_spikes():
    state = State(step=3)
    state.losses.add(2.5)
    state.watch.reason(2.5, 1.0, 10)
    values = state.to_json()
    assert State.from_json(values) == state
    del values["losses"], values["gradient_norms"], values["watch"]["skipped_steps"]
    assert State.from_json(values).watch == state.watch
