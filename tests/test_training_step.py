"""The objective in every precision, form of the loss and compilation; what a step keeps and launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from triton_processes import interpreted

from tnbench import registry
from tnbench.config import RunConfig
from tnbench.kernels import normalisation
from tnbench.model import LanguageModel, norms
from tnbench.model.mixers.softmax import BACKENDS
from tnbench.resolution import resolve
from tnbench.training.environment import autocast
from tnbench.training.optimizer import adamw, clip
from tnbench.training.step import objective, optimizer_step

pytestmark = pytest.mark.usefixtures("settled_process")

VOCABULARY, TIME = 97, 36
FAMILIES = [(preset, "v2") for preset in registry.names("preset")] + [("transnormerllm", "v1")]
every_family = pytest.mark.parametrize(("preset", "convention"), FAMILIES)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def config(preset: str = "transnormerllm", *, layers: int = 2, time: int = TIME, **keys: Any) -> RunConfig:
    training = {key: value for key, value in keys.items() if key != "convention"}
    return resolve(
        {"model.preset": preset, "model.convention": keys.get("convention", "v2"), "model.size": "0.1m"},
        {"model.width": 32, "model.heads": 4, "model.channel_width": 48, "model.layers": layers},
        {"data.context": time, "training.steps": 1, "training.batch_tokens": 2 * time},
        {f"training.{key}": value for key, value in training.items()},
    )


def built(settings: RunConfig) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(settings.model, VOCABULARY, settings.data.context).train()
    model.activation_checkpointing = settings.training.activation_checkpointing
    return model


def batch(time: int = TIME) -> Tensor:
    return torch.randint(VOCABULARY, (2, time + 1), generator=torch.Generator().manual_seed(1))


def outcome(settings: RunConfig) -> tuple[float, Tensor]:
    """The loss, and the gradients of all parameters in one vector."""
    model, tokens = built(settings), batch(settings.data.context)
    loss = objective(model, settings.training)(tokens[:, :-1], tokens[:, 1:])
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def near(found: tuple[float, Tensor], expected: tuple[float, Tensor], limit: float) -> bool:
    distance = (found[1] - expected[1]).norm() / expected[1].norm()
    return abs(found[0] - expected[0]) <= limit * expected[0] and float(distance) <= limit


# precision


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@every_family
@pytest.mark.parametrize("precision", DTYPES)
def test_no_activation_is_promoted(precision: str, preset: str, convention: str) -> None:
    """The residual stream, both parts of it, and what norms and mixers give, have the run's precision."""
    settings = config(preset, convention=convention, precision=precision)
    model = built(settings)
    seen: list[tuple[str, torch.dtype]] = []

    def note(name: str, module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            seen.append((name, tensor.dtype))

    for name, module in model.named_modules():
        parts = name.rpartition(".")[2]
        if module in list(model.blocks) or parts.endswith(("_norm", "_mixer")):
            module.register_forward_hook(partial(note, name))
    with autocast("cpu", precision):
        hidden = model.hidden(batch()[:, :-1])
    expected = DTYPES[precision]
    assert len(seen) >= 2 * 6 + 1
    assert {dtype for _, dtype in [*seen, ("hidden", hidden.dtype)]} == {expected}, seen
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@every_family
@pytest.mark.parametrize(("precision", "limit"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_is_near_fp32(preset: str, convention: str, precision: str, limit: float) -> None:
    found, exact = (outcome(config(preset, convention=convention, precision=p)) for p in (precision, "fp32"))
    assert found[0] != exact[0]
    assert near(found, exact, limit)


# norms with the sum in front of them


@pytest.mark.parametrize("norm", ["srmsnorm", "rmsnorm", "layernorm", "none", nn.Identity])
def test_sum_and_norm_in_one_are_the_two(
    norm: str | Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have a fused form use it, the others do without."""
    make: Any = registry.find("norm", norm).target if isinstance(norm, str) else norm
    module, x, branch = make(8), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    plain = norms.add_norm(module, x, branch)
    assert torch.equal(plain[1], x + branch)
    calls = []

    def form(*given: Any) -> Any:
        calls.append(given)
        return normalisation.reference

    monkeypatch.setattr(normalisation, "takes_kernels", lambda x: True)
    monkeypatch.setattr(normalisation, "_form", form)
    fused = norms.add_norm(module, x, branch)
    assert len(calls) == hasattr(module, "added") == (norm not in ("none", nn.Identity))
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b)
    assert norms.add_norm(module, x, None)[1] is x


# forms of the loss, compilation, checkpointing


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_forms_of_the_loss_agree(precision: str) -> None:
    found, plain = (outcome(config(precision=precision, loss=loss)) for loss in ("chunked", "logits"))
    assert near(found, plain, 1e-5 if precision == "fp32" else 0.01)


def compiled(settings: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[int, tuple[float, Tensor]]:
    """Graphs compiled for a forward pass without breaks, and what they compute; by the quick backend."""
    counter = CompileCounterWithBackend("aot_eager")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=counter))
        found = outcome(settings)
    return counter.frame_count, found


QUICK = ("transnormerllm", "v2")
others = [pytest.param(*family, marks=pytest.mark.slow) for family in FAMILIES if family != QUICK]


@pytest.mark.parametrize(("preset", "convention"), [QUICK, *others])
@pytest.mark.parametrize(
    ("how", "precision", "loss", "checkpointing"),
    [
        (True, "bf16", "chunked", True),
        pytest.param(True, "fp32", "logits", False, marks=pytest.mark.slow),
        pytest.param("blocks", "bf16", "logits", False, marks=pytest.mark.slow),
        pytest.param("blocks", "fp32", "chunked", True, marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(
    how: Any,
    precision: str,
    loss: str,
    checkpointing: bool,
    preset: str,
    convention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One graph of model and loss; of the blocks at most one for the first and one for each kind of mixer."""
    keys: dict[str, Any] = {
        "convention": convention,
        "precision": precision,
        "loss": loss,
        "activation_checkpointing": checkpointing,
    }
    graphs, found = compiled(config(preset, compile=how, **keys), monkeypatch)
    assert graphs == 1 if how is True else graphs <= 3
    assert near(found, outcome(config(preset, **keys)), 1e-5 if precision == "fp32" else 0.01)


def test_blocks_are_compiled_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has LRPE and no branch to add, the others differ in their decays alone."""
    settings = config(layers=12, compile="blocks")
    graphs, found = compiled(settings, monkeypatch)
    assert graphs == 2
    assert near(found, outcome(config(layers=12)), 1e-5)


@pytest.mark.slow
def test_compiled_with_the_kernels_in_it() -> None:
    interpreted("", "interpreted_training.py")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
@pytest.mark.parametrize("how", [True, "blocks"])
def test_compiled_by_the_default_backend(how: Any, preset: str) -> None:
    """Long enough for the chunked form of linear attention, and tokens left over."""
    keys: dict[str, Any] = {"time": 150, "precision": "bf16", "loss": "chunked"}
    assert near(outcome(config(preset, compile=how, **keys)), outcome(config(preset, **keys)), 0.02)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("loss", ["logits", "chunked"])
def test_checkpointing_keeps_less_and_changes_nothing(precision: str, loss: str) -> None:
    kept, found = [], []
    for checkpointing in (False, True):
        settings = config(layers=6, precision=precision, loss=loss, activation_checkpointing=checkpointing)
        found.append(outcome(settings))
        model, tokens = built(settings), batch()
        compute = objective(model, settings.training)
        with profile(profile_memory=True) as profiled:
            value = compute(tokens[:, :-1], tokens[:, 1:])
        kept.append(sum(event.self_cpu_memory_usage for event in profiled.key_averages()))  # type: ignore[attr-defined]
        del value
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert kept[1] < 0.5 * kept[0]


# the step


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    settings = config(loss="chunked", learning_rate=1e-3)
    results = []
    for micro in (None, 1):
        model = built(settings)
        optimizer = adamw(model, settings.training)
        loss = objective(model, settings.training)
        total, norm = optimizer_step(
            model, optimizer, batch(), settings.training, loss=loss, micro_sequences=micro
        )
        results.append((total.item(), norm.item()))
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize("loss", ["logits", "chunked"])
def test_a_step_never_waits_for_its_numbers(loss: str) -> None:
    """On tensors without numbers, anything that reads one raises an error."""
    settings = config(loss=loss, precision="bf16")
    with FakeTensorMode():
        model = built(settings)
        optimizer = adamw(model, settings.training)
        for _ in range(2):
            tokens = torch.zeros(2, TIME + 1, dtype=torch.long)
            optimizer_step(model, optimizer, tokens, settings.training, micro_sequences=1)


def test_clipping_takes_as_many_launches_for_many_tensors() -> None:
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for tensors in (3, 60):
        parameters = [nn.Parameter(torch.zeros(4)) for _ in range(tensors)]
        for parameter in parameters:
            parameter.grad = torch.ones(4)
        with Count() as mode:
            clip(parameters, 1.0)
        counts.append(mode.calls)
    assert counts[0] == counts[1]


def test_attention_back_ends_in_order_without_graph_breaks() -> None:
    """The context in which softmax attention runs on a GPU: compiled, and put back afterwards."""
    q = torch.randn(1, 2, 8, 4)
    before = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)

    def attend(q: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(BACKENDS["auto"], set_priority=True):
            return nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q), attend(q))
    assert torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True) == before
    assert [backend.name.split("_")[0] for backend in BACKENDS["auto"]] == [
        "CUDNN",
        "FLASH",
        "EFFICIENT",
        "MATH",
    ]
    for name in BACKENDS:
        mixer = {"name": "softmax", "backend": name}
        settings = resolve({"training.steps": 1, "model.preset": "transformer", "model.mixer": mixer})
        assert settings.model.mixer[0].parameters["backend"] == name
