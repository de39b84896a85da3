"""Generation: a model in its inference precision, prefill, and decoding in buffers that stay where they are.

decoder = Decoder(inference_model(model, "bf16"), batch=4, capacity=300)
for tokens in generate(decoder, prompt, Sampler(4, device="cuda"), tokens=100):
    ...                                                               # (4,) on the host, as they are made
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tnbench.model import LanguageModel

PREFILL_TOKENS = 8192
"""Tokens of all sequences in one pass of a prefill: enough for a GPU's matrix products, and a bound on what
the pass needs beside the state."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 3  # calls before a capture: compilation, and libraries that allocate when they are first used


def inference_model(model: LanguageModel, precision: Literal["fp32", "bf16", "fp16"]) -> LanguageModel:
    """The model itself, for inference: its matrices and embeddings in `precision`, and no gradients.

    Decays, angles θ, learned positions and the norms' gains stay in fp32, as do states and the norms' sums:
    they are small, and the recurrence adds their errors up.

    Raises:
        ValueError: no such precision.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: known are {', '.join(DTYPES)}")
    model.float()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to(DTYPES[precision])
    return model.eval().requires_grad_(False)


class Decoder:
    """Prefill and decoding of a model for a fixed number of sequences of one length.

    On a GPU, a step of a model of constant state is captured as a CUDA graph once and replayed token after
    token. Attention over a growing cache would be frozen at one length, so it runs eagerly.

    Args:
        model: in evaluation mode, as `inference_model` gives it.
        batch: sequences.
        capacity: the most tokens that a sequence will have; models of constant state take any number.
        graph: whether steps are a CUDA graph; by default, where that can be.
        compiled: whether torch.compile is applied to the step; products with few rows become kernels that
            are tuned to read the weights fast, which takes a minute or more.

    Raises:
        ValueError: a CUDA graph is asked for and cannot be.
    """

    def __init__(
        self,
        model: LanguageModel,
        batch: int,
        capacity: int,
        *,
        graph: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.batch = model, batch
        self.device = model.embedding.weight.device
        self.state = model.allocate(batch, capacity)
        assert self.state.position is not None
        self._position: Tensor = self.state.position
        self.asynchronous = self.device.type == "cuda"
        """Whether a step is still under way when `step` returns."""
        self._token = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self._compute: Callable[..., Tensor] = model.decode_at
        if compiled:
            self._compute = torch.compile(
                model.decode_at, fullgraph=True, options={"coordinate_descent_tuning": True}
            )
        possible = self.device.type == "cuda" and model.constant_state
        if graph and not possible:
            reason = (
                "the model is not on a GPU" if model.constant_state else "its cache grows with every token"
            )
            raise ValueError(f"no CUDA graph of a step can be replayed token after token: {reason}")
        self._graph: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        if possible if graph is None else graph:
            self._graph = self._capture(self._advance)
            self.reset()

    @property
    def tokens(self) -> int:
        """Tokens of each sequence seen so far."""
        return self.state.tokens

    @property
    def state_bytes(self) -> int:
        """Bytes of all states and caches, filled or not."""
        return sum(part.nbytes for layer in self.state.layers for part in layer)

    def reset(self) -> None:
        """Begin again, with an empty state."""
        for layer in self.state.layers:
            for part in layer:
                part.zero_()
        self._set(0)

    def seek(self, tokens: int) -> None:
        """Stand after `tokens` tokens that nobody has computed, for measuring.

        The state is filled with normal values: on zeros, a GPU would draw less power than it does on texts.

        Raises:
            ValueError: more tokens than the state can hold.
        """
        self._set(0)
        self.model.require_room(self.state, tokens)
        generator = torch.Generator(self.device).manual_seed(0)
        for layer in self.state.layers:
            for part in layer:
                part.normal_(generator=generator)
        self._set(tokens)

    def _set(self, tokens: int) -> None:
        self.state.tokens = tokens
        self._position.fill_(tokens)

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> Tensor:
        """Read tokens that follow on what was seen; long ones in segments of `PREFILL_TOKENS`.

        Args:
            tokens: (batch, time), or (1, time) for all sequences alike.

        Returns:
            Logits (batch, vocabulary) of the last token.

        Raises:
            ValueError: no tokens, or more than the state can hold.
        """
        tokens = tokens.to(self.device).expand(self.batch, -1)
        if not tokens.shape[1]:
            raise ValueError("there is no token to begin with")
        self.model.require_room(self.state, tokens.shape[1])
        *first, last = tokens.split(max(1, PREFILL_TOKENS // self.batch), dim=1)
        for piece in first:
            self.model.prefill(piece, self.state, last_only=True)
        logits, _ = self.model.prefill(last, self.state, last_only=True)
        return logits[:, 0]

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Logits (batch, vocabulary) after one more token (batch,); the next step may write over them.

        Raises:
            ValueError: the state can hold no more.
        """
        self.model.require_room(self.state, 1)
        self._token.copy_(token)
        if self._graph is None:
            logits = self._advance()
        else:
            graph, logits = self._graph
            graph.replay()
        self.state.tokens += 1
        return logits

    def _advance(self) -> Tensor:
        logits = self._in_place(self.state.tokens)
        self._position += 1
        return logits

    def _in_place(self, tokens: int) -> Tensor:
        return self._compute(self._token, self.state.layers, self._position, tokens)

    @torch.no_grad()
    def repeatable(self, filled: int, *, graph: bool | None = None) -> Callable[[], Tensor]:
        """One step after `filled` tokens, to be called any number of times, for measuring.

        The position stays, so that a cache keeps its length: on a GPU a CUDA graph of a step can be had here
        for every model.

        Args:
            filled: tokens seen; the state is filled as `seek` does.
            graph: whether the step is a CUDA graph; by default, on a GPU.

        Returns:
            A function that gives logits (batch, vocabulary).

        Raises:
            ValueError: more tokens than the state can hold, or a CUDA graph without a GPU.
        """
        on_gpu = self.device.type == "cuda"
        if graph and not on_gpu:
            raise ValueError("a CUDA graph needs a model on a GPU")
        self.seek(filled)
        self.model.require_room(self.state, 1)
        if not (on_gpu if graph is None else graph):
            return torch.no_grad()(lambda: self._in_place(filled))
        return partial(self._replay, *self._capture(lambda: self._in_place(filled)))

    def _replay(self, graph: torch.cuda.CUDAGraph, logits: Tensor) -> Tensor:
        """A method: what holds it holds the model and the state, which the graph reads."""
        graph.replay()
        return logits

    @torch.no_grad()
    def _capture(self, call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A CUDA graph of a call and the tensor in which each replay leaves its result."""
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    call()
                    self._set(self.state.tokens)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = call()
        return graph, logits


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompt: Tensor,
    sample: Callable[[Tensor], Tensor],
    *,
    tokens: int,
    end: int | None = None,
) -> Iterator[Tensor]:
    """Tokens that follow on a prompt, as they are made.

    On a GPU the next step is on its way while a token is handed out, so that neither waits for the other.

    Args:
        decoder: continued from where it stands.
        prompt: (batch, time), or (1, time) for all sequences alike.
        sample: tokens (batch,) from logits (batch, vocabulary), such as a `Sampler`.
        tokens: how many are made at most; the last one is not read by the decoder.
        end: the token after which a sequence has ended: from then on its row repeats it. When all have ended,
            nothing more is made.

    Yields:
        (batch,) int64 on the host.

    Raises:
        ValueError: prompt and tokens are more than the decoder's state can hold, or the model's logits are
            not finite.
    """
    if tokens < 1:
        return
    decoder.model.require_room(decoder.state, prompt.shape[1] + tokens - 1)
    logits = decoder.prefill(prompt)
    if not bool(logits.isfinite().all()):
        raise ValueError("the model's logits are not finite: its training has diverged")
    token, ended = sample(logits), torch.zeros(decoder.batch, dtype=torch.bool)
    for left in reversed(range(tokens)):
        arrived, following = _fetch(token), None
        if left and decoder.asynchronous:
            following = sample(decoder.step(token))
        here = arrived()
        if end is not None:
            here = here.masked_fill(ended, end)
            ended |= here == end
        yield here
        if not left or ended.all():
            return
        token = sample(decoder.step(token)) if following is None else following


def _fetch(token: Tensor) -> Callable[[], Tensor]:
    """Begin to copy to the host; the result waits for that copy alone, not for what is launched after it."""
    if not token.is_cuda:
        return lambda: token
    copy: Any = token.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def wait() -> Tensor:
        event.synchronize()
        return copy

    return wait
