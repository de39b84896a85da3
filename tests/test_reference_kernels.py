"""The committed records of kernels: the tables and figures that the command makes of them, and every number
that README and docs/kernels.md give of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from reference_pages import KERNELS as MACHINE
from reference_pages import assert_says, section

from tnbench import cli
from tnbench.profiling.kernels import report
from tnbench.profiling.kernels.store import Store
from tnbench.report.results import Frame

DRAWN_WITH = "3.11.2"
"""The matplotlib that drew the committed figures; another may place a pixel elsewhere."""
FORWARD, BOTH = "forward", "both"
DIMS = (128, 64)


@pytest.fixture(scope="module")
def everything() -> Frame:
    """kernels.csv, with the time that stands for a row in ms."""
    found: Any = pd.read_csv(MACHINE / "kernels.csv")
    return found.assign(ms=1e3 * found["graph_seconds"].fillna(found["latency_seconds"]))


@pytest.fixture(scope="module")
def frame(everything: Frame) -> Frame:
    """Linear attention alone."""
    return everything[everything["operator"] == "linear_attention"]


@pytest.fixture(scope="module")
def ours(frame: Frame) -> Frame:
    return frame[frame["implementation"] == "triton"]


def rewritten(folder: Path) -> list[str]:
    """The files of a copy of the records that are not those committed."""
    return [path.name for path in sorted(folder.iterdir()) if differs(path)]


def differs(path: Path) -> bool:
    return path.name != ".lock" and path.read_bytes() != (MACHINE / path.name).read_bytes()


def copied(results: Path) -> Path:
    folder = results / "kernels" / MACHINE.name
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_bytes((MACHINE / "records.jsonl").read_bytes())
    return folder


def test_tables_are_those_that_the_records_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path)
    monkeypatch.setattr(report.plots, "MEASURES", {})
    report.write(Store(folder), Store(folder).read())
    assert rewritten(folder) == []
    assert len(list(folder.iterdir())) == 6


@pytest.mark.slow
@pytest.mark.skipif(matplotlib.__version__ != DRAWN_WITH, reason=f"figures: matplotlib {DRAWN_WITH}")
def test_the_command_reproduces_every_file(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["profile-kernels", "--report", "--results", str(tmp_path)])
    assert left.value.code == 0
    assert rewritten(folder) == []
    assert {path.name for path in MACHINE.iterdir()} - {".lock"} == {path.name for path in folder.iterdir()}


def test_nothing_names_a_host() -> None:
    hosts = {session["provenance"]["host"] for session in Store(MACHINE).read().sessions.values()}
    assert hosts == {"vm"}


# What the pages say


def at(rows: Frame, mode: str, batch: int, heads: int, dim: int, *lengths: int) -> Frame:
    found = rows[(rows["mode"] == mode) & (rows["batch"] == batch) & (rows["heads"] == heads)]
    found = found[found["key_dim"] == dim]
    return found[found["length"].isin(lengths)] if lengths else found


def mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def both_modes(of: Callable[[str], str]) -> tuple[str, str]:
    return of(FORWARD), of(BOTH)


def versions(frame: Frame) -> dict[str, str]:
    return dict(word.split("=") for word in frame["versions"].iloc[0].split())


def test_readme(frame: Frame, ours: Frame) -> None:
    known = versions(frame)
    rows = []
    for dim in DIMS:
        for mode, words in ((FORWARD, "forward"), (BOTH, "forward and backward")):
            ratios = ours[(ours["mode"] == mode) & (ours["key_dim"] == dim)]["speedup"]
            shapes = ((1, 8), (4, 8), (4, 16), (8, 16))
            shares = [
                percent(at(ours, mode, *shape, dim, 8192)["roofline_share"].iloc[0]) + " %"
                for shape in shapes
            ]
            numbers = [f"{x:.2f}" for x in (mean(ratios), ratios.min(), ratios.max())]
            rows.append("| " + " | ".join([f"head dim {dim}, {words}", *numbers, *shares]) + " |")
    counts = ours["verdict"].value_counts()
    assert "slower" not in counts
    (device,) = set(frame["device"])
    assert_says(
        section("README.md", "Kernels on an H100"),
        [
            *rows,
            f"{counts['faster']} of {len(ours)} points are faster, {counts['undecided']} are undecided, "
            "none is slower",
            f"mean of {len(ours) // 4} points",
            "share of the roofline at 8k: B1 H8 | B4 H8 | B4 H16 | B8 H16",
            "head dims 128 and 64",
            f"flash-linear-attention {known['flash-linear-attention']}",
            f"lightning-attn {known['lightning-attn']}",
            f"mlstm-kernels {known['mlstm-kernels']}",
            f"one {device.removeprefix('NVIDIA ')} with torch {known['torch']} and triton {known['triton']}",
            f"up to {ours.dropna(subset=['graph_seconds'])['length'].max() / 1024:.0f}k tokens CUDA graphs",
            "cold L2",
        ],
    )


def test_docs(frame: Frame, ours: Frame) -> None:
    assert_says(
        section("docs/kernels.md", "Linear attention on an H100"),
        [
            *setting(frame, ours), *targets(frame, ours), *softmax(), *missed(ours), *sceptical(frame, ours),
        ],
    )  # fmt: skip


def setting(frame: Frame, ours: Frame) -> list[str]:
    known = versions(frame)
    (device,), (rounds,) = set(frame["device"]), set(ours["rounds"])
    return [
        "head dims 64 and 128",
        f"{len(ours)} points and {len(frame)} rows on one {device}, torch {known['torch']}, "
        f"triton {known['triton']}",
        f"flash-linear-attention {known['flash-linear-attention']}",
        f"lightning-attn {known['lightning-attn']}",
        f"mlstm-kernels {known['mlstm-kernels']}",
        f"{rounds:.0f} rounds",
    ]


def targets(frame: Frame, ours: Frame) -> list[str]:
    """The table. Numbers that miss their target stand in bold."""

    def row(head: str, of: Callable[[str], str], wanted: tuple[str, str]) -> str:
        (first, second), (one, two) = both_modes(of), wanted
        return f"| {head} | {first} | {one} | {second} | {two} |".replace("  ", " ")

    def ratios(mode: str, *dims: int) -> pd.Series:
        return ours[(ours["mode"] == mode) & ours["key_dim"].isin(dims)]["speedup"]

    def verdicts(mode: str) -> str:
        found = list(ours[ours["mode"] == mode]["verdict"])
        return ", ".join(str(found.count(name)) for name in ("faster", "undecided", "slower"))

    def whole(mode: str) -> str:
        found = f"{mean(ratios(mode, *DIMS)):.2f}"
        return f"**{found}**" if float(found) < {FORWARD: 2.0, BOTH: 2.5}[mode] else found

    lines = [row(f"× fastest peer, geometric mean of {len(ours) // 2} points", whole, ("2.0", "2.5"))]
    for dim in DIMS:
        lines.append(
            row(f"the same, head dim {dim}", lambda mode, dim=dim: f"{mean(ratios(mode, dim)):.2f}", ("", ""))
        )
    lines += [
        row(
            "the smallest and the largest",
            lambda mode: f"{ratios(mode, *DIMS).min():.2f}, {ratios(mode, *DIMS).max():.2f}",
            ("", ""),
        ),
        row("points faster, undecided, slower", verdicts, ("none slower", "none slower")),
    ]
    for dim in DIMS:
        for peer in ("fla-chunk", "fla-fused"):

            def share(mode: str, dim: int = dim, peer: str = peer) -> str:
                return memory(frame[frame["key_dim"] == dim], mode, peer)

            lines.append(row(f"peak memory, of `{peer}`'s, head dim {dim}", share, ("", "0.6")))
    for dim in DIMS:
        for shape in ((8, 16), (4, 16), (4, 8), (1, 8)):
            full = shape[0] * shape[1] * dim // 64 >= 128
            wanted = {FORWARD: 75 if full else 60, BOTH: 55 if full else 45}

            def shares(mode: str, dim=dim, shape=shape, wanted=wanted) -> str:
                long = at(ours, mode, *shape, dim)
                found = long[long["length"] >= 8192]["roofline_share"]
                least = percent(found.min())
                least = f"**{least}**" if 100 * found.min() < wanted[mode] else least
                return f"{least} to {percent(found.max())} %"

            head = f"share of the roofline from 8k on, head dim {dim}, B{shape[0]} H{shape[1]}"
            lines.append(row(head, shares, (f"{wanted[FORWARD]} %", f"{wanted[BOTH]} %")))
    return lines


def memory(frame: Frame, mode: str, peer: str) -> str:
    """Least and most of ours over the peer's, over the points. Bold: a target that no point reaches."""
    rows = frame[(frame["mode"] == mode) & (frame["status"] == "ok")]
    peaks = rows.pivot_table("peak_memory_bytes", ["batch", "heads", "length"], "implementation")
    ratio = peaks["triton"] / peaks[peer]
    most = f"{ratio.max():.2f}"
    return f"{ratio.min():.2f} to {f'**{most}**' if mode == BOTH and ratio.max() > 0.6 else most}"


