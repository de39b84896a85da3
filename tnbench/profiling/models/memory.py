"""Peak memory of a model in training, prefill or decoding, predicted without running it or having its memory.

The program itself, the same that trains and generates, runs on fake tensors for models of a few layers, and
the bytes alive are followed (`tracing`; `fused` for what torch.compile makes of it). Peaks are taken phase by
phase: at the first and last layer of each span of alike layers, at the loss, at the update. One more layer
adds the same bytes to a phase, however many there are, so that two traces tell the peak of any depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_iter

from tnbench.config import ModelConfig, RunConfig, TrainingConfig
from tnbench.evaluation.generation import DTYPES
from tnbench.model import LanguageModel
from tnbench.model.lm import BlockCall
from tnbench.profiling.models.tracing import BLOCK, LIBRARIES, Live, Parts, pretend, replaced
from tnbench.training import losses
from tnbench.training.environment import autocast
from tnbench.training.optimizer import adamw
from tnbench.training.step import Objective, objective, optimizer_step

Mode = Literal["train", "prefill", "decode"]
MODES = ("train", "prefill", "decode")
FEW = 2
"""Layers of each span in the smaller of the two traces: one that is first and one that is last."""
LONG = 4096
"""Tokens from which peaks on a CPU rise in a straight line: its linear attention walks chunk by chunk, which
takes long to trace for long contexts."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they hold."""

    parameters: int
    """Weights and buffers."""
    gradients: int
    """Of parameters, at that moment."""
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """Kept for the backward pass or temporary, tokens and the libraries' workspace included."""
    state: int
    """Recurrent states or cache."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, field.name) for field in fields(self))


def predict(
    config: RunConfig, vocab_size: int, mode: Mode, *, batch: int, device: Literal["cuda", "cpu"]
) -> Memory:
    """Peak memory of one call: an optimizer step, a prefill with the last token's logits, a decoded token.

    On CUDA it is what torch.cuda.max_memory_allocated tells, without the context and unused blocks; on a CPU
    the bytes of tensors. For `prefill` and `decode`, weights are in `training.precision`, and a cache has
    room for the context.

    Args:
        config: the model, `data.context` tokens in a sequence, and `training`'s precision, loss, compile and
            activation checkpointing. Gradients are kept from one micro-batch to the next if
            `training.micro_batch_tokens` is less than `training.batch_tokens`.
        vocab_size: tokens in the vocabulary.
        mode: `train`, `prefill` or `decode`.
        batch: sequences; for `train`, of a micro-batch.
        device: where it would run; for `cuda`, with the kernels of the GPU that is here, or of an H100.

    Raises:
        ValueError: an unknown mode or device, or no sequence.
    """
    if mode not in MODES or device not in BLOCK or batch < 1:
        raise ValueError(
            f"mode {mode!r}, device {device!r}, batch {batch}: known are {', '.join(MODES)}; "
            f"{', '.join(BLOCK)}; at least 1 sequence"
        )
    context = config.data.context

    def phases_at(tokens: int) -> dict[Any, Memory]:
        at: Any = at_context(config, tokens)  # frozen, so that it can be looked up
        return _phases(at, vocab_size, mode, batch, device)

    if device == "cuda" or mode == "decode" or context <= 2 * LONG:
        phases = phases_at(context)
    else:
        near, far = phases_at(LONG), phases_at(2 * LONG)
        phases = {
            phase: _extended(near[phase], far[phase], context - LONG, LONG) for phase in near if phase in far
        }
    return max(phases.values(), key=lambda memory: memory.total)


def at_context(config: RunConfig, context: int) -> RunConfig:
    """The configuration at another context; its `batch_tokens`, which `predict` ignores, need not suit it."""
    return config.model_copy(update={"data": config.data.model_copy(update={"context": context})})


@lru_cache(256)
def _phases(config: RunConfig, vocab_size: int, mode: str, batch: int, device: str) -> dict[Any, Memory]:
    """The peak of each phase."""
    layers, spans = config.model.layers, len(config.model.mixer)
    few = FEW * spans + layers % spans
    if layers <= few + spans:
        return _trace(config, layers, vocab_size, mode, batch, device)
    less = _trace(config, few, vocab_size, mode, batch, device)
    more = _trace(config, few + spans, vocab_size, mode, batch, device)
    return {
        phase: _extended(less[phase], more[phase], layers - few, spans) for phase in less if phase in more
    }


def _extended(less: Memory, more: Memory, distance: int, step: int) -> Memory:
    """On the line through `less` and, a step further, `more`: what lies at a distance from `less`."""
    values = {field.name: getattr(less, field.name) for field in fields(Memory)}
    return Memory(**{name: a + (getattr(more, name) - a) * distance // step for name, a in values.items()})


def _trace(
    config: RunConfig, layers: int, vocab_size: int, mode: str, batch: int, device: str
) -> dict[Any, Memory]:
    """The peak of each phase for a model of so many layers."""
    shallow = config.model.model_copy(update={"layers": layers})
    config = config.model_copy(update={"model": shallow})
    with pretend(device), FakeTensorMode() as fake, Live(BLOCK[device]) as live:
        live.kind = "parameters"
        model = LanguageModel(shallow, vocab_size, config.data.context)
        moments = 0
        if mode == "train":
            live.kind = "activations"
            moments = _train(config, model, batch, device, live, fake)
        else:
            _for_inference(model, DTYPES[config.training.precision])
            live.kind = "activations"
            _infer(config, model, batch, live, mode)
        peaks = dict(live.peaks)
    del peaks["begin"]
    # The first step has no moments yet when it begins; all others do.
    return {
        _role(phase, config.model): _memory(parts | {"optimizer": moments}, device)
        for phase, parts in peaks.items()
    }


def _memory(parts: Parts, device: str) -> Memory:
    values = {field.name: parts.get(field.name, 0) for field in fields(Memory)}
    values["activations"] += LIBRARIES[device]
    return Memory(**values)


def _role(phase: Any, model: ModelConfig) -> Any:
    """The same for phases of models of different depth that correspond: (what, span, first or last)."""
    if not isinstance(phase, tuple):
        return phase
    what, layer = phase
    spans, layers = len(model.mixer), model.layers
    span = layer * spans // layers
    inside = [n for n in range(layers) if n * spans // layers == span]
    return (what, span, "first" if layer == inside[0] else "last" if layer == inside[-1] else layer)


def _train(
    config: RunConfig, model: LanguageModel, batch: int, device: str, live: Live, fake: FakeTensorMode
) -> int:
    """One optimizer step; gives the bytes of the optimizer's state."""
    training = _as_run(config, batch, device)
    recomputes = training.activation_checkpointing
    model.activation_checkpointing = recomputes and not training.compile
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: live.label(_gradient(p), "gradients"))
    optimizer = adamw(model, training)
    optimizer.register_step_pre_hook(lambda *_: _begin_update(live))
    whole = training.compile is True
    blocks = _Blocks(model, live)

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        from tnbench.profiling.models.fused import Compiled

        stands = Compiled(function, model, live, fake, phases=whole, checkpointed=recomputes)
        return stands if whole else blocks.followed(stands)

    with replaced(torch, compile=compiled):
        loss = objective(model, training)
    if recomputes and config.training.compile is True and losses.form(training, model.vocab_size) == "logits":
        loss = _apart(model, training, compiled(model.apply_block), live, fake)
    if not training.compile:
        model.apply_block = blocks.followed(model.apply_block)  # type: ignore[method-assign]

    def marked(inputs: Tensor, targets: Tensor) -> Tensor:
        live.mark("forward")
        return loss(inputs, targets)

    sequences = batch * (2 if training.micro_batch_tokens != training.batch_tokens else 1)
    tokens = torch.zeros(sequences, config.data.context + 1, dtype=torch.int64)
    optimizer_step(model, optimizer, tokens, training, loss=marked, micro_sequences=batch)
    return live.now["optimizer"]


