"""The variants of a suite as models to profile, without their runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnbench.ablation.suite import load_suite
from tnbench.config import RunConfig


def suite_models(suite: str, settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], RunConfig]]:
    """Name, diff and configuration of each variant, the base first and matched to it as the suite asks.

    Repeats are left out: they are the same model as the base.

    Args:
        suite: a shipped suite or a YAML file.
        settings: dotted keys laid over its base.

    Raises:
        RequestError: no such suite, or a mistake in it.
    """
    found = load_suite(suite, Path("results"), settings=settings)
    ordered = sorted(found.variants, key=lambda variant: variant.name != found.base)
    return [(one.name, one.diff, one.config) for one in ordered if not one.repeat]
