"""One model in one mode, ready to be called: an optimizer step, a prefill, or one decoded token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnbench.config import RunConfig, check
from tnbench.model import LanguageModel
from tnbench.profiling.models import flops, peers

MODES = ("train", "prefill", "decode")
SEED = 0
LONGEST_PEER = 1 << 16
"""Positions that a foreign model is made ready for; more tokens than are ever timed."""


@dataclass(frozen=True)
class Spec:
    """What an arm is, as it travels to its process."""

    mode: str
    batch: int
    """Sequences of a step, of a prompt, of a decoded batch."""
    vocabulary: int
    config: RunConfig
    peer: str = ""
    limit: int | None = None
    """Bytes that it may use, None for all there are."""

    @property
    def context(self) -> int:
        return self.config.data.context

    @property
    def device(self) -> str:
        return self.config.training.device

    @property
    def together(self) -> int:
        """Sequences that are computed at a time: of a micro-batch in training."""
        training = self.config.training
        if self.mode != "train":
            return self.batch
        return (training.micro_batch_tokens or training.batch_tokens) // self.context

    @property
    def tokens(self) -> int:
        """Of one call."""
        return self.batch * (1 if self.mode == "decode" else self.context)

    def to_dict(self) -> dict[str, Any]:
        names = ("mode", "batch", "vocabulary", "peer", "limit")
        return {
            **{name: getattr(self, name) for name in names},
            "config": self.config.model_dump(mode="json"),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        return cls(**{**values, "config": check(RunConfig, values["config"], "")})


@dataclass
class Arm:
    """Ready to be called, any number of times, each call like the one before."""

    call: Callable[[], Any]
    read: Callable[[Any], Tensor]
    """What must be finite in the result of a call: the loss, or logits."""
    form: str
    """How it runs: `eager`, `compiled`, `graph` …"""
    parameters: int
    non_embedding: int
    flops: float
    """Of a call, by formula."""
    floor_bytes: float
    """What a call has to move at least."""
    state_bytes: int = 0
    """Of the recurrent states or the cache after `context` tokens."""


def build(spec: Spec) -> Arm:
    """Draw the weights on the device and make the call of the mode.

    Raises:
        peers.Unsupported: a foreign model that cannot run here.
    """
    torch.manual_seed(SEED)
    makers = {"train": _train, "prefill": _prefill, "decode": _decode}
    return makers[spec.mode](spec)


def _model(spec: Spec) -> tuple[nn.Module, dict[str, int]]:
    """The model, and its parameters: all, and those outside embedding and output layer."""
    model_config = spec.config.model
    if spec.peer:
        model = peers.retnet(
            model_config,
            spec.vocabulary,
            spec.context,
            spec.device,
            keeps_logits=spec.peer.endswith("-logits"),
        )
        total = sum(p.numel() for p in model.parameters())
        tables = 1 if model_config.tie_embeddings else 2
        outside = tables * spec.vocabulary * model_config.width
        return model, {"total": total, "non_embedding": total - outside}
    with torch.device(spec.device):
        ours = LanguageModel(model_config, spec.vocabulary, spec.context)
    return ours, ours.parameter_counts()


def _random_tokens(spec: Spec, *shape: int) -> Tensor:
    return torch.randint(spec.vocabulary, shape, device=spec.device)


def _formula(spec: Spec, model: nn.Module) -> float:
    if isinstance(model, LanguageModel):
        return flops.by_formula(model, spec.mode, spec.context, spec.batch)
    each = peers.flops_per_token(spec.config.model, spec.vocabulary)
    if spec.mode == "prefill":
        head = 2.0 * spec.config.model.width * spec.vocabulary
        return spec.tokens * each - spec.batch * (spec.context - 1) * head
    return spec.tokens * each * (3 if spec.mode == "train" else 1)


def _train(spec: Spec) -> Arm:
    """Forward, backward, clipping and AdamW, as `tnbench train` does them, on the same random tokens."""
    from tnbench.training.optimizer import adamw
    from tnbench.training.step import objective, optimizer_step

    training = spec.config.training
    model, counts = _model(spec)
    if isinstance(model, LanguageModel):
        model.activation_checkpointing = training.activation_checkpointing
        optimizer, loss = adamw(model, training), objective(model, training)
        form = {True: "compiled", False: "eager", "blocks": "compiled blocks"}[training.compile]
    else:
        optimizer, loss, form = _foreign_training(spec, model)
    batch = _random_tokens(spec, spec.batch, spec.context + 1)

    def call() -> Any:
        return optimizer_step(model, optimizer, batch, training, loss=loss, micro_sequences=spec.together)

    # AdamW reads gradient, weight and moments and writes the last three; the passes read the weights twice
    # and write the gradient once.
    moved = counts["total"] * 4 * (7 + 3)
    return Arm(
        call, lambda found: found[0], form, **_sizes(counts), flops=_formula(spec, model), floor_bytes=moved
    )


def _foreign_training(spec: Spec, model: nn.Module) -> tuple[torch.optim.Optimizer, Callable, str]:
    from tnbench.training.environment import autocast

    training = spec.config.training
    if training.precision == "bf16":
        peers.narrow_stream(model)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(spec.device, training.precision):
            return peers.training_loss(model, inputs, targets)

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, *vectors]
    betas = (training.beta1, training.beta2)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, fused=True), loss, "eager"


def _sizes(counts: Mapping[str, int]) -> dict[str, int]:
    return {"parameters": counts["total"], "non_embedding": counts["non_embedding"]}


def _prefill(spec: Spec) -> Arm:
    """The state and the last token's logits of a prompt."""
    model, counts = _inference(spec)
    tokens = _random_tokens(spec, spec.batch, spec.context)
    if isinstance(model, LanguageModel):
        ours: LanguageModel = model

        def call() -> Any:
            return ours.prefill(tokens, last_only=True)[0]

        read, state = _itself, _state_bytes(spec)
    else:

        def call() -> Any:
            return peers.prefilled(model, tokens)

        read, state = _logits, spec.batch * 4 * peers.state_values(spec.config.model)
    return Arm(
        torch.inference_mode()(call),
        read,
        "eager",
        **_sizes(counts),
        flops=_formula(spec, model),
        floor_bytes=_read_weights(model) + state,
        state_bytes=state,
    )


