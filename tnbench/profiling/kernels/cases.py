"""A case: one operator, in one mode and dtype, at one shape. What the campaign plans and a worker
measures.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODES = ("forward", "backward", "both", "decode")
"""backward: the gradients alone, of a forward that has run; both: forward and backward; decode: one token."""

ITEM_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Case:
    """What is computed, without how.

    shape holds the sizes that the operator names (`Operator.sizes`), integers, and its options (`form`,
    `decay`), strings.
    """

    operator: str
    mode: str
    dtype: str
    shape: Mapping[str, Any]

    def key(self) -> str:
        """The same text for the same case, whatever the order of its sizes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def __hash__(self) -> int:
        return hash(self.key())

    def seed(self) -> int:
        """Of the inputs: the same in every mode and for every implementation."""
        shape = json.dumps(dict(self.shape), sort_keys=True)
        return zlib.crc32(f"{self.operator} {self.dtype} {shape}".encode())

    @property
    def item_size(self) -> int:
        """Bytes of an element."""
        return ITEM_SIZES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of one call: batch times length, rows of a norm, the batch of a decode step."""
        shape = self.shape
        return shape["rows"] if "rows" in shape else shape["batch"] * shape.get("length", 1)

    @property
    def trains(self) -> bool:
        """Whether gradients are computed."""
        return self.mode in ("backward", "both")

    def to_dict(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "mode": self.mode,
            "dtype": self.dtype,
            "shape": dict(sorted(self.shape.items())),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Case:
        """Read what `to_dict` has written.

        Raises:
            ValueError: a field that is missing or not known, an unknown mode or dtype.
        """
        fields = {"operator", "mode", "dtype", "shape"}
        if set(values) != fields:
            raise ValueError(
                f"a case has the fields {', '.join(sorted(fields))}, got {', '.join(sorted(values))}"
            )
        if values["mode"] not in MODES:
            raise ValueError(f"mode {values['mode']!r}: known are {', '.join(MODES)}")
        if values["dtype"] not in ITEM_SIZES:
            raise ValueError(f"dtype {values['dtype']!r}: known are {', '.join(ITEM_SIZES)}")
        return cls(values["operator"], values["mode"], values["dtype"], dict(values["shape"]))
