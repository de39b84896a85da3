"""A training step on a GPU: the chunked loss, compilation, attention, waiting, memory, whole runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_training_step import batch, built, config, near
from tiny_runs import manifest, tiny, values
from torch import Tensor

from tnbench.config import RunConfig
from tnbench.data import TokenData
from tnbench.records import RunFolder
from tnbench.training import losses
from tnbench.training.loop import run
from tnbench.training.losses import chunked_cross_entropy
from tnbench.training.optimizer import adamw
from tnbench.training.step import objective, optimizer_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

TIME = 300
PRESETS = ["transnormerllm", "transformer", "retnet", "transnormer-t1"]
COMPILED = [*PRESETS[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS[2:])]
"""A compilation takes half a minute."""


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def on_gpu(preset: str = "transnormerllm", **keys: Any) -> RunConfig:
    """Heads of 64 channels, which all kernels take."""
    found = config(preset, **{"time": TIME, "device": "cuda", "precision": "bf16", **keys})
    sizes = {"width": 256, "heads": 4, "channel_width": 384}
    return found.model_copy(update={"model": found.model.model_copy(update=sizes)})


def outcome(settings: RunConfig) -> tuple[float, Tensor]:
    """The loss, and the gradients of all parameters in one vector."""
    model, tokens = built(settings).cuda(), batch(settings.data.context).cuda()
    loss = objective(model, settings.training)(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# the chunked loss


def linear_operands(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden = torch.randn(tokens, width, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device="cuda") / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens,), device="cuda")


@pytest.mark.parametrize("vocabulary", [257, 50272, 50257])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 6e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rows", [256, 300, None])
def test_chunked_loss_against_float64(
    rows: int | None, dtype: torch.dtype, limit: float, vocabulary: int
) -> None:
    """Loss and both gradients, the last chunk shorter; twice, for the same bits."""
    hidden, weight, targets = linear_operands(700, 128, vocabulary, dtype)
    found, again = (
        [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]
        for loss in (chunked_cross_entropy(hidden, weight, targets, rows=rows) for _ in range(2))
    )
    wide = hidden.detach().double().requires_grad_(), weight.detach().to(dtype).double().requires_grad_()
    exact = F.cross_entropy(wide[0] @ wide[1].T, targets)
    expected = [exact.detach(), *torch.autograd.grad(exact, wide)]
    assert [x.dtype for x in found] == [torch.float32, dtype, torch.float32]
    for a, b, c in zip(found, again, expected, strict=True):
        assert torch.equal(a, b)
        assert float((a.double() - c).norm() / c.norm()) <= limit


def test_chunked_loss_holds_one_chunk() -> None:
    """Beside its results: a chunk of logits in bf16, W in bf16, and a little."""
    tokens, width, vocabulary, rows = 8192, 512, 50272, 1024
    hidden, weight, targets = linear_operands(tokens, width, vocabulary, torch.bfloat16)
    chunked_cross_entropy(hidden, weight, targets, rows=rows).backward()  # compiles
    hidden.grad = weight.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = chunked_cross_entropy(hidden, weight, targets, rows=rows)
    extra = torch.cuda.max_memory_allocated() - before
    results = 2 * tokens * width + 4 * vocabulary * width
    assert extra <= results + 2 * rows * vocabulary + 2 * vocabulary * width + (16 << 20)
    del loss


def test_chunked_step_takes_less_memory_than_logits() -> None:
    peaks = []
    for loss in ("logits", "chunked"):
        hidden, weight, targets = linear_operands(16384, 256, 50272, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        if loss == "chunked":
            chunked_cross_entropy(hidden, weight, targets).backward()
        else:
            F.cross_entropy(F.linear(hidden, weight.bfloat16()).float(), targets).backward()
        peaks.append(torch.cuda.max_memory_allocated())
        del hidden, weight, targets
    assert peaks[1] < 0.3 * peaks[0]


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.parametrize("how", [False, True, "blocks"])
def test_liger_agrees(how: Any) -> None:
    assert near(outcome(on_gpu(loss="liger", compile=how)), outcome(on_gpu(loss="chunked")), 0.02)


def test_auto_takes_chunks_where_logits_are_large() -> None:
    training = on_gpu(batch_tokens=600 * 1024).training
    assert losses.form(training, 97) == "logits"
    assert losses.form(training, 50272) == "chunked"


# models


@pytest.mark.parametrize("preset", COMPILED)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("how", [True, "blocks"])
def test_compiled_is_as_near_to_fp32_as_eager(how: Any, checkpointing: bool, preset: str) -> None:
    """Both round to bf16, each in other places: on a CPU, TransNormer-T1's gradients are 2.7 % from fp32 in
    eager calls, 2.3 % compiled, and 2.4 % from each other. Fused kernels round less often, not more."""
    keys: dict[str, Any] = {"loss": "chunked", "activation_checkpointing": checkpointing}
    exact = outcome(on_gpu(preset, precision="fp32", **keys))
    found = [outcome(on_gpu(preset, compile=compiled, **keys)) for compiled in (False, how)]
    eager, compiled = (float((gradients - exact[1]).norm() / exact[1].norm()) for _, gradients in found)
    assert compiled <= 1.25 * eager
    assert [loss for loss, _ in found] == pytest.approx([exact[0]] * 2, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_bf16_is_near_fp32(preset: str) -> None:
    """And every block keeps the residual stream in bf16."""
    assert near(outcome(on_gpu(preset)), outcome(on_gpu(preset, precision="fp32")), 0.05)
    model, seen = built(on_gpu(preset)).cuda(), set()
    for block in model.layers:
        block.register_forward_hook(lambda *call: seen.update(x.dtype for x in call[-1]))
    with torch.autocast("cuda", torch.bfloat16):
        model.hidden(batch(TIME)[:, :-1].cuda())
    assert seen == {torch.bfloat16}


def test_gpu_equals_cpu() -> None:
    """In fp32: the kernels, among them the sum with the norm behind it, against plain torch."""
    torch.set_float32_matmul_precision("highest")
    settings = on_gpu(precision="fp32", loss="logits")
    here = settings.model_copy(update={"training": settings.training.model_copy(update={"device": "cpu"})})
    model, tokens = built(here), batch(TIME)
    loss = objective(model, here.training)(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert near(outcome(settings), (loss.item(), gradients.cuda()), 1e-4)


@pytest.mark.parametrize("how", [False, True])
def test_attention_back_ends(how: bool) -> None:
    """They agree; on Hopper `auto` is cuDNN's."""

    def attention(backend: str) -> RunConfig:
        found = on_gpu("transformer", compile=how)
        mixer = found.model.mixer[0].model_copy(update={"backend": backend})
        return found.model_copy(update={"model": found.model.model_copy(update={"mixer": (mixer,)})})

    exact = outcome(attention("math"))
    for backend in ("auto", "cudnn", "flash"):
        assert near(outcome(attention(backend)), exact, 0.03), backend
    if how or torch.cuda.get_device_capability()[0] != 9:
        return
    with torch.profiler.profile() as profiled:
        outcome(attention("auto"))
    names = " ".join(event.key for event in profiled.key_averages())
    assert "aten::_scaled_dot_product_cudnn_attention" in names
    assert "aten::_scaled_dot_product_flash_attention" not in names


