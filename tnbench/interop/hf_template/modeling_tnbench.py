"""A language model that tnbench has trained, in plain PyTorch, for `AutoModelForCausalLM`.

It is composed from the dictionary in config.json. Weights have the names that they have in tnbench.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .components_tnbench import CHANNELS, EMBEDDING_POSITION, NORMS, LearnedAbsolute, build
from .configuration_tnbench import TnbenchConfig
from .mixers_tnbench import Place, State, mixer


class TnbenchCache(Cache):
    """What is kept of the tokens seen so far: for each block, the state of its token mixer.

    It is of constant size, but for softmax attention, of which the keys and values of all tokens are kept.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.states: list[State] = []
        self.seen = 0
        """Tokens, padding included."""
        self.pads: Tensor | None = None
        """(batch,), padding on the left of each sequence; None for none."""
        self.usable = True
        """False once a sequence with padding behind it has been read: the state counts it as tokens."""

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"TnbenchCache({self.seen} tokens, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(part.nbytes for state in self.states for part in state)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier versions of transformers

    def _each(self, change: Any) -> None:
        self.states = [tuple(change(part) for part in state) for state in self.states]
        self.pads = None if self.pads is None else change(self.pads)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each(lambda part: part.index_select(0, beam_idx.to(part.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda part: part[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda part: part.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        self.states, self.seen, self.pads, self.usable = [], 0, None, True

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError("a recurrent state cannot forget single tokens: compute it again from the start")


class Block(nn.Module):
    """X ← X + Mixer(Norm(X));  X ← X + Channel(Norm(X))."""

    def __init__(self, composition: dict[str, Any], layer: int) -> None:
        super().__init__()
        width, inner = composition["width"], composition["channel_width"]
        self.token_norm = build(NORMS, composition["token_norm"], width)
        self.token_mixer = mixer(composition, layer)
        self.channel_norm = build(NORMS, composition["channel_norm"], width)
        self.channel_mixer = build(CHANNELS, composition["channel"], width, inner)

    def forward(
        self, x: Tensor, place: Place, state: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        mixed, state = self.token_mixer(self.token_norm(x), place, state, keep)
        x = x + mixed
        return x + self.channel_mixer(self.channel_norm(x)), state


class TnbenchForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, blocks, final norm, output layer."""

    config_class = TnbenchConfig
    base_model_prefix = ""
    _no_split_modules: ClassVar = ["Block"]
    _is_stateful = True
    _tied_weights_keys: ClassVar = {"head.weight": "embedding.weight"}
    # Small, and the recurrence adds their errors up: in 16 bits, only matrices and embeddings are rounded.
    _keep_in_fp32_modules_strict: ClassVar = [
        "position",
        "decay",
        "token_norm",
        "channel_norm",
        "inner_norm",
        "final_norm",
    ]

    def __init__(self, config: TnbenchConfig) -> None:
        super().__init__(config)
        composition = config.composition
        width, absolute = composition["width"], composition["position"]["name"] == EMBEDDING_POSITION
        self.scale = math.sqrt(width) if composition["scale_embeddings"] else 1.0
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.position = LearnedAbsolute(width, config.max_position_embeddings) if absolute else None
        self.blocks = nn.ModuleList(Block(composition, layer) for layer in range(composition["layers"]))
        self.final_norm = build(NORMS, composition["final_norm"], width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LearnedAbsolute):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: `forward` makes the cache."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: Any) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: TnbenchCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token after each one.

        Args:
            input_ids: (batch, time), tokens that follow on what `past_key_values` has seen.
            attention_mask: (batch, tokens seen + time), 0 for padding, which may stand on the left. On the
                right it may stand too, but nothing can be generated from there.
            past_key_values: the cache of an earlier call, which is updated.
            inputs_embeds: (batch, time, width) in place of `input_ids`.
            labels: (batch, time), the tokens themselves; -100 where there is no loss.
            use_cache: whether a cache is returned; by default as configured, and not in training.
            logits_to_keep: how many logits from the end, 0 for all; or the indices of those wanted.

        Raises:
            ValueError: an input that does not fit, or that the model does not take.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        unknown = [name for name, value in others.items() if value not in (None, False)]
        if set(unknown) - {"num_items_in_batch"}:
            raise ValueError(f"the model does not take {unknown[0]}")
        if not isinstance(past_key_values, TnbenchCache | None):
            raise ValueError(f"past_key_values is a {type(past_key_values).__name__}, not a TnbenchCache")
        keep = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if past_key_values is not None else TnbenchCache()
        place, usable = self._place(x, attention_mask, cache)
        x = x * self.scale
        if self.position is not None:
            x = self.position(x, place.steps)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        before = cache.states or [None] * len(self.blocks)
        states = []
        for block, state in zip(self.blocks, before, strict=True):
            x, state = block(x, place, state, keep)
            states.append(state)
        if keep:
            cache.states, cache.seen, cache.pads = states, place.seen + x.shape[1], place.pads
            cache.usable = usable
        chosen = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(self.final_norm(x[:, chosen]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **others)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if keep else None)

    def _place(self, x: Tensor, mask: Tensor | None, cache: TnbenchCache) -> tuple[Place, bool]:
        """Where tokens stand, and whether the state after them can be continued."""
        seen, time = cache.seen, x.shape[1]
        if not cache.usable:
            raise ValueError(
                "the cache has read sequences with padding on their right, which nothing can follow on; pad "
                "on the left (tokenizer.padding_side = 'left')"
            )
        pads, usable = cache.pads, True
        if mask is not None and (pads is not None or not seen or time > 1):  # else, a step adds no padding
            if mask.shape != (x.shape[0], seen + time):
                raise ValueError(
                    f"attention_mask must be (batch, tokens seen + time) = {(x.shape[0], seen + time)}, got "
                    f"{tuple(mask.shape)}"
                )
            pads, usable = self._padding(mask.to(x.device).bool())
        steps = torch.arange(seen, seen + time, device=x.device)[None]
        place = Place(seen, steps, None, None)
        if pads is not None:
            steps = steps - pads[:, None]
            place = Place(seen, steps.clamp(min=0), pads, steps >= 0)
        if self.position is not None:
            limit = len(self.position.weight)
            last = seen + time if pads is None else int(steps.max()) + 1
            if last > limit:
                raise ValueError(f"learned absolute positions end at {limit}, asked for {last}")
        return place, usable

    @staticmethod
    def _padding(real: Tensor) -> tuple[Tensor | None, bool]:
        """Padding on the left of each sequence (batch,), or None; and whether there is none on the right."""
        if real.all():
            return None, True
        begun = real.cumsum(-1) > 0
        if (begun[:, :-1] & ~real[:, :-1] & real[:, 1:]).any():
            raise ValueError("attention_mask has zeros between tokens; padding stands before or behind them")
        pads = (~begun).sum(-1)
        return (pads if pads.any() else None), bool(real[:, -1].all())
