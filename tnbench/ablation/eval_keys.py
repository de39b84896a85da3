"""`evals:` of a suite file: what its reported runs are asked after their training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tnbench.config import Strict, shortened
from tnbench.errors import RequestError


class Evals(Strict):
    """Evaluations as `tnbench eval` makes them; paths are relative to the suite file."""

    tasks: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """Names of tasks and groups, as a list or with commas between them."""
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Examples before a question; absent, the task's own number."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Questions of each task at most, the first ones."""
    include_path: str | None = None
    """A folder of task files."""
    task_data: str | None = None
    """A folder of saved data sets, in place of the hub."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens given at a time; absent, the trained context."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Of the weights; absent, bf16 on a GPU and fp32 elsewhere."""
    by_position: str | None = None
    """Length of the windows in which the loss is read by position: 16x the trained context, or tokens."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A text stands for the names between its commas."""
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise RequestError(f"{shortened(value)}: expected names, as in [arc_easy, hellaswag] or cloze")
        names = [name.strip() for name in names]
        if not all(names) or any("," in name for name in names):
            raise RequestError(f"{shortened(value)}: expected names, as in [arc_easy, hellaswag] or cloze")
        return names

    @field_validator("by_position", mode="before")
    @classmethod
    def _length(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _asks_something(self) -> Evals:
        if not self.tasks and self.by_position is None:
            raise RequestError("expected tasks, by_position or both, as in {tasks: cloze}")
        if not self.tasks:
            for key in ("num_fewshot", "limit", "include_path", "task_data", "max_length"):
                if getattr(self, key) is not None:
                    raise RequestError(f"{key} goes with tasks, and there are none")
        return self
