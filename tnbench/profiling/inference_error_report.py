"""Records of the two inference algorithms as tidy tables, a table to read, and a figure."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from PIL import Image

from tnbench.errors import RequestError
from tnbench.records import write_atomic
from tnbench.report.drawing import FONT, INK, WIDTH, save, style
from tnbench.report.results import Frame

FOLDER = Path("models") / "inference-error"
"""Where a results folder has the records."""
RECORDS = "records.jsonl"
"""The study on the first line, then the errors of an algorithm in a dtype and head on each."""
LINES: dict[str, Any] = {
    "original": {"linestyle": "-", "linewidth": 1.1},
    "robust": {"linestyle": (0, (1, 1.2)), "linewidth": 0.9},
    "robust-narrow": {"linestyle": (0, (4, 1.4)), "linewidth": 0.8},
}
NAMES = {
    "original": "original",
    "robust": "robust, state in fp32",
    "robust-narrow": "robust, state in the dtype",
}
DPI = 150
PANEL = 1.55
"""Height of a panel in inches."""


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write a record, whose `series` are the lines after the first."""
    head = {name: value for name, value in record.items() if name != "series"}
    lines = [json.dumps(part, ensure_ascii=False) for part in (head, *record["series"])]
    write_atomic(folder / RECORDS, "\n".join(lines) + "\n")


def require_alike(folder: Path, study: Mapping[str, Any], dtypes: Sequence[str]) -> None:
    """Refuse to write over the records of another study.

    Raises:
        RequestError: there are such records, or such as cannot be read.
    """
    if not (folder / RECORDS).exists():
        return
    there = read(folder)
    alike = all(there.get(name) == value for name, value in study.items())
    if not alike or list(there.get("log_limits") or ()) != list(dtypes):
        raise RequestError(f"{folder} holds another study; choose another folder with --results")


