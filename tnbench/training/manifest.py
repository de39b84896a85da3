"""The manifest of a run: what was run, on what, and how it ended."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from tnbench.config import RunConfig, digest
from tnbench.data import TokenData
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, command_line, now, provenance, read_metrics, write_json
from tnbench.training.state import State

SCHEMA = 1


class Manifest:
    """Written at the start of an attempt, once the model stands, and at the end.

    The attempt is counted before anything else happens, so that one that is killed counts too. Attempts,
    notes and the first start are taken over from the former manifest. A record that was no longer whole is
    named in a note; one that is another run's is moved aside.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        data: TokenData,
        determinism: Mapping[str, Any],
        attributes: Mapping[str, Any],
    ) -> None:
        problem, aside = folder.problem(), folder.set_aside()
        former = folder.read_manifest() or {}
        self.folder = folder
        values = config.model_dump(mode="json")
        self.values: dict[str, Any] = {
            "schema": SCHEMA,
            "run_id": folder.id,
            "suite": None,
            "variant": None,
            "seed": None,
            **attributes,
            "outcome": None,
            "reason": None,
            "stopped_step": None,
            "steps": config.training.total_steps,
            "started": former.get("started") or now(),
            "ended": None,
            "attempts": former.get("attempts", 0) + 1,
            "command": command_line(),
            "notes": list(former.get("notes", [])),
            "determinism": dict(determinism),
            "config": values,
            "config_hash": digest(values),
            "data": data.describe(),
            "device": _device(config.training.device),
            "provenance": provenance(),
        }
        if problem:
            where = f"; what was there is in {aside.name}" if aside else ""
            self.note(
                f"attempt {self.values['attempts']} replaces a record that did not count: {problem}{where}"
            )
        self.write()

    def note(self, text: str) -> None:
        """Add a remark that readers of the record should see, once."""
        if text not in self.values["notes"]:
            self.values["notes"].append(text)

    def describe_model(self, model: LanguageModel, context: int) -> None:
        """Add the model's parameters, forward FLOPs per token, and values of state per sequence."""
        counts = model.parameter_counts()
        self.values.update(
            parameters=counts["total"],
            non_embedding_parameters=counts["non_embedding"],
            flops_per_token=model.flops_per_token(context),
            state_size=model.state_size(context),
        )
        self.write()

    def describe_progress(self, state: State) -> None:
        """Add how far the run came and what it cost."""
        values, problems = read_metrics(self.folder.metrics)
        speeds = [value["value"] for value in values if value["name"] == "tokens_per_second"]
        self.values.update(
            stopped_step=state.step,
            training_seconds=state.training_seconds,
            evaluation_seconds=state.evaluation_seconds,
            tokens_per_second=statistics.median(speeds) if speeds else None,
            peak_memory_bytes=state.peak_memory_bytes,
            micro_batches=state.micro_batches,
            evaluation=state.evaluation,
            stability=state.stability(),
        )
        for problem in problems:
            self.note(problem)

    def end(self, outcome: str, reason: str | None = None, trace: str | None = None) -> None:
        """Write how the run ended. An interrupted run has not ended: its outcome stays open."""
        if outcome != "interrupted":
            self.values.update(outcome=outcome, reason=reason, ended=now())
        if trace is not None:
            self.values["traceback"] = trace
        self.write()

    def write(self) -> None:
        """Replace the manifest on disk."""
        write_json(self.folder.manifest, self.values)


def _device(kind: str) -> str:
    """The GPU's or the processor's name."""
    return torch.cuda.get_device_name() if kind == "cuda" else provenance()["processor"]
