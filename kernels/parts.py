"""What the operators' folders offer to tnbench.kernels.tune and tnbench.kernels.compiled: modules of one
name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from tnbench.errors import RequestError, nearest


def part(operator: str, name: str) -> ModuleType:
    """Module `name` (`tuning` or `compiling`) of an operator's folder.

    Raises:
        RequestError: there is no such operator, or it has no such module.
    """
    try:
        return importlib.import_module(f"tnbench.kernels.{operator}.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("tnbench.kernels."):
            raise
        known = [path.parent.name for path in Path(__file__).parent.glob(f"*/{name}.py")]
        raise RequestError(f"no operator {operator!r}: {nearest(operator, known)}") from None
