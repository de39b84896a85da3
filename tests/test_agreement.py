"""Exported models under lm-eval's own Hugging Face model: the same likelihoods and texts as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from tnbench.data.tokenizers import Bytes
from tnbench.evaluation import cloze
from tnbench.evaluation.harness import HarnessModel
from tnbench.interop import export
from tnbench.model import LanguageModel
from tnbench.resolution import resolve

pytestmark = pytest.mark.usefixtures("settled_process")


def instances(kind: str, *arguments: Any) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=n)  # type: ignore[arg-type]
        for n, one in enumerate(arguments)
    ]


@pytest.mark.parametrize("preset", ["transnormerllm", pytest.param("transformer", marks=pytest.mark.slow)])
def test_lm_eval_agrees(preset: str, tmp_path: Path):
    from lm_eval.models import huggingface

    model_class: Any = huggingface.HFLM

    config = resolve({"model.preset": preset, "model.size": "0.1m", "data.context": 128, "training.steps": 1})
    torch.manual_seed(3)
    model, tokenizer = LanguageModel(config.model, 257, 128), Bytes()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    folder = tmp_path / "exported"
    export(model, tokenizer, folder)
    theirs = model_class(
        pretrained=str(folder),
        trust_remote_code=True,
        device="cpu",
        dtype="float32",
        batch_size=4,
        max_length=128,
    )
    ours = HarnessModel(model=model, tokenizer=tokenizer, device="cpu", max_length=128, quiet=True)

    documents: list[Any] = list(cloze.build())[:6]
    pairs = [(one["context"], choice) for one in documents for choice in one["choices"]]
    asked = instances("loglikelihood", *pairs, ("", "nothing before"), ("one ", "two"))
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [a for a, _ in found] == pytest.approx([a for a, _ in expected], abs=1e-4)
    assert [b for _, b in found] == [b for _, b in expected]

    texts = instances("loglikelihood_rolling", (documents[0]["context"],), ("short",))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-3
    )

    options = {"until": ["\n"], "max_gen_toks": 12}
    made = instances(
        "generate_until", ("The Congress", options), ("It is", options), ("We have seen", options)
    )
    assert ours.generate_until(made) == theirs.generate_until(made, disable_tqdm=True)
