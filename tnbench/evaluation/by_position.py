"""Loss by position: how well a model uses what lies far back, and what becomes of it beyond the windows that
it was trained on.

Windows of the `report` split are read from an empty state, segment by segment, so that memory does not grow
with their length. Positions are gathered in bins [1, 2), [2, 4), [4, 8) … of tokens seen before the target;
the standard error of a bin is that of the mean over windows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from tnbench.config import digest
from tnbench.errors import RequestError, shown
from tnbench.evaluation.scoring import LOGITS
from tnbench.model import LanguageModel
from tnbench.report.drawing import INK, PALETTE, WIDTH, save, style
from tnbench.report.results import Frame

SEGMENT = 1024
"""Tokens of a window in one pass."""
ROWS = 8
"""Windows side by side."""
TOKENS = 1 << 18
"""Tokens that are read at most, but for the fewest windows."""
FEWEST = 64
"""Windows that are read where the text has them, however long they are."""
LONGEST = 1 << 20


@dataclass(frozen=True)
class Bins:
    """Means over bins of positions."""

    edges: list[int]
    """Bin n holds the targets with edges[n] to edges[n + 1] − 1 tokens before them."""
    bits: list[float]
    """Mean bits per token."""
    stderr: list[float]
    """Of each mean, over windows; NaN for one window."""
    windows: int


def length_of(text: str, context: int) -> int:
    """`16x` (times the trained context) or a number of tokens.

    >>> length_of("16x", 128)
    2048

    Raises:
        RequestError: it is neither, or longer than 2^20 tokens.
    """
    digits = text.strip().lower()
    factor = context if digits.endswith("x") else 1
    digits = digits.removesuffix("x")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10) or not int(digits):
        raise RequestError(f"--by-position {shown(text)}: write 16x, times the trained context, or tokens")
    length = int(digits) * factor
    if not 2 <= length <= LONGEST:
        raise RequestError(f"--by-position {shown(text)}: {length} tokens; from 2 to {LONGEST} can be read")
    return length


def read_tokens(tokens: int, length: int) -> int:
    """Targets that are read of a text of so many tokens, in windows of `length`."""
    return _windows((tokens - 1) // length, length) * length


def _windows(count: int, length: int) -> int:
    """How many of `count` windows are read."""
    return min(count, max(FEWEST, TOKENS // length))


@torch.inference_mode()
def losses(model: LanguageModel, stream: Tensor, length: int) -> Tensor:
    """−log p of every target, (windows, length), in nats.

    Args:
        model: in evaluation mode.
        stream: (tokens,), cut into windows of `length` + 1 tokens that share one; of many, some are read that
            are spread over the whole.
        length: targets of a window.

    Raises:
        ValueError: no whole window, windows beyond the model's learned positions, or logits that are not
            finite.
    """
    count = (len(stream) - 1) // length
    if not count:
        raise ValueError(f"the text has {len(stream)} tokens, less than one window of {length + 1}")
    limit = model.position.limit
    if limit is not None and length > limit:
        raise ValueError(f"learned absolute positions end at {limit}")
    chosen = np.unique(np.linspace(0, count - 1, _windows(count, length)).round().astype(int))
    device = model.embedding.weight.device
    found = []
    for part in np.array_split(chosen, math.ceil(len(chosen) / ROWS)):
        windows = torch.stack([stream[n * length : (n + 1) * length + 1] for n in part]).long().to(device)
        found.append(torch.cat(list(_window_losses(model, windows)), dim=1).cpu())
    nats = torch.cat(found)
    if not bool(nats.isfinite().all()):
        raise ValueError("the model's logits are not finite: its training has diverged")
    return nats


def _window_losses(model: LanguageModel, windows: Tensor) -> Iterator[Tensor]:
    """(rows, tokens of a segment), segment after segment."""
    state = None
    for start in range(0, windows.shape[1] - 1, SEGMENT):
        piece = windows[:, start : start + SEGMENT + 1]
        hidden, state = model.extend(piece[:, :-1], state)
        flat, targets = hidden.flatten(0, 1), piece[:, 1:].flatten()
        rows = max(1, LOGITS // model.vocab_size)
        each = [
            F.cross_entropy(F.linear(h, model.output_weight).float(), t, reduction="none")
            for h, t in zip(flat.split(rows), targets.split(rows), strict=True)
        ]
        yield torch.cat(each).double().view(len(windows), -1)


def binned(nats: Tensor) -> Bins:
    """Means of (windows, length) over bins of powers of two."""
    end = nats.shape[1] + 1  # the first target has one token before it
    edges = [1]
    while 2 * edges[-1] < end:
        edges.append(2 * edges[-1])
    if len(edges) > 1 and end - edges[-1] < edges[-1] // 2:
        edges.pop()  # what is left joins the bin before
    edges.append(end)
    bits, errors = [], []
    for low, high in pairwise(edges):
        means = nats[:, low - 1 : high - 1].mean(1) / math.log(2)
        bits.append(float(means.mean()))
        errors.append(float(means.std() / math.sqrt(len(means))) if len(means) > 1 else math.nan)
    return Bins(edges, bits, errors, len(nats))


def rows(lines: Sequence[Mapping[str, Any]]) -> Frame:
    """Tidy: one row for each model and bin; a model that was read in several ways has a name for each."""
    names = _names(lines)
    made = [
        {
            "model": names[digest(line["identity"])], "trained_context": line["trained_context"],
            "begin": low, "end": high, "bits_per_token": bits, "stderr": float(error),
            "windows": line["windows"], "bytes_per_token": line["bytes_per_token"],
        }
        for line in lines
        for low, high, bits, error in zip(
            line["edges"], line["edges"][1:], line["bits"], line["stderr"], strict=False
        )
    ]  # fmt: skip
    return pd.DataFrame(made)


def _names(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names by identity: with the windows' length and the rest where they differ."""
    found = {}
    for line in lines:
        same = [other["identity"] for other in lines if other["model"] == line["model"]]
        words = [line["model"]]
        for option, text in (("length", "windows of {}"), ("precision", "{}"), ("device", "{}")):
            if len({one.get(option) for one in same}) > 1:
                words.append(text.format(line["identity"].get(option)))
        found[digest(line["identity"])] = ", ".join(words)
    return found


