"""The model card of an exported model: what it is, what it was trained on, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tnbench.config import RunConfig, check
from tnbench.data import Tokenizer
from tnbench.model import LanguageModel
from tnbench.version import VERSION

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [tnbench]
---
# {title}

A language model trained and exported with tnbench {version}. It needs torch and transformers 5, not tnbench;
its code is in this folder.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True)[0]))
```

{state}
Sequences of a batch are padded on the left. In training, the id {end} stood before, between and behind
documents; the tokenizer adds none, and text that spells its name does not turn into it.
"""


def public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record without the name of the machine."""
    provenance = {key: value for key, value in manifest.get("provenance", {}).items() if key != "host"}
    return {**manifest, "provenance": provenance}


def text(model: LanguageModel, tokenizer: Tokenizer, manifest: Mapping[str, Any] | None) -> str:
    """README.md, in Markdown."""
    values = manifest or {}
    name = " ".join(str(values[key]) for key in ("suite", "variant", "run_id") if values.get(key))
    state = "What it keeps of a text is of one size, however long the text is."
    if not model.constant_state:
        state = "Its cache grows with every token."
    head = HEAD.format(title=name or "A model", version=VERSION, state=state, end=tokenizer.end_of_text)
    rows = [("parameters", f"{model.parameter_counts()['total']:,}"), ("tokenizer", tokenizer.name)]
    if manifest is not None:
        rows += _training(manifest)
    lines = [head, "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    config = values.get("config") or {"model": model.config.model_dump(mode="json")}
    lines += [
        "The configuration:",
        "",
        "```json",
        json.dumps(config, indent=1, ensure_ascii=False),
        "```",
        "",
    ]
    if manifest is not None:
        lines += ["The whole record of the run is in `tnbench_manifest.json`.", ""]
    return "\n".join(lines)


def _training(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a record says about the training, as rows of a table."""
    config: RunConfig = check(RunConfig, manifest["config"], "config")
    training, provenance = config.training, manifest.get("provenance", {})
    yield "corpus", f"{config.data.corpus}, hash {manifest['data']['hash']}"
    yield "training", f"{training.total_steps:,} steps of {training.batch_tokens:,} tokens"
    yield "context", f"{config.data.context:,} tokens"
    yield "precision", training.precision
    report = manifest.get("evaluation", {}).get("report", {})
    found = report.get("values", {})
    for key, unit in (("val_loss", "nats per token"), ("val_bits_per_byte", "bits per byte")):
        if key in found:
            yield f"validation loss, {unit}", f"{found[key]:.4f}, on {report['text_bytes']:,} bytes"
    yield "seeds", f"weights {training.init_seed}, data order {training.data_seed}"
    changed = ", with changes" if provenance.get("diff_hash") else ""
    yield "commit of tnbench", f"{provenance.get('commit')}{changed}"
    yield "ended", str(manifest.get("ended"))
