"""What a figure or table of the paper is about, and how its records are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measure:
    """What makes the records of a figure: a suite, or a measuring command with its options."""

    suite: str = ""
    suites: tuple[str, ...] = ()
    """Several suites, one after the other."""
    kernels: tuple[str, ...] = ()
    """Operators for `tnbench profile-kernels`."""
    axes: Mapping[str, Any] = field(default_factory=dict)
    """Options of `profile-kernels` or `profile-model`, as they stand on the command line."""
    models: bool = False
    """`tnbench profile-model`."""
    program: str = ""
    """`python -m` this module, which takes --results."""
    takes: str = ""
    """How long the program takes, in words."""
    evaluation: bool = False
    """`tnbench eval RUN --tasks paper`: which runs, only the user can say."""
    arithmetic: bool = False
    """Follows from the printed numbers alone."""
    later: str = ""
    """Why it cannot be measured on one machine with one GPU."""

    @property
    def command(self) -> str:
        """The command, as it is typed; empty where there is none yet."""
        options = " ".join(
            f"--{name}" if value is True else f"--{name} {part}"
            for name, value in self.axes.items()
            for part in (value if isinstance(value, list) else [value])
        )
        if self.suite or self.suites:
            return "; ".join(f"tnbench ablate {name}" for name in self.suites or (self.suite,))
        if self.kernels:
            return f"tnbench profile-kernels {' '.join(self.kernels)} {options}".rstrip()
        if self.models:
            return f"tnbench profile-model {options}".rstrip()
        if self.program:
            return f"python -m {self.program}"
        return "tnbench eval RUN --tasks paper" if self.evaluation else ""

    @property
    def how(self) -> str:
        """The command, or why there is none."""
        if self.arithmetic:
            return "arithmetic on the printed numbers"
        return self.command or f"not yet: {self.later}"


@dataclass(frozen=True)
class About:
    """One figure or table of the paper."""

    name: str
    title: str
    table: str
    """Its key in `paper_figures/published/`."""
    measure: Measure
