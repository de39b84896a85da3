"""The two inference algorithms in a whole model: at which token its logits are lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tnbench.model import LanguageModel
from tnbench.resolution import resolve

TOKENS = 256
"""Tokens decoded: beyond the overflow of the fastest of eight heads in every dtype."""
VOCABULARY = 256
SIZE, HEADS = "0.8m", 8
ALGORITHMS = {"original": "original", "robust": "recurrent"}
"""Implementations of the operator, both one step at a time."""


def logits(implementation: str, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits (batch, time, vocabulary) of a model with the weights of seed 0, computed in `dtype`.

    16-bit dtypes are autocast, as in training and decoding: weights, norms and decays stay in fp32. The
    operator goes through all tokens step by step within one call: handed from call to call, the state of
    `original` would be the robust one.
    """
    config = resolve(
        {"model.preset": "transnormerllm", "model.size": SIZE},
        {"training.steps": 1},
        {"model.heads": HEADS, "model.implementation": implementation},
    )
    torch.manual_seed(0)
    model = LanguageModel(config.model, VOCABULARY, TOKENS).to(tokens.device)
    narrow = dtype in (torch.bfloat16, torch.float16)
    model = model.to(torch.float32 if narrow else dtype)
    with torch.no_grad(), torch.autocast(tokens.device.type, dtype=dtype if narrow else None, enabled=narrow):
        return model(tokens)


def decode_model(dtypes: dict[str, torch.dtype], sequences: int, device: str) -> dict[str, Any]:
    """Decode random tokens with both algorithms.

    Returns:
        For each dtype and algorithm the first token whose logits are not finite (None: none) and the largest
        relative error ‖l − l64‖ / ‖l64‖ of a token's logits before it, over all sequences.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (sequences, TOKENS), generator=generator).to(device)
    exact = logits("quadratic", tokens, torch.float64)
    rows = []
    for name, dtype in dtypes.items():
        for algorithm, implementation in ALGORITHMS.items():
            found = logits(implementation, tokens, dtype)
            error = ((found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).cpu().numpy()
            lost = ~found.isfinite().all(-1).cpu().numpy()
            first = [int(row.argmax()) + 1 if row.any() else None for row in lost]
            before = max(
                float(row[: step and step - 1].max()) for row, step in zip(error, first, strict=True)
            )
            rows.append(
                {
                    "dtype": name,
                    "algorithm": algorithm,
                    "first_lost": first,
                    "largest_error": float(f"{before:.2e}"),
                }
            )
    return {
        "preset": "transnormerllm",
        "size": SIZE,
        "heads": HEADS,
        "tokens": TOKENS,
        "vocabulary": VOCABULARY,
        "sequences": sequences,
        "rows": rows,
    }
