"""Exported models, in a process that cannot import tnbench: what tests/test_export.py runs.

    python exported_models.py FOLDER

For every model in FOLDER, what it computes is held against `expected.safetensors` beside its weights. One
line of JSON for each: its name, and what was found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class Blocked:
    """Refuses to import tnbench, as if it were not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "tnbench":
            raise ImportError("tnbench is not installed")


sys.meta_path.insert(0, Blocked())  # type: ignore[arg-type]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max())


def error(rounded: Tensor, exact: Tensor) -> float:
    """Root mean square of what rounding has changed."""
    return float((rounded.double() - exact.double()).square().mean().sqrt())


def greedy(model: Any, prompt: Tensor, mask: Tensor, count: int) -> Tensor:
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
    return model.generate(prompt, attention_mask=mask, **options)[:, prompt.shape[1] :]


def padded_by(prompt: Tensor, pads: list[int], time: int) -> tuple[Tensor, Tensor]:
    """The beginnings of sequences, of `time` tokens with padding on the left."""
    tokens = torch.zeros(len(pads), time, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, pad in enumerate(pads):
        tokens[row, pad:] = prompt[row, : time - pad]
        mask[row, pad:] = 1
    return tokens, mask


@torch.no_grad()
def found(folder: Path) -> dict[str, Any]:
    expected = load_file(folder / "expected.safetensors")
    tokens, prompt = expected["tokens"], expected["prompt"]
    model = loaded(folder)
    stored, state = load_file(folder / "model.safetensors"), model.state_dict()
    whole = torch.ones_like(prompt)
    values: dict[str, Any] = {
        "same_weights": all(torch.equal(state[name], tensor) for name, tensor in stored.items()),
        "logits": gap(model(tokens).logits, expected["logits"]),
        "largest": float(expected["logits"].abs().max()),
        "greedy": torch.equal(greedy(model, prompt, whole, 20), expected["greedy"]),
    }

    # Segments and single tokens, and the size of what is kept after each
    cut, output = [tokens.shape[1] - 30, tokens.shape[1] - 3], None
    logits, sizes, begin = [], [], 0
    for end in (*cut, *range(cut[-1] + 1, tokens.shape[1] + 1)):
        cache = output.past_key_values if output else None
        output = model(tokens[:, begin:end], past_key_values=cache)
        begin = end
        logits.append(output.logits)
        sizes.append(output.past_key_values.nbytes)
    values["segments"] = gap(torch.cat(logits, dim=1), expected["logits"])
    values["constant"] = len(set(sizes)) == 1

    # Padding on the left changes nothing; behind a text, nothing can follow
    pads, time = [0, 7], prompt.shape[1]
    shifted, mask = padded_by(prompt, pads, time)
    made, wide = greedy(model, shifted, mask, 10), model(shifted, attention_mask=mask).logits
    alone = [prompt[row : row + 1, : time - pad] for row, pad in enumerate(pads)]
    values["padded"] = max(gap(wide[n, pads[n] :], model(one).logits[0]) for n, one in enumerate(alone))
    rows = [greedy(model, one, torch.ones_like(one), 10) for one in alone]
    values["padded_greedy"] = torch.equal(made, torch.cat(rows))
    try:
        greedy(model, shifted, mask.flip(1), 2)
        values["right"] = "taken"
    except ValueError as refusal:
        values["right"] = str(refusal)
    values["right_logits"] = gap(
        model(tokens[:, :9], attention_mask=torch.tensor([[1] * 9, [1] * 5 + [0] * 4])).logits[1, :5],
        expected["logits"][1, :5],
    )

    # Saved and loaded again; in bf16
    model.save_pretrained(folder / "again")
    again = loaded(folder / "again")
    values["again"] = gap(again(tokens).logits, model(tokens).logits)
    values["tied"] = (again.head.weight is again.embedding.weight) == bool(model.config.tie_word_embeddings)
    small = loaded(folder, dtype=torch.bfloat16)(tokens).logits
    values["bf16"] = error(small, expected["logits"]) / error(expected["logits_bf16"], expected["logits"])

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = json.loads((folder / "texts.json").read_text())
    values["ids"] = all(tokenizer(text).input_ids == ids for text, ids in texts)
    values["texts"] = all(tokenizer.decode(ids) == text for text, ids in texts)
    return values


if __name__ == "__main__":
    torch.set_num_threads(1)
    for place in sorted(Path(sys.argv[1]).iterdir()):
        print(json.dumps({"name": place.name, **found(place)}), flush=True)
