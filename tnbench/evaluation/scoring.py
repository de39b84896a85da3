"""Log-likelihoods of continuations: what is shared between requests is computed once.

A multiple-choice question is one context and several continuations, and a few-shot prompt is the same for
many questions. Requests are sorted so that this shows, and a batch is computed in up to three passes:

    shared    the tokens with which all contexts of the batch begin, once, for one row
    contexts  each distinct context, up to the length of the shortest of them
    endings   what is left of each context, and its continuation, once for each request

Where continuations are so long beside their contexts that this saves little, whole requests of about one
length are computed together in one pass. Between passes, the rows of the state are copied to the rows of
the next one. All rows of a pass begin at the same position, and only the endings are padded, on the right,
where a causal model does not see it: the result is that of a model that reads every request alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from tnbench.evaluation.halving import in_halves
from tnbench.model import LanguageModel
from tnbench.model.lm import State

BATCH_TOKENS = {"cpu": 4096, "cuda": 1 << 16}
"""Tokens of a pass, at most (a single request may be longer)."""
LOGITS = 1 << 26
"""Logits at a time, at most (to a row)."""
SHARED = 32
"""Tokens from which a common beginning is worth a pass of its own."""
SAVING = 1.5
"""Contexts are computed once for all their continuations if that saves this factor in tokens, at least."""
PASS = {"cpu": 96, "cuda": 4096}
"""Tokens that take about as long as it takes to begin a pass: a batch ends where padding costs more."""


class Request(NamedTuple):
    """Tokens that are given, at least one, and those that are scored, at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    """Of a continuation."""

    nats: float
    """log p(continuation | context), a sum."""
    greedy: bool
    """Whether each of its tokens is the most likely one."""


class Batch(NamedTuple):
    """Requests that are computed together."""

    requests: list[int]
    """Their indices."""
    shared: int
    """Tokens with which their contexts begin, and those of other batches too."""
    whole: bool
    """Whether they are computed in one pass."""