def _decode(spec: Spec) -> Arm:
    """The token at the end of `context`: the position stays, so that every call is alike."""
    from tnbench.evaluation.generation import Decoder

    model, counts = _inference(spec)
    if isinstance(model, LanguageModel):
        compiled = bool(spec.config.training.compile)
        decoder = Decoder(model, spec.batch, spec.context, graph=False, compiled=compiled)
        call, state = decoder.repeatable(spec.context - 1), decoder.state_bytes
        words = ["compiled"] * compiled + ["graph"] * (spec.device == "cuda")
        form, read = " ".join(words) or "eager", _itself
    else:
        call, form, read = _foreign_token(spec, model), "eager", _logits
        state = spec.batch * 4 * peers.state_values(spec.config.model)
    return Arm(
        call,
        read,
        form,
        **_sizes(counts),
        flops=_formula(spec, model),
        floor_bytes=_read_weights(model) + state,
        state_bytes=state,
    )


def _foreign_token(spec: Spec, model: nn.Module) -> Callable[[], Any]:
    """One token after another: the cost of a token of a model of constant state is the same everywhere."""
    token = _random_tokens(spec, spec.batch)
    with torch.inference_mode():
        peers.ready_to_decode(model, LONGEST_PEER)
        state = peers.prefilled(model, _random_tokens(spec, spec.batch, 64)).past_key_values

    def call() -> Any:
        return peers.next_token(model, token, state)

    return torch.inference_mode()(call)


def _inference(spec: Spec) -> tuple[nn.Module, dict[str, int]]:
    """The model in its inference precision."""
    from tnbench.evaluation.generation import DTYPES, inference_model

    model, counts = _model(spec)
    precision = spec.config.training.precision
    if isinstance(model, LanguageModel):
        return inference_model(model, precision), counts
    return model.to(DTYPES[precision]).eval().requires_grad_(False), counts


def _state_bytes(spec: Spec) -> int:
    """Of states and caches after `context` tokens, each in its own dtype."""
    from tnbench.evaluation.generation import inference_model

    with torch.device("meta"):
        model = LanguageModel(spec.config.model, spec.vocabulary, spec.context)
        state = inference_model(model, spec.config.training.precision).allocate(spec.batch, spec.context)
    return sum(part.nbytes for layer in state.layers for part in layer)


def _read_weights(model: nn.Module) -> int:
    """Bytes of the weights that a forward pass reads whole: not of an embedding beside an untied output."""
    total = sum(p.nbytes for p in model.parameters())
    untied = isinstance(model, LanguageModel) and model.head is not None
    return total - (model.embedding.weight.nbytes if untied and isinstance(model, LanguageModel) else 0)


def _itself(found: Any) -> Tensor:
    return found


def _logits(found: Any) -> Tensor:
    return found.logits