def softmax() -> list[str]:
    pairs: Any = pd.read_csv(MACHINE / "comparisons.csv")
    pairs = pairs[(pairs["kind"] == "best softmax") & (pairs["implementation"] == "triton")]
    assert set(pairs["verdict"]) == {"faster"}
    assert set(pairs["against"]) == {"softmax-cudnn"}
    lengths = sorted(set(pairs["length"]))
    assert lengths == [1024, 2048, 4096, 8192]
    found = [
        [f"{x:.2f}" for x in pairs[pairs["mode"] == mode].sort_values("length")["speedup"]]
        for mode in (FORWARD, BOTH)
    ]
    return [
        f"B4 H16, head dim 128, ours is {', '.join(found[0][:-1])} and {found[0][-1]} times as fast forward "
        "at 1k, 2k, 4k and 8k",
        f"and {', '.join(found[1][:-1])} and {found[1][-1]} times forward and backward",
    ]


def missed(ours: Frame) -> list[str]:
    def shares(mode: str, batch: int, heads: int, dim: int, *lengths: int) -> list[str]:
        found = at(ours, mode, batch, heads, dim, *lengths).sort_values("length")["roofline_share"]
        return [f"{percent(share)} %" for share in found]

    few = at(ours, BOTH, 1, 8, 128).set_index("length")
    forward, narrow = (shares(FORWARD, 1, 8, dim, 8192, 16384, 32768) for dim in DIMS)
    backward, thin = (shares(BOTH, 1, 8, dim, 8192, 16384) for dim in DIMS)
    middle = shares(BOTH, 4, 8, 64, 8192, 16384)
    many = shares(BOTH, 4, 16, 128, 65536, 131072)
    assert min(at(ours, BOTH, 4, 16, 128, 8192, 16384, 32768)["roofline_share"]) >= 0.55
    full = at(ours, BOTH, 8, 16, 64)
    best = 1 / full["roofline_share"].min() * full["speedup"].min()
    return [
        f"at B8 H16 ours has {percent(full['roofline_share'].min())} to "
        f"{percent(full['roofline_share'].max())} % of the roofline and is {full['speedup'].min():.2f} to "
        f"{full['speedup'].max():.2f} times as fast as `fla-fused`",
        f"the whole of the roofline would be {best:.1f} times",
        f"B1 H8 forward has {forward[0]} of the roofline at 8k and {forward[1]} at 16k with head dim 128, "
        f"{narrow[0]} and {narrow[1]} with 64, where 60 % was the target",
        f"{forward[2]} and {narrow[2]} at 32k",
        f"B1 H8 has {backward[0]} at 8k and {backward[1]} at 16k with head dim 128, {thin[0]} and {thin[1]} "
        f"with 64, B4 H8 {middle[0]} and {middle[1]} with 64: these calls are eager",
        f"B1 H8 takes {few.loc[8192, 'ms']:.2f} ms at 8k and {few.loc[16384, 'ms']:.2f} ms at 16k with "
        "head dim 128",
        f"At 4k, where a graph was timed beside it, the graph takes {few.loc[4096, 'ms']:.2f} ms and the "
        f"eager call {1e3 * few.loc[4096, 'latency_seconds']:.2f} ms",
        "B4 H16, head dim 128, forward and backward.",
        f"{many[0]} at 64k and {many[1]} at 128k, below the 55 % that 8k to 32k have",
        "With head dim 64 the fastest peer of many heads",
        "with head dim 64 `fla-fused` allocates no more than o, dq, dk and dv",
    ]