@pytest.mark.parametrize("loss", ["logits", "chunked"])
@pytest.mark.parametrize("how", [False, True, "blocks"])
@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
def test_a_step_never_waits_for_the_gpu(preset: str, how: Any, loss: str) -> None:
    settings = on_gpu(preset, loss=loss, compile=how)
    model = built(settings).cuda()
    optimizer, tokens = adamw(model, settings.training), batch(TIME).cuda()
    compute = objective(model, settings.training)
    for _ in range(3):  # compiles
        optimizer_step(model, optimizer, tokens, settings.training, loss=compute)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer_step(model, optimizer, tokens, settings.training, loss=compute)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# runs


@pytest.mark.parametrize("how", [False, True, "blocks"])
def test_runs(how: Any, corpus: Path, data: TokenData, tmp_path: Path) -> None:
    """As on the CPU, to rounding; stopped and resumed, to the last value."""
    found = []
    for device, precision in (("cpu", "fp32"), ("cuda", "bf16")):
        folder = RunFolder(tmp_path / device)
        compiled = how if device == "cuda" else False
        settings = tiny(corpus, device=device, precision=precision, compile=compiled)
        assert run(settings, folder, data) == "finished", manifest(folder).get("traceback")
        found.append([value[1] for value in values(folder) if value[0] in ("train_loss", "val_loss")])
    assert found[1] == pytest.approx(found[0], rel=0.02)

    told: list[int] = []
    folder = RunFolder(tmp_path / "resumed")
    settings = tiny(corpus, device="cuda", precision="bf16", compile=how)
    stopped = run(
        settings, folder, data, progress=lambda now: told.append(now.step), stop=lambda: told[-1] >= 5
    )
    assert stopped == "interrupted"
    assert run(settings, folder, data) == "finished"
    again = [value[1] for value in values(folder) if value[0] in ("train_loss", "val_loss")]
    assert again == pytest.approx(found[1], rel=1e-3)
