"""What docs/kernels.md says of norms, LRPE and the decode step: every number, from the committed records."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from reference_pages import KERNELS, assert_says, section

from tnbench.report.results import Frame

POINT = ["length", "batch", "heads", "key_dim", "rows", "width"]
ROWS = {
    "SRMSNorm, forward": ("norm", "forward", None),
    "SRMSNorm, backward": ("norm", "backward", None),
    "SRMSNorm ⊙ gate, forward": ("norm_gate", "forward", None),
    "SRMSNorm ⊙ gate, backward": ("norm_gate", "backward", None),
    "residual + SRMSNorm, forward": ("add_norm", "forward", None),
    "residual + SRMSNorm, backward": ("add_norm", "backward", None),
    "LRPE, cosine, forward": ("lrpe", "forward", "form = cosine"),
    "LRPE, cosine, backward": ("lrpe", "backward", "form = cosine"),
    "LRPE, rotation, forward": ("lrpe", "forward", "form = rotation"),
    "LRPE, rotation, backward": ("lrpe", "backward", "form = rotation"),
    "decode step": ("decode_step", "decode", None),
}
PLACES = {"copy": 2, "torch-compiled": 3, "liger": 2, "unfused": 2}
"""Columns of the table, with the places of their numbers."""


@pytest.fixture(scope="module")
def frame() -> Frame:
    found: Any = pd.read_csv(KERNELS / "kernels.csv")
    found = found[found["operator"] != "linear_attention"]
    ms = 1e3 * found["graph_seconds"].fillna(found["latency_seconds"])
    return found.assign(ms=ms, **{name: found[name].fillna(0) for name in POINT})


def of(frame: Frame, operator: str, mode: str, options: str | None) -> Frame:
    found = frame[(frame["operator"] == operator) & (frame["mode"] == mode)]
    return found if options is None else found[found["options"] == options]


def line(head: str, rows: Frame) -> str:
    times = rows.pivot(index=POINT, columns="implementation", values="ms")
    cells = []
    for name, places in PLACES.items():
        ratio = times[name] / times["triton"] if name in times else None
        cells.append("" if ratio is None else f"{ratio.min():.{places}f} to {ratio.max():.{places}f}")
    return f"| {head} | {len(times)} | {' | '.join(cells)} |".replace("  ", " ").replace("  ", " ")


def test_docs(frame: Frame) -> None:
    assert set(frame["status"]) == {"ok"}
    ours = frame[frame["implementation"] == "triton"]
    (device,), (rounds,) = set(frame["device"]), set(frame["rounds"])
    known = dict(word.split("=") for word in frame["versions"].iloc[0].split())
    share = of(ours, "decode_step", "decode", None)["roofline_share"]
    assert_says(
        section("docs/kernels.md", "Norms, LRPE and the decode step on an H100"),
        [
            f"on one {device}, torch {known['torch']}, triton {known['triton']}, {rounds:.0f} rounds",
            "`--energy 0`",
            *shapes(ours),
            *(line(head, of(frame, *which)) for head, which in ROWS.items()),
            *targets(frame),
            *slower(),
            "80 % of the bandwidth floor",
            f"it has {100 * share.min():.0f} to {100 * share.max():.0f} %",
        ],
    )


def shapes(ours: Frame) -> list[str]:
    def found(operator: str, name: str) -> list[int]:
        return sorted(int(x) for x in set(ours[ours["operator"] == operator][name]))

    for operator, widths in (("norm", [1, 4, 16]), ("norm_gate", [1, 4]), ("add_norm", [1, 4])):
        rows = [4, 16, 64] if operator == "norm" else [16, 64]
        assert found(operator, "rows") == [1024 * x for x in rows]
        assert found(operator, "width") == [1024 * x for x in widths]
    assert found("lrpe", "length") == [4096, 16384]
    assert (found("lrpe", "batch"), found("lrpe", "heads"), found("lrpe", "key_dim")) == ([4], [16], [128])
    assert found("decode_step", "batch") == [64, 256, 512]
    assert found("decode_step", "heads") == [16]
    assert found("decode_step", "key_dim") == [64, 128]
    return [
        "4k, 16k and 64k rows of width 1k, 4k and 16k (with gate or residual: 16k and 64k rows of 1k and 4k)",
        "B4 H16, head dim 128, 4k and 16k tokens",
        "16 heads of dim 64 and 128 with batches of 64, 256 and 512",
    ]


def targets(frame: Frame) -> list[str]:
    """That what is said to be met is met."""

    def least(operator: str, mode: str, rival: str) -> float:
        times = of(frame, operator, mode, None).pivot(index=POINT, columns="implementation", values="ms")
        return float((times[rival] / times["triton"]).min())

    for operator in ("norm", "norm_gate", "add_norm"):
        assert least(operator, "forward", "copy") >= 0.9
        assert least(operator, "backward", "copy") >= 0.85
    for mode in ("forward", "backward"):
        assert least("norm_gate", mode, "unfused") >= 1.5
        assert least("norm", mode, "liger") > 0.999
    return [
        "targets were 0.9 of a copy for a norm forward and 0.85 backward, and 1.5 times the unfused",
        "Liger's it is nowhere by more than 0.1 %",
    ]


def slower() -> list[str]:
    pairs: Any = pd.read_csv(KERNELS / "comparisons.csv")
    pairs = pairs[(pairs["operator"] != "linear_attention") & (pairs["kind"] == "best peer")]
    found = pairs[pairs["verdict"] == "slower"]
    assert set(found["against"]) == {"torch-compiled"}
    assert set(found["operator"]) == {"norm", "norm_gate", "add_norm"}
    most = 100 * (1 - found["speedup"].min())
    return [f"torch.compile's it is at {len(found)} points, by up to {most:.1f} %"]
