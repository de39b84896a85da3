"""An export on a GPU takes the package's kernels where it is installed, and gives the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tnbench.data.tokenizers import Bytes
from tnbench.evaluation.generation import inference_model
from tnbench.interop import export
from tnbench.kernels import linear_attention
from tnbench.model import LanguageModel
from tnbench.resolution import resolve

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("preset", ["transnormerllm", "retnet", "transnormer-t2", "transformer"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_same_logits(
    preset: str, dtype: torch.dtype, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    transformers = pytest.importorskip("transformers")
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    config = resolve({"model.preset": preset, "model.size": "3m", "data.context": 512, "training.steps": 1})
    model = LanguageModel(config.model, 257, 512)
    export(model, Bytes(), tmp_path / "out")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=dtype
    )
    calls: list[str] = []
    own = linear_attention.linear_attention

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options["implementation"])
        return own(*arguments, **options)

    monkeypatch.setattr(linear_attention, "linear_attention", counted)
    ids = torch.randint(257, (2, 300), device="cuda")
    with torch.no_grad():
        found = loaded.cuda()(ids).logits.float()
        expected = inference_model(model.cuda(), "fp32" if dtype == torch.float32 else "bf16")(ids).float()
    assert float((found - expected).norm() / expected.norm()) < limit
    assert set(calls) == ({"triton"} if preset != "transformer" else set())
