"""Log-likelihoods of continuations in shared batches: those of a model that reads each request alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tnbench import registry
from tnbench.evaluation.generation import inference_model
from tnbench.evaluation.halving import is_out_of_memory
from tnbench.evaluation.scoring import Request, Scorer, batches, common
from tnbench.model import LanguageModel
from tnbench.resolution import resolve

VOCABULARY = 61


def built(preset: str) -> LanguageModel:
    config = resolve({"model.preset": preset, "model.size": "0.1m", "data.context": 512, "training.steps": 1})
    torch.manual_seed(0)
    model = LanguageModel(config.model, VOCABULARY, 512)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # so that tokens matter
    return inference_model(model, "fp32")


def alone(model: LanguageModel, request: Request) -> tuple[float, bool]:
    tokens = torch.tensor([[*request.context, *request.continuation]])
    logits = model(tokens[:, :-1])[0, -len(request.continuation) :].double()
    targets = tokens[0, -len(request.continuation) :]
    return float(-F.cross_entropy(logits, targets, reduction="sum")), bool(
        (logits.argmax(-1) == targets).all()
    )


def drawn(seed: int = 0) -> list[Request]:
    """Questions with several options, some with a common beginning, single ones, contexts of one token."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    shots = tokens(90)
    found = [Request(tokens(1), tokens(3)), Request((5,), (6,)), Request(tokens(200), tokens(40))]
    for length in (20, 33, 34, 35, 60, 61):
        for begin in ((), shots):
            context = begin + tokens(length)
            found += [Request(context, tokens(count)) for count in (1, 4, 7)]
    return found + found[:2]


@pytest.mark.parametrize("preset", registry.names("preset"))
def test_scores_are_those_of_each_request_alone(preset: str):
    model, requests = built(preset), drawn()
    found = dict(Scorer(model, batch_tokens=700).scores(requests))
    assert sorted(found) == list(range(len(requests)))
    for index, request in enumerate(requests):
        nats, greedy = alone(model, request)
        assert found[index].nats == pytest.approx(nats, rel=1e-4, abs=1e-4), request
        assert found[index].greedy == greedy


def test_the_most_likely_continuation_is_greedy():
    model = built("transnormerllm")
    context = (3, 1, 4)
    best = int(model(torch.tensor([context]))[0, -1].argmax())
    scores = dict(Scorer(model).scores([Request(context, (token,)) for token in range(VOCABULARY)]))
    assert [index for index, score in scores.items() if score.greedy] == [best]
    assert sum(torch.tensor([score.nats for score in scores.values()]).exp()) == pytest.approx(1, abs=1e-5)


def test_what_is_shared_is_computed_once():
    """Four options of a context of 300 tokens cost little more than one; so do many questions of a prompt."""
    model = built("transnormerllm")
    draw = torch.Generator().manual_seed(0)
    shots = tuple(torch.randint(VOCABULARY, (300,), generator=draw).tolist())
    options = [Request(shots, (option, 1)) for option in range(4)]
    scorer = Scorer(model)
    list(scorer.scores(options))
    assert scorer.computed <= 320
    scorer = Scorer(model, batch_tokens=300)  # several batches
    list(scorer.scores([Request((*shots, a, b), (c,)) for a in range(4) for b in range(4) for c in range(4)]))
    assert scorer.computed <= 300 + 64 * 6


def test_long_requests_lose_their_beginning():
    model = built("transnormerllm")
    request = Request(tuple(range(50)), (1, 2, 3))
    (found,) = [score for _, score in Scorer(model, max_length=10).scores([request])]
    assert found.nats == pytest.approx(alone(model, Request(request.context[-8:], (1, 2, 3)))[0], rel=1e-5)
    (found,) = [score for _, score in Scorer(model, max_length=2).scores([request])]
    assert found.nats == pytest.approx(alone(model, Request(request.context[-1:], (1, 2, 3)))[0], rel=1e-5)
    learned = built("gpt2")
    with pytest.raises(ValueError, match="longer than the model takes, 512"):
        list(Scorer(learned, max_length=512).scores([Request((1,), (2,) * 513)]))
    with pytest.raises(ValueError, match="at least one token each"):
        list(Scorer(model).scores([Request((), (1,))]))


def test_what_does_not_fit_is_done_in_halves(monkeypatch: pytest.MonkeyPatch):
    """On a GPU and on a CPU; one request that is too much is an error."""
    model, requests = built("transnormerllm"), drawn()
    whole = dict(Scorer(model).scores(requests))
    plain, most = LanguageModel.extend, 400

    def small(self: LanguageModel, tokens: torch.Tensor, *rest: object, **options: object) -> object:
        if tokens.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "extend", small)
    found = dict(Scorer(model).scores(requests))
    assert [found[n].nats for n in range(len(requests))] == pytest.approx(
        [whole[n].nats for n in range(len(requests))], abs=1e-4
    )
    most = 200
    with pytest.raises(torch.OutOfMemoryError):
        dict(Scorer(model).scores(requests))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape"))


def test_batches_hold_every_request_once_and_keep_their_size():
    requests = drawn(1)
    assert len(list(batches(requests, 500, cached=True))) > len(list(batches(requests, 500)))
    found = list(batches(requests, 500))
    assert sorted(index for batch in found for index in batch.requests) == list(range(len(requests)))
    assert len(found) > 3
    for batch in found:
        contexts = {requests[index].context for index in batch.requests}
        if len(contexts) > 1:
            assert sum(map(len, contexts)) <= 500
    assert common([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