def _apart(
    model: LanguageModel, training: TrainingConfig, blocks: BlockCall, live: Live, fake: FakeTensorMode
) -> Objective:
    """A compiled step whose blocks are recomputed: the blocks and the loss, each for itself."""
    from tnbench.profiling.models.fused import Compiled

    def cross_entropy(hidden: Tensor, targets: Tensor) -> Tensor:
        with autocast(training.device, training.precision):
            logits = F.linear(hidden, model.output_weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    last = Compiled(cross_entropy, model, live, fake, phases=False, checkpointed=False)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(training.device, training.precision):
            hidden = model.hidden(inputs, apply=blocks)
        return last(hidden, targets)

    return loss


def _as_run(config: RunConfig, batch: int, device: str) -> TrainingConfig:
    """The training part of a run with micro-batches of `batch` sequences."""
    training, micro = config.training, batch * config.data.context
    accumulates = (training.micro_batch_tokens or training.batch_tokens) < training.batch_tokens
    changes: dict[str, Any] = {
        "device": device,
        "micro_batch_tokens": micro,
        "batch_tokens": 2 * micro if accumulates else micro,
    }
    if training.loss == "liger":  # chunks of logits too, no larger ones
        changes["loss"] = "chunked"
    if training.compile and training.activation_checkpointing:
        changes["compile"] = "blocks"  # what is recomputed is a block in either case
    return training.model_copy(update=changes)


def _begin_update(live: Live) -> None:
    live.kind = "optimizer"
    live.mark("update")


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _for_inference(model: LanguageModel, dtype: torch.dtype) -> None:
    """As `tnbench.evaluation.generation.inference_model`, in a way that fake tensors can go."""
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))