def sceptical(frame: Frame, ours: Frame) -> list[str]:
    graphs = ours["graph_seconds"].notna()
    assert set(ours[graphs]["length"]) == {1024, 2048, 4096}
    parts = [[f"{mean(ours[which & (ours['mode'] == mode)]['speedup']):.2f}" for mode in (FORWARD, BOTH)]
             for which in (graphs, ~graphs)]  # fmt: skip
    largest = ours.loc[ours["speedup"].idxmax()]
    place = (largest["mode"], largest["batch"], largest["heads"], largest["key_dim"], largest["length"])
    assert place == (FORWARD, 1, 8, 64, 8192)
    assert largest["best_peer"] == "fla-fused"
    peers = ours["best_peer"].value_counts()
    bad = frame[frame["status"] != "ok"].groupby(["implementation", "status"]).size()
    assert bad.index.to_list() == [("fla-fused", "oom"), ("mlstm", "error")]
    errors = frame[frame["implementation"].isin(["triton", "fla-chunk"])].filter(regex="^error_(o|d[qkv])$")
    assert {f"{x:.4f}" for x in errors.max()} == {"0.0028"}
    return [
        f"points alone is {parts[0][0]} forward and {parts[0][1]} forward and backward, that of the eager "
        f"points {parts[1][0]} and {parts[1][1]}",
        "Up to 4k both",
        f"The largest ratio ({largest['speedup']:.2f}) stands at B1 H8, head dim 64, forward at 8k",
        f"at 4k in a graph it is {at(ours, FORWARD, 1, 8, 64, 4096)['speedup'].iloc[0]:.2f}",
        *undecided(ours),
        f"`fla-chunk` at {peers['fla-chunk']} points and `fla-fused` at {peers['fla-fused']}, "
        f"{(ours[ours['key_dim'] == 64]['best_peer'] == 'fla-fused').sum()} of them with head dim 64.",
        f"launched at {bad['mlstm']['error']} points, the largest, and `fla-fused` ran out of memory at "
        f"{bad['fla-fused']['oom']};",
        f"0.0028 in o, dq, dk and dv alike, ours and `fla-chunk`'s; nothing above "
        f"{frame[frame['source'] != 'softmax']['error_limit'].max():.4f} would",
        *copies(frame, ours),
        *spills(ours),
        *provenance(frame),
        "Lightning Attention 1, torch's own forms and softmax attention at B4 H16, up to 8k",
    ]


