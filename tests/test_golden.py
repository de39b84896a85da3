"""The first training losses of each preset, to the bit: a change that should not change numbers has to pass.

Floating-point sums depend on the processor and the torch version. Where both are those of the recorded
losses, they must be equal; elsewhere they must agree within 1e-5. After an intended change:
python tests/test_golden.py
"""

from __future__ import annotations

import json
import lzma
import platform
from itertools import islice
from pathlib import Path

import pytest
import torch

from tnbench import registry
from tnbench.data import prepare, shipped
from tnbench.records import RunFolder, provenance, read_metrics
from tnbench.resolution import resolve
from tnbench.training.loop import run

GOLDEN = Path(__file__).with_name("golden.json")
PRESETS = [(preset, "v2") for preset in registry.names("preset")] + [("transnormerllm", "v1")]


def here() -> dict[str, str]:
    """What the last bits of a loss depend on."""
    return {
        "processor": provenance()["processor"],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def losses(preset: str, convention: str, folder: Path) -> list[float]:
    """Losses of five training steps on the head of the shipped corpus, and of the tune split after them."""
    folder.mkdir()
    with lzma.open(shipped()["state-of-the-union"], "rt") as lines, open(folder / "head.jsonl", "w") as head:
        for line in islice(lines, 40):
            head.write(json.dumps({"text": json.loads(line)["text"][:4000]}) + "\n")
    config = resolve(
        {"model.preset": preset, "model.convention": convention, "model.size": "0.1m"},
        {"data.corpus": str(folder / "head.jsonl"), "data.context": 96},
        {"training.batch_tokens": 384, "training.steps": 5, "training.evaluations": 1},
    )
    outcome = run(config, RunFolder(folder), prepare(config.data, quiet=True), keep_weights=False)
    assert outcome == "finished"
    values, _ = read_metrics(folder / "metrics.jsonl")
    found = [value["value"] for value in values if value["name"] == "train_loss"]
    return found + [v["value"] for v in values if (v["name"], v["split"]) == ("val_loss", "tune")]


@pytest.mark.parametrize(("preset", "convention"), PRESETS)
def test_losses_are_the_recorded_ones(preset: str, convention: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    found, recorded = losses(preset, convention, tmp_path / "run"), golden["losses"][f"{preset} {convention}"]
    assert len(found) == 6
    if here() == golden["here"]:
        assert found == recorded
    else:
        assert found == pytest.approx(recorded, rel=1e-5)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        new = {f"{p} {c}": losses(p, c, Path(folder) / f"{p}-{c}") for p, c in PRESETS}
    GOLDEN.write_text(json.dumps({"here": here(), "losses": new}, indent=1) + "\n")