def figure(frame: Frame) -> Figure:
    """Bits per token over the tokens before the target, a line for each model, trained contexts dotted."""
    with style():
        drawn = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = drawn.subplots()
        for index, (model, part) in enumerate(frame.groupby("model", sort=False)):
            color = INK if index == 0 else PALETTE[(index - 1) % len(PALETTE)]
            centre = np.sqrt(part["begin"] * (part["end"] - 1))
            axes.plot(centre, part["bits_per_token"], color=color, marker="o", markersize=2.5, label=model)
            half = 1.96 * part["stderr"]
            axes.fill_between(
                centre, part["bits_per_token"] - half, part["bits_per_token"] + half, color=color, alpha=0.15,
                linewidth=0,
            )  # fmt: skip
        for context in sorted(set(frame["trained_context"])):
            axes.axvline(context, color=INK, linewidth=0.6, linestyle=(0, (1, 2)))
            axes.annotate(
                f" trained on {context}", (context, 1), xycoords=("data", "axes fraction"), va="top",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("tokens before the target")
        axes.set_ylabel("bits per token")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


def files(frame: Frame) -> dict[str, str | bytes]:
    """The table and the figure."""
    text = io.StringIO()
    frame.to_csv(text, index=False)
    drawn = figure(frame)
    return {
        "positions.csv": text.getvalue(),
        "positions.png": save(drawn, "png"),
        "positions.pdf": save(drawn, "pdf"),
    }