def undecided(ours: Frame) -> list[str]:
    some = ours[ours["verdict"] == "undecided"].sort_values("speedup")
    narrow = some.iloc[0]
    assert (narrow["mode"], narrow["batch"], narrow["length"], narrow["key_dim"]) == (FORWARD, 1, 1024, 128)
    wide = some.iloc[1:]
    assert set(wide["key_dim"]) == {64}
    assert min(wide["speedup"]) > 1.2
    return [
        f"Of the {len(some)} undecided points one is close, B1 H8 at 1k, head dim 128, forward: "
        f"{narrow['speedup']:.2f} [{narrow['speedup_low']:.2f}, {narrow['speedup_high']:.2f}]",
        "with head dim 64, one of three rounds",
        f"ratios are {wide['speedup'].min():.2f} to {wide['speedup'].max():.2f}",
    ]


def copies(frame: Frame, ours: Frame) -> list[str]:
    """The looks at the copy rate, by session: one value but for what the text tells."""
    records = Store(MACHINE).read()
    measured, looks = set(frame["session"]), dict[str, list[float]]()
    for look in (look for look in records.rooflines if look["session"] in measured):
        looks.setdefault(look["session"], []).append(look["copy_bytes_per_second"] / 1e12)
    low = {name: [x for x in rates if x < 3] for name, rates in looks.items()}
    slow = [name for name, rates in low.items() if rates]
    slowest = [x for rates in low.values() for x in rates]
    assert {f"{x:.2f}" for rates in looks.values() for x in rates if x > 3} <= {"3.02", "3.03"}
    whole = ours[ours["session"] == slow[0]]
    assert (set(whole["mode"]), set(whole["key_dim"])) == ({BOTH}, {128})
    return [
        f"3.02 to 3.03 TB/s at {sum(map(len, looks.values())) - len(slowest)} of "
        f"{sum(map(len, looks.values()))} looks",
        f"it was {min(slowest):.2f} to {max(slowest):.2f}",
        "which measured head dim 128 forward and backward",
        f"the shares of that session take {max(looks[slow[0]]):.2f}",
        f"{max(looks[slow[0]]) / float(np.median(looks[slow[0]])):.2f} times as large",
    ]


def spills(ours: Frame) -> list[str]:
    some = ours[ours["spills"] > 0]
    assert (set(some["mode"]), set(some["key_dim"])) == ({BOTH}, {128})
    from_ = some.groupby(["batch", "heads"])["length"].min().to_dict()
    assert from_ == {(1, 8): 8192, (4, 8): 2048, (4, 16): 1024, (8, 16): 1024}
    return [
        f"spill {some['spills'].min():.0f} to {some['spills'].max():.0f} registers from B1 H8 at 8k, "
        "B4 H8 at 2k and 16 heads at 1k on, with head dim 128; with 64 they spill none"
    ]


def provenance(frame: Frame) -> list[str]:
    sessions = Store(MACHINE).read().sessions
    commits = dict.fromkeys(sessions[name]["provenance"]["commit"] for name in frame["session"].unique())
    return [f"commits {' and '.join(commit[:7] for commit in commits)}"]
