"""Our models in lm-eval: requests of every kind, and texts that follow on contexts of different lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from tnbench.data.tokenizers import Bytes
from tnbench.errors import RequestError
from tnbench.evaluation.continuation import Continued, continuations
from tnbench.evaluation.generation import Decoder, generate, inference_model
from tnbench.evaluation.harness import HarnessModel
from tnbench.evaluation.sampling import Sampler
from tnbench.model import LanguageModel
from tnbench.resolution import resolve


def on_bytes(preset: str = "transnormerllm") -> LanguageModel:
    config = resolve({"model.preset": preset, "model.size": "0.1m", "data.context": 128, "training.steps": 1})
    torch.manual_seed(3)
    model = LanguageModel(config.model, 257, 128)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return inference_model(model, "fp32")


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


def harness(**options: Any) -> HarnessModel:
    return HarnessModel(model=on_bytes(), tokenizer=Bytes(), device="cpu", quiet=True, **options)


def nats(model: LanguageModel, context: list[int], continuation: list[int]) -> float:
    tokens = torch.tensor([[*context, *continuation]])
    shares = model(tokens)[0].log_softmax(-1)
    return sum(float(shares[len(context) - 1 + n, token]) for n, token in enumerate(continuation))


def test_continuations_of_texts():
    lm = harness()
    found = lm.loglikelihood(
        [
            instance("loglikelihood", "the cat ", "sat"),
            instance("loglikelihood", "the cat ", "stood"),
            instance("loglikelihood", "", "é"),
        ]
    )
    model = lm.model
    # lm-eval moves the space at the end of a context to the continuation.
    expected = [nats(model, list(b"the cat"), list(word)) for word in (b" sat", b" stood")]
    expected.append(nats(model, [256], list("é".encode())))
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-5)


def test_whole_texts_in_windows():
    lm = harness(max_length=16)
    text = "what is there to say of a text that is longer than sixteen bytes"
    (found,) = lm.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    ids = [256, *text.encode()]
    expected = 0.0
    for start in range(0, len(ids) - 1, 16):
        piece = ids[start : start + 17]
        expected += nats(lm.model, piece[:1], piece[1:])
    # The last window is full: it looks back over bytes that were scored before.
    first = (len(ids) - 1) // 16 * 16
    tail = ids[first:]
    expected += nats(lm.model, ids[-len(tail) :][:1], tail[1:]) - nats(lm.model, tail[:1], tail[1:])
    assert found == pytest.approx(expected, rel=1e-4)
    assert harness(max_length=None).loglikelihood_rolling(
        [instance("loglikelihood_rolling", text)]
    ) == pytest.approx([nats(lm.model, ids[:1], ids[1:])], rel=1e-5)


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
def test_texts_of_many_contexts_are_those_of_each_alone(preset: str):
    model, tokenizer = on_bytes(preset), Bytes()
    contexts = ["a", "abc", "the king", "x" * 50, "y" * 49, "in the beginning"]
    requests = [Continued(tuple(text.encode()), tokens=12) for text in contexts]
    found = dict(continuations(model, tokenizer, requests))
    assert sorted(found) == list(range(len(contexts)))
    for index, text in enumerate(contexts):
        decoder = Decoder(model, 1, len(text) + 12)
        made = generate(
            decoder, torch.tensor([list(text.encode())]), Sampler(1, temperature=0), tokens=12, end=256
        )
        ids = [int(row) for row in made]
        assert found[index] == tokenizer.decode(ids), text


def test_texts_end_where_they_should():
    lm = harness()
    (whole,) = lm.generate_until([instance("generate_until", "ab", {"until": [], "max_gen_toks": 20})])
    assert len(whole) > 2
    stop = whole[2]
    asked = {"until": ["never there", stop], "max_gen_toks": 20}
    (text,) = lm.generate_until([instance("generate_until", "ab", asked)])
    assert text == whole[: whole.index(stop)]
    short = lm.generate_until([instance("generate_until", "ab", {"until": "\0\0", "max_gen_toks": 3})])[0]
    assert whole.startswith(short.rstrip("\ufffd"))
    assert len(Bytes().encode(short)) <= 3 * 3


def test_drawn_texts_depend_on_their_seed_alone():
    model, tokenizer = on_bytes(), Bytes()
    requests = [Continued((97, 98), tokens=8, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    found = dict(continuations(model, tokenizer, requests))
    assert found[0] == found[2] != found[1]
    assert dict(continuations(model, tokenizer, requests[1:2]))[0] == found[1]


def test_long_contexts_lose_their_beginning():
    model, tokenizer = on_bytes(), Bytes()
    context = tuple(range(40))
    cut = dict(continuations(model, tokenizer, [Continued(context, tokens=4)], max_length=20))
    assert cut == dict(continuations(model, tokenizer, [Continued(context[-16:], tokens=4)]))


def test_unknown_options_are_refused():
    with pytest.raises(RequestError, match="generation_kwargs beams: known are do_sample"):
        harness().generate_until([instance("generate_until", "a", {"until": [], "beams": 4})])
    with pytest.raises(RequestError, match="run=RUN"):
        HarnessModel()
