"""Printed tables of runs on several GPUs: both models, two columns, a row per degree or size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tnbench.paper_figures.shared.bars import MODELS
from tnbench.paper_figures.shared.tables import Row, of_paper

BASE = "Transformer"


def of_table(table: Mapping[str, Any], suffix: str) -> list[Row]:
    """Every number, TransNormerLLM's against the Transformer's.

    Args:
        suffix: what follows a row's name where it stands for itself: `-way model parallelism`.
    """
    return [
        of_paper(
            model, f"paper {table['source']}", "speed" if "tokens" in column else "memory", column,
            values[model][place], at=f"{name}{suffix}", setting=table["setting"],
            where=f"v1 {table['where']['v1']}",
            **(_against(values[BASE][place]) if model != BASE else {}),
        )
        for name, values in table["rows"].items()
        for model in MODELS
        for place, column in enumerate(table["columns"])
    ]  # fmt: skip


def _against(base: float) -> dict[str, Any]:
    return {"base": base, "against": BASE}


def panels(table: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Column → model → a value per row."""
    return {
        column: {model: [values[model][place] for values in table["rows"].values()] for model in MODELS}
        for place, column in enumerate(table["columns"])
    }