def require_alone(context: typer.Context, *names: str) -> None:
    """Refuse options beside `--report`, which would do nothing.

    Args:
        context: of the command.
        names: parameters that may be given.

    Raises:
        RequestError: there is another one.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    if {name for name, source in sources.items() if source and source.name == "COMMANDLINE"} - set(names):
        raise RequestError("--report rewrites what is in the records: only --results goes with it")


def read(folder: Path) -> dict[str, Any]:
    """The record of a folder.

    Raises:
        RequestError: there is none, or it is not one of these records.
    """
    path = folder / RECORDS
    try:
        record, *series = [json.loads(line) for line in path.read_text().splitlines()]
        if record["schema"] != 1 or not series:
            raise ValueError
    except FileNotFoundError:
        raise RequestError(f"no records in {folder}; measure first, without --report") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(folder) from error
    return {**record, "series": series}


def _damaged(folder: Path) -> RequestError:
    return RequestError(
        f"{folder / RECORDS} is damaged, or no record of tnbench.profiling.inference_error; measure again "
        "into another folder with --results"
    )


def load(folder: Path) -> Frame:
    """Errors over the position, tidy: all that the figure shows.

    Columns: dtype, algorithm (original, robust, robust-narrow), head (from 1), slope, position (steps from
    1), median, low, high (relative error and its quartiles), predicted (step at which λ^(−t)
    overflows), first, last (steps at which the original is first not finite, over the seeds; NaN: none).
    """
    record = read(folder)
    series = pd.concat([pd.DataFrame(row) for row in record["series"]], ignore_index=True)
    frame = series.merge(overflow(record), on=["dtype", "head"])
    label = ["dtype", "algorithm", "head", "slope"]
    return frame[[*label, "position", "median", "low", "high", "predicted", "first", "last"]]


def overflow(record: dict[str, Any]) -> Frame:
    """Overflow steps, a row for each dtype and head.

    Columns: dtype, head, slope, predicted (of λ^(−t)), state_first, state_last (of λ^(−t) S_t in float64),
    first, last (seen in `original`), seeds, seen_seeds (those in which it overflowed), agree (those in which
    the step seen is the state's).
    """
    rows: list[dict[str, Any]] = []
    for row in record["overflow"]:
        state, seen = ([step for step in row[kind] if step is not None] for kind in ("state", "seen"))
        rows.append(
            {
                **{name: row[name] for name in ("dtype", "head", "slope", "predicted")},
                "state_first": min(state, default=None),
                "state_last": max(state, default=None),
                "first": min(seen, default=None),
                "last": max(seen, default=None),
                "seeds": len(row["seen"]),
                "seen_seeds": len(seen),
                "agree": sum(a == b for a, b in zip(row["state"], row["seen"], strict=True)),
            }
        )
    columns = ["state_first", "state_last", "first", "last"]
    return pd.DataFrame(rows).astype(dict.fromkeys(columns, "Int64"))


def span(first: Any, last: Any) -> str:
    """A range of steps.

    >>> span(170, 172), span(23, 23), span(None, None)
    ('170–172', '23', '–')
    """
    if pd.isna(first):
        return "–"
    return f"{first}" if first == last else f"{first}–{last}"


def number(x: float) -> str:
    """An error with two digits.

    >>> number(1.23e-07)
    '1.2e-07'
    """
    return "–" if pd.isna(x) else f"{x:.1e}"


def named(slope: float) -> str:
    """A slope as a fraction where it is one but for the 1e-5 of the official temperature.

    >>> named(0.500005), named(0.0625006), named(0.3)
    ('1/2', '1/16', '0.3')
    """
    inverse = 1 / slope
    return f"1/{round(inverse)}" if abs(inverse / round(inverse) - 1) < 2e-5 else f"{slope:.3g}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def steps_table(record: dict[str, Any]) -> str:
    """Predicted and seen overflow steps: a row for each head, the columns of each dtype side by side."""
    steps = overflow(record).to_dict("records")
    dtypes = list(dict.fromkeys(row["dtype"] for row in steps))
    rows: dict[int, list[str]] = {}
    for row in steps:
        cells = rows.setdefault(row["head"], [str(row["head"]), named(row["slope"])])
        cells += [str(row["predicted"]), span(row["first"], row["last"])]
    kinds = [f"{dtype} {what}" for dtype in dtypes for what in ("predicted", "seen")]
    return markdown(["head", "slope", *kinds], list(rows.values()))


def errors_table(record: dict[str, Any]) -> str:
    """Median errors of each dtype and algorithm, from the smallest to the largest of the heads.

    Three columns: at the last position kept up to half the predicted overflow step of the head, at the last
    position kept (of `original`, the last before its overflow), and the largest of all positions.
    """
    predicted = {(row["dtype"], row["head"]): row["predicted"] for row in record["overflow"]}
    rows = []
    for dtype, algorithm in dict.fromkeys((row["dtype"], row["algorithm"]) for row in record["series"]):
        mine = [row for row in record["series"] if (row["dtype"], row["algorithm"]) == (dtype, algorithm)]
        halves = [predicted[dtype, row["head"]] / 2 for row in mine]
        half = [
            max(zip(row["position"], row["median"], strict=True), key=lambda pair: (pair[0] <= end, pair[0]))[
                1
            ]
            for row, end in zip(mine, halves, strict=True)
        ]
        last, largest = [row["median"][-1] for row in mine], [max(row["median"]) for row in mine]
        cells = [f"{number(min(values))} to {number(max(values))}" for values in (half, last, largest)]
        rows.append([dtype, NAMES[algorithm], *cells])
    return markdown(["dtype", "algorithm", "half way to overflow", "last position", "largest"], rows)


def model_table(record: dict[str, Any]) -> str:
    """The whole model: the first token whose logits are lost, and the largest error before."""
    rows = []
    for row in record["model"]["rows"]:
        lost = [step for step in row["first_lost"] if step is not None]
        steps = span(min(lost), max(lost)) if lost else "none"
        rows.append([row["dtype"], NAMES[row["algorithm"]], steps, number(row["largest_error"])])
    header = ["dtype", "algorithm", "first token without finite logits", "largest error before"]
    return markdown(header, rows)


def report(folder: Path) -> str:
    """Write the tables and the figure of a folder from its records, and return the table to read.

    Raises:
        RequestError: there are no records, or some that nothing can be made of; nothing has been written.
    """
    try:
        contents = _contents(folder)
    except RequestError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _damaged(folder) from error
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return str(contents["table.md"])


def _contents(folder: Path) -> dict[str, str | bytes]:
    """Every file by its name."""
    record, frame = read(folder), load(folder)
    errors = frame.drop(columns=["slope", "predicted", "first", "last"])
    drawn = figure(frame)
    return {
        "errors.csv": errors.to_csv(index=False),
        "overflow.csv": overflow(record).to_csv(index=False),
        "table.md": "\n\n".join([steps_table(record), errors_table(record), model_table(record)]) + "\n",
        "inference-error.png": _indexed(save(drawn, "png", dpi=DPI)),
        "inference-error.pdf": save(drawn, "pdf"),
    }


def _indexed(png: bytes, colors: int = 96) -> bytes:
    """The same image with a table of colours, a quarter of the size."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(colors)
    image.save(buffer, "png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def figure(frame: Frame) -> Figure:
    """Error over the position, a panel for each dtype, a colour for each head.

    Args:
        frame: what `load` gives.
    """
    dtypes = list(dict.fromkeys(frame["dtype"]))
    heads = sorted(set(frame["head"]))
    ramp = matplotlib.colormaps["viridis"]
    colors = {head: ramp(0.87 * index / max(1, len(heads) - 1)) for index, head in enumerate(heads)}
    with style():
        bottom, top, between = 0.78, 0.36, 0.42
        height = bottom + top + PANEL * len(dtypes) + between * (len(dtypes) - 1)
        made = Figure(figsize=(WIDTH, height))
        grid = made.subplots(len(dtypes), 1, sharex=True, squeeze=False)[:, 0]
        made.subplots_adjust(
            left=0.58 / WIDTH,
            right=1 - 0.12 / WIDTH,
            bottom=bottom / height,
            top=1 - top / height,
            hspace=between / PANEL,
        )
        for axes, dtype in zip(grid, dtypes, strict=True):
            _draw(axes, dtype, frame[frame["dtype"] == dtype], colors)
        grid[-1].set_xlabel("position (steps decoded)")
        middle = (bottom + height - top) / 2 / height
        label = "relative error of a head's output against float64"
        made.text(0.07 / WIDTH, middle, label, rotation=90, va="center")
        present = [name for name in LINES if name in set(frame["algorithm"])]
        handles = [Line2D([], [], color=INK, label=NAMES[name], **LINES[name]) for name in present]
        marks: dict[str, Any] = {"color": INK, "linestyle": "", "markersize": 4}
        handles.append(Line2D([], [], marker="x", label="original, before its overflow", **marks))
        handles.append(Line2D([], [], marker="v", label="predicted overflow, slope", **marks))
        below: Any = {"loc": "lower center", "borderaxespad": 0.2, "columnspacing": 1.2, "handlelength": 2.4}
        made.legend(handles=handles, frameon=False, ncols=3, **below)
    return made


def _draw(axes: Axes, dtype: str, rows: Frame, colors: dict[int, Any]) -> None:
    axes.set_title(dtype, loc="left", fontweight="bold", pad=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, 1.35 * float(max(rows["position"])))
    low, high = min(rows["median"]), max(rows["median"])
    axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(1.3 * high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    top = axes.get_xaxis_transform()
    for head, color in colors.items():
        mine = rows[rows["head"] == head]
        for algorithm, line in LINES.items():
            curve = mine[mine["algorithm"] == algorithm]
            axes.plot(curve["position"], curve["median"], color=color, **line)
        curve = mine[mine["algorithm"] == "original"]
        end: Any = curve.iloc[-1]
        if pd.notna(end["first"]):
            axes.plot(end["position"], end["median"], "x", color=color, markersize=4)
        predicted = end["predicted"]
        if predicted <= axes.get_xlim()[1]:
            mark: dict[str, Any] = {"color": color, "transform": top, "clip_on": False}
            axes.plot([predicted, predicted], [0, 1], linewidth=0.5, alpha=0.6, zorder=0, **mark)
            axes.plot(predicted, 1.0, "v", markersize=4, **mark)
            beside: Any = {"textcoords": "offset points", "ha": "center", "fontsize": FONT - 0.5}
            axes.annotate(named(end["slope"]), (predicted, 1.0), (0, 4), xycoords=top, **beside)
