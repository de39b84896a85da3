"""The figures and tables of the paper: which there are, and the module of each."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tnbench.errors import RequestError, nearest

GROUPS = {
    "Architecture": (
        "transformer",
        "transnormer",
        "positional_encoding",
        "decay_temperature",
        "decay_formula",
        "decay_values",
        "lrpe",
        "gating",
        "feature_map",
        "glu_activation",
        "normalisation",
        "norm_scope",
    ),
    "What breaks it": ("decay_strength", "nonlinearity", "stability", "block_sizes"),
    "Open questions": ("recall", "phases", "energy", "loss_units"),
    "Speed and memory": (
        "lightning_attention",
        "srmsnorm",
        "inference",
        "robust_inference",
        "context_speed",
        "largest_context",
    ),
    "Downstream": ("downstream",),
    "Several GPUs": ("model_parallelism", "stress_test", "scale"),
}
"""Group → modules, in the order of the report. Each has `ABOUT`, and `build(records)`."""
MODULES = {module.replace("_", "-"): module for group in GROUPS.values() for module in group}
"""Name on the command line → module."""


def module(name: str) -> ModuleType:
    """The module of a figure.

    Raises:
        RequestError: there is none of that name.
    """
    if name not in MODULES:
        raise RequestError(f"no figure {name!r}, {nearest(name, MODULES)}")
    return import_module(f"tnbench.paper_figures.{MODULES[name]}")