class Scorer:
    """Scores requests with a model in evaluation mode.

    Args:
        model: as `inference_model` gives it.
        batch_tokens: tokens of a pass, at most.
        max_length: tokens that the model is given at a time, the last of them, unless a continuation alone is
            longer; None for any number.
    """

    def __init__(
        self, model: LanguageModel, *, batch_tokens: int | None = None, max_length: int | None = None
    ) -> None:
        self.model, self.max_length = model, max_length
        self.device = model.embedding.weight.device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        self.computed = 0
        """Tokens that went through the model so far."""
        self._shared: tuple[tuple[int, ...], State | None] = ((), None)

    def scores(self, requests: Sequence[Request]) -> Iterator[tuple[int, Score]]:
        """(index of the request, its score), batch by batch, in the order in which they are computed.

        Raises:
            ValueError: an empty context or continuation, a continuation beyond the model's learned positions,
                or logits that are not finite.
        """
        cut = [self._cut(request) for request in requests]
        spare = PASS.get(self.device.type, PASS["cpu"])
        for batch in batches(cut, self.batch_tokens, spare=spare, cached=not self.model.constant_state):
            compute = partial(self._batch, shared=batch.shared, whole=batch.whole)
            found = in_halves([cut[index] for index in batch.requests], compute)
            yield from zip(batch.requests, found, strict=True)

    def _cut(self, request: Request) -> Request:
        """The last tokens that the model may be given, of which the continuation's last one is none."""
        context, continuation = tuple(request.context), tuple(request.continuation)
        if not context or not continuation:
            raise ValueError("a request needs a context and a continuation of at least one token each")
        if self.max_length is not None:
            context = context[-max(1, self.max_length + 1 - len(continuation)) :]
        tokens, limit = len(context) + len(continuation) - 1, self.model.position.limit
        if limit is not None and tokens > limit:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens is longer than the model takes, {limit}"
            )
        return Request(context, continuation)

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request], shared: int, whole: bool) -> list[Score]:
        # The last token of a context belongs to the endings: its logits are the continuation's first.
        length = 0 if whole else min(len(request.context) for request in requests) - 1
        state = None
        if length:
            begun = list(dict.fromkeys(request.context[:length] for request in requests))
            place = {context: row for row, context in enumerate(begun)}
            rows = [place[request.context[:length]] for request in requests]
            state = _select(self._begun(begun, min(shared, length)), rows)
        endings = [request.context[length:] + request.continuation[:-1] for request in requests]
        hidden = self._pass(endings, state)[0]
        return self._scored(hidden, requests, [len(request.context) - length for request in requests])

    def _begun(self, contexts: list[tuple[int, ...]], shared: int) -> State:
        """The state after contexts of one length, the first `shared` tokens of which are the same."""
        state = None
        if shared:
            state = _select(self._after(contexts[0][:shared]), [0] * len(contexts))
            if shared == len(contexts[0]):
                return state
        return self._pass([context[shared:] for context in contexts], state)[1]

    def _after(self, tokens: tuple[int, ...]) -> State:
        """The state after one row of tokens; the last one is kept, for the next batch begins alike."""
        known, state = self._shared
        if known != tokens or state is None:
            state = self._pass([tokens], None)[1]
            self._shared = tokens, state
        return state

    def _pass(self, rows: Sequence[Sequence[int]], state: State | None) -> tuple[Tensor, State]:
        """Hidden states (rows, longest row, width), and the state, which is that of rows without padding."""
        longest = max(map(len, rows))
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, values in enumerate(rows):
            tokens[row, : len(values)] = torch.tensor(values)
        self.computed += tokens.numel()
        if self.device.type == "cuda":
            tokens = tokens.pin_memory().to(self.device, non_blocking=True)
        return self.model.extend(tokens, state)

    def _scored(self, hidden: Tensor, requests: Sequence[Request], begins: Sequence[int]) -> list[Score]:
        """`begins`: tokens of each row before its continuation."""
        lengths = [len(request.continuation) for request in requests]
        row = torch.repeat_interleave(torch.arange(len(requests)), torch.tensor(lengths))
        column = torch.cat(
            [torch.arange(begin - 1, begin - 1 + n) for begin, n in zip(begins, lengths, strict=True)]
        )
        targets = torch.tensor([token for request in requests for token in request.continuation])
        picked = hidden[row.to(hidden.device), column.to(hidden.device)]
        nats, best = [], []
        weight = self.model.output_weight
        for part in torch.arange(len(targets)).split(max(1, LOGITS // len(weight))):
            there = targets[part].to(hidden.device)
            logits = F.linear(picked[part.to(hidden.device)], weight).float()
            nats.append(-F.cross_entropy(logits, there, reduction="none"))
            best.append(logits.argmax(-1) == there)
        summed = torch.cat(nats).double().cpu()
        if not bool(summed.isfinite().all()):
            raise ValueError("the model's logits are not finite: its training has diverged")
        sums = summed.split(lengths)
        hits = torch.cat(best).cpu().split(lengths)
        return [Score(float(a.sum()), bool(b.all())) for a, b in zip(sums, hits, strict=True)]


def _select(state: State, rows: Sequence[int]) -> State:
    """The state of these rows."""

    def selected(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        return part.index_select(0, torch.tensor(rows, device=part.device))

    return State(state.tokens, [tree_map(selected, layer) for layer in state.layers])


def common(contexts: Sequence[tuple[int, ...]]) -> int:
    """Tokens with which all begin.

    >>> common([(1, 2, 3), (1, 2, 4)])
    2
    """
    first, last = min(contexts), max(contexts)  # in this order, no two share less
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def batches(
    requests: Sequence[Request], tokens: int, *, spare: int = PASS["cpu"], cached: bool = False
) -> Iterator[Batch]:
    """Requests in batches, the longest first; those of one context together, where that saves enough.

    Contexts that begin with the same `SHARED` tokens, if there are several, come one after the other.

    Args:
        tokens: of a pass, at most (a context with its continuations may be more).
        spare: tokens that a pass of its own takes as long as.
        cached: whether a state keeps every token, so that its copies for the endings count too.
    """
    of_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        of_context[request.context].append(index)
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    for context in of_context:
        groups[context[:SHARED] if len(context) > SHARED else ()].append(context)
    pooled: list[tuple[int, ...]] = groups.pop((), [])
    for group in groups.values():
        if len(group) == 1:
            pooled += group
            continue
        for batch in _of_contexts(group, of_context, requests, tokens, spare, cached):
            yield Batch(batch, common(group), False)
    apart: list[tuple[int, ...]] = []
    whole: list[int] = []
    for context in pooled:
        own = of_context[context]
        endings = sum(len(requests[index].continuation) for index in own)
        if len(own) * len(context) + endings >= SAVING * (len(context) + endings):
            apart.append(context)
        else:
            whole += own
    for batch in _of_contexts(apart, of_context, requests, tokens, spare, cached):
        yield Batch(batch, 0, False)
    for batch in _of_requests(whole, requests, tokens, spare):
        yield Batch(batch, 0, True)


def _of_requests(
    indices: Sequence[int], requests: Sequence[Request], tokens: int, spare: int
) -> Iterator[list[int]]:
    """Whole requests: a batch ends where it would be too large, or have too much padding."""
    sizes = {index: len(requests[index].context) + len(requests[index].continuation) for index in indices}
    batch: list[int] = []
    padding = 0
    for index in sorted(indices, key=lambda index: -sizes[index]):
        longest = sizes[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > tokens or padding + longest - sizes[index] > spare):
            yield batch
            batch, padding, longest = [], 0, sizes[index]
        padding += max(0, longest - sizes[index])
        batch.append(index)
    if batch:
        yield batch


def _of_contexts(
    contexts: Sequence[tuple[int, ...]],
    of_context: dict[tuple[int, ...], list[int]],
    requests: Sequence[Request],
    tokens: int,
    spare: int,
    cached: bool,
) -> Iterator[list[int]]:
    """A batch ends where it would be too large, or where computing its contexts up to the length of the
    shortest would leave more to the endings than two passes of their own take."""
    batch: list[int] = []
    count, farthest, cost, first = 0, 0, 0, 0
    for context in sorted(contexts, key=len, reverse=True):
        own = of_context[context]
        reach = len(context) + max(len(requests[index].continuation) for index in own)
        alone = len(context) + len(own) * (reach - len(context))
        rows = len(batch) + len(own)
        joined = (count + 1) * len(context) + rows * (max(farthest, reach) - len(context))
        copies = rows * first if cached else 0
        if batch and (joined + copies > tokens or joined - cost - alone > 2 * spare):
            yield batch
            batch, count, farthest, joined = [], 0, 0, alone
        first = first if batch else len(context)
        batch, count, farthest, cost = [*batch, *own], count + 1, max(farthest, reach), joined
    if batch:
        yield batch