def _infer(config: RunConfig, model: LanguageModel, batch: int, live: Live, mode: str) -> None:
    """A prefill of the context, or the token at its end."""
    context = config.data.context
    blocks = _Blocks(model, live)
    with torch.no_grad():
        if mode == "prefill":
            tokens = torch.zeros(batch, context, dtype=torch.int64)
            blocks.follow("extend")
            live.mark("forward")
            model.prefill(tokens, last_only=True)
            return
        live.kind = "state"
        state = model.allocate(batch, context)
        live.kind = "activations"
        assert state.position is not None
        token = torch.zeros(batch, dtype=torch.int64)
        blocks.follow("decode")
        live.mark("forward")
        model.decode_at(token, state.layers, state.position, context - 1)


class _Blocks:
    """Tells a `Live` when the blocks of a model begin."""

    def __init__(self, model: LanguageModel, live: Live) -> None:
        self.model, self.live = model, live
        self.number = {id(block): number for number, block in enumerate(model.layers)}

    def followed(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """`apply(block, x, branch)` with a phase of each block, forward and backward."""

        def call(block: Any, x: Tensor, branch: Tensor | None) -> Any:
            number = self.number[id(block)]
            self.live.mark(("forward", number))
            found = apply(block, x, branch)
            found[1].register_hook(lambda _: self.live.mark(("backward", number)))
            if number + 1 == len(self.number):
                self.live.mark("loss")
            return found

        return call

    def follow(self, method: str) -> None:
        """A phase of each block's method, whose last result is its state if it is new."""
        for block in self.model.layers:
            setattr(block, method, self._extended(block, getattr(block, method)))

    def _extended(self, block: Any, method: Callable[..., Any]) -> Callable[..., Any]:
        number = self.number[id(block)]

        def call(*args: Any) -> Any:
            self.live.mark(("forward", number))
            found = method(*args)
            for kept in tree_iter(found[2:]):
                self.live.label(kept, "state")
            if number + 1 == len(self.number):
                self.live.mark("logits")
            return found

        return call
