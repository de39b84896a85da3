"""Texts that follow on many contexts of different lengths, decoded together.

The rows of a batch begin at the same position. All are read up to the end of the shortest context; from there
on a row is given the tokens of its own context, one by one, until it has none left and its own choices
follow. Nothing is padded, so that a row is what it would be alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tnbench.data import Tokenizer
from tnbench.evaluation.generation import Decoder
from tnbench.evaluation.halving import in_halves
from tnbench.evaluation.sampling import Sampler
from tnbench.model import LanguageModel

ROWS = {"cpu": 16, "cuda": 128}
"""Rows of a batch, at most."""
SPREAD = 32
"""Tokens by which contexts of a batch differ in length, at most."""


TOKENS = 256
"""Of a text at most, where nothing is said."""


class Continued(NamedTuple):
    """A context to go on from."""

    context: tuple[int, ...]
    """At least one token."""
    until: tuple[str, ...] = ()
    """The text ends before the first of these."""
    tokens: int = TOKENS
    """Made at most."""
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def continuations(
    model: LanguageModel,
    tokenizer: Tokenizer,
    requests: Sequence[Continued],
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
) -> Iterator[tuple[int, str]]:
    """(index of the request, its text), batch by batch, in the order in which they are made.

    Args:
        model: as `inference_model` gives it.
        max_length: tokens of a context and its text together, at most: contexts lose their beginning, but for
            one token.
        batch_tokens: tokens of a batch's contexts, at most (a single one may be longer).

    Raises:
        ValueError: an empty context, a text that may be as long as `max_length`, sampling values that no
            distribution has, or logits that are not finite.
    """
    cut = [_cut(request, max_length) for request in requests]
    order = sorted(
        range(len(cut)), key=lambda index: (cut[index].tokens, len(cut[index].context)), reverse=True
    )
    place = model.embedding.weight.device.type
    made = partial(_together, model, tokenizer)
    batch: list[int] = []
    for index in order:
        longest = len(cut[batch[0]].context) if batch else 0
        if batch and (
            len(batch) >= ROWS.get(place, ROWS["cpu"])
            or longest - len(cut[index].context) > SPREAD
            or cut[batch[0]].tokens > 2 * cut[index].tokens
            or (batch_tokens is not None and longest * (len(batch) + 1) > batch_tokens)
        ):
            yield from zip(batch, in_halves([cut[n] for n in batch], made), strict=True)
            batch = []
        batch.append(index)
    if batch:
        yield from zip(batch, in_halves([cut[n] for n in batch], made), strict=True)


def _cut(request: Continued, max_length: int | None) -> Continued:
    if not request.context:
        raise ValueError("a context needs at least one token")
    if max_length is None:
        return request
    if request.tokens >= max_length:
        raise ValueError(
            f"texts of up to {request.tokens} tokens are asked for, and {max_length} are read at a time, "
            "which leaves no room for a question; give a larger --max-length, or a smaller max_gen_toks in "
            "the task's generation_kwargs"
        )
    return request._replace(context=request.context[-(max_length - request.tokens) :])


@torch.inference_mode()
def _together(model: LanguageModel, tokenizer: Tokenizer, requests: Sequence[Continued]) -> list[str]:
    shortest = min(len(request.context) for request in requests)
    capacity = max(len(request.context) + request.tokens for request in requests)
    decoder = Decoder(model, len(requests), capacity)
    samplers = [
        Sampler(
            1, temperature=request.temperature, top_k=request.top_k, top_p=request.top_p, seed=request.seed,
            device=decoder.device,
        )
        for request in requests
    ]  # fmt: skip
    greedy = all(request.temperature == 0 for request in requests)

    def chosen(logits: Tensor) -> list[int]:
        if greedy:
            return logits.argmax(-1).tolist()
        rows = [sampler(row[None]) for sampler, row in zip(samplers, logits, strict=True)]
        return torch.cat(rows).tolist()

    made: list[list[int]] = [[] for _ in requests]
    texts: list[str | None] = [None] * len(requests)
    logits = decoder.prefill(torch.tensor([request.context[:shortest] for request in requests]))
    if not bool(logits.isfinite().all()):
        raise ValueError("the model's logits are not finite: its training has diverged")
    position = shortest
    while True:
        tokens = chosen(logits)
        for row, request in enumerate(requests):
            if position < len(request.context):
                tokens[row] = request.context[position]
            elif texts[row] is None:
                texts[row] = _ended(tokenizer, request, made[row], tokens[row])
        if all(text is not None for text in texts):
            return [text or "" for text in texts]
        logits = decoder.step(torch.tensor(tokens))
        position += 1


def _ended(tokenizer: Tokenizer, request: Continued, made: list[int], token: int) -> str | None:
    """The whole text, if this token is its last one; else None. The token joins those that were made."""
    if request.tokens < 1:
        return ""
    if token != tokenizer.end_of_text:
        made.append(token)
    text = tokenizer.decode(made)
    found = [place for stop in request.until if stop and (place := text.find(stop)) >= 0]
    if found:
        return text[: min(found)]
    return text if token == tokenizer.end_of_text or len(made) >= request.tokens else None
