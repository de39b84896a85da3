"""The rows of `models.csv`: one schema for every mode, from the records alone.

Seconds and FLOPs are per call: an optimizer step, a prefill, a decoded token of every sequence. A cell is
empty where it does not apply or was not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from tnbench.profiling.lines import Line
from tnbench.profiling.models.flops import dense_peak
from tnbench.profiling.models.store import Block, Records
from tnbench.profiling.speedups import Speedup, speedup
from tnbench.report.results import Frame

CASE = ("mode", "size", "context", "batch", "vocabulary", "precision", "suite")
COLUMNS = (
    *CASE,
    *("variant", "source", "diff", "form", "status", "reason"),
    *("parameters", "non_embedding_parameters"),
    *("tokens_per_second", "tokens_per_second_p10", "tokens_per_second_p90"),
    *("latency_seconds", "latency_p10", "latency_p90", "seconds_per_token"),
    *("base", "ratio", "ratio_low", "ratio_high", "verdict"),
    *("tflops", "mfu", "mfu_measured", "flops_per_token", "counted_flops_per_token", "counted_ratio"),
    *("floor_seconds", "floor_share"),
    *("peak_memory_bytes", "predicted_memory_bytes", "memory_error", "state_bytes"),
    *("joules_per_token", "watts", "first_call_seconds"),
    *("interleaved", "rounds", "device", "memory_limit_bytes", "versions", "code", "session", "measured"),
    "reproduce",
)
"""Columns of models.csv. ratio: tokens/s over those of the first variant of the point; mfu: of the dense bf16
peak of the data sheet; mfu_measured: of the matmul rate measured in the session; memory_error: predicted over
measured, less one."""

COMPARISONS = (*CASE, "variant", "against", "kind", "ratio", "low", "high", "verdict", "rounds")
"""Columns of comparisons.csv. kind: `base` or `peer`."""

LARGEST = (
    *("mode", "size", "axis", "context", "batch", "vocabulary", "precision", "suite"),
    *("variant", "status", "reason", "largest", "predicted", "prediction_error"),
    *("memory_bytes", "peak_memory_bytes", "trials", "device", "code", "session", "measured"),
)
"""Columns of largest.csv: `largest` is the value of `axis` that fits, the other one of context and batch is
what was held."""

WHOLE = (
    *("context", "batch", "vocabulary", "parameters", "non_embedding_parameters", "peak_memory_bytes"),
    *("predicted_memory_bytes", "state_bytes", "rounds", "memory_limit_bytes"),
    *("largest", "predicted", "memory_bytes", "trials"),
)


def models(records: Records) -> Frame:
    """Every row of the blocks that are shown: the content of models.csv."""
    return _frame([_row(records, block, row) for block in records.shown() for row in block.rows], COLUMNS)


def timed(row: Line) -> bool:
    """Whether a row has times."""
    return row["status"] == "ok" and bool(row.get("times"))


def _row(records: Records, block: Block, row: Line) -> dict[str, Any]:
    line = block.line
    session = records.sessions.get(line["session"], {})
    found = {
        **{name: block.case[name] for name in CASE},
        **{name: row.get(name) for name in ("variant", "source", "form", "status", "reason")},
        "diff": json.dumps(row["diff"], ensure_ascii=False) if row["diff"] else None,
        **{name: row.get(name) for name in ("parameters", "non_embedding_parameters", "state_bytes")},
        **{name: row.get(name) for name in ("peak_memory_bytes", "predicted_memory_bytes")},
        "memory_error": _error(row.get("predicted_memory_bytes"), row.get("peak_memory_bytes")),
        "first_call_seconds": row.get("first_call_seconds"),
        "interleaved": line["interleaved"],
        "device": session.get("device"),
        "memory_limit_bytes": block.case["limit"],
        "versions": " ".join(f"{name}={text}" for name, text in (session.get("versions") or {}).items()),
        "code": line["code"],
        "session": line["session"],
        "measured": line["time"],
        "reproduce": line["command"],
    }
    if row.get("tokens"):
        found |= _work(row)
    if timed(row):
        found |= _speed(records, block, row)
    return found


def _work(row: Line) -> dict[str, Any]:
    counted, formula, tokens = row.get("counted_flops"), row["flops"], row["tokens"]
    return {
        "flops_per_token": formula / tokens,
        "counted_flops_per_token": counted / tokens if counted else None,
        "counted_ratio": counted / formula if counted else None,
    }


def _speed(records: Records, block: Block, row: Line) -> dict[str, Any]:
    """What follows from the times of a row."""
    times, tokens, session = row["times"], row["tokens"], block.line["session"]
    seconds, energy = times["median"], row.get("energy") or {}
    copy = records.rate(session, "copy_bytes_per_second")
    matmul = records.rate(session, "matmul_flops_per_second")
    device = str(records.sessions.get(session, {}).get("device"))
    peak = dense_peak(device, block.case["precision"])
    floor = _floor(block.case["mode"], row, copy, matmul)
    computes = block.case["mode"] != "decode"  # decoding waits for memory, not for products
    joules = energy.get("joules_per_call")
    found = {
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_p10": tokens / times["p90"],
        "tokens_per_second_p90": tokens / times["p10"],
        "latency_seconds": seconds,
        "latency_p10": times["p10"],
        "latency_p90": times["p90"],
        "seconds_per_token": seconds / tokens,
        "tflops": row["flops"] / seconds / 1e12,
        "mfu": row["flops"] / seconds / peak if peak and computes else None,
        "mfu_measured": row["flops"] / seconds / matmul if matmul and computes else None,
        "floor_seconds": floor,
        "floor_share": floor / seconds if floor else None,
        "joules_per_token": joules / tokens if joules is not None else None,
        "watts": energy.get("watts"),
        "rounds": len(times["rounds"]),
    }
    base = block.rows[0]
    if timed(base) and base is not row:
        pair = compare(block, row, base)
        found |= {"base": base["variant"], "ratio": pair.ratio, "verdict": _verdict(pair)}
        found |= {"ratio_low": pair.low, "ratio_high": pair.high}
    return found


def _floor(mode: str, row: Line, copy: float | None, matmul: float | None) -> float | None:
    """Seconds that a call takes at least: its bytes at the copy rate or, if longer, its products at the
    matmul rate, both as measured in the session; of a decoding step the bytes alone."""
    if not copy or not matmul:
        return None
    moved = row["floor_bytes"] / copy
    return moved if mode == "decode" else max(moved, row["flops"] / matmul)


def compare(block: Block, own: Line, other: Line) -> Speedup:
    """Tokens/s of one row over those of another, of the same point: paired by rounds where these were
    interleaved; else the ratio of the medians, without an interval."""
    if not block.line["interleaved"]:
        ratio = other["times"]["median"] / own["times"]["median"]
        return Speedup(ratio, float("nan"), float("nan"), 0)
    mine, others = own["times"]["rounds"], other["times"]["rounds"]
    both = min(len(mine), len(others))
    return speedup(mine[:both], others[:both])


def _verdict(pair: Speedup) -> str | None:
    """None where there is no interval to judge by."""
    return pair.verdict if math.isfinite(pair.low) else None


def comparisons(records: Records) -> Frame:
    """Every variant against the base of its point, and ours against the peers: comparisons.csv."""
    rows = []
    for block, own, kind, other in _pairings(records):
        pair = compare(block, own, other)
        rows.append(
            {
                **{name: block.case[name] for name in CASE},
                "variant": own["variant"],
                "against": other["variant"],
                "kind": kind,
                "ratio": pair.ratio,
                "low": pair.low,
                "high": pair.high,
                "verdict": _verdict(pair),
                "rounds": pair.rounds,
            }
        )
    return _frame(rows, COMPARISONS)


def _pairings(records: Records) -> Iterator[tuple[Block, Line, str, Line]]:
    for block in records.shown():
        base, rows = block.rows[0], [row for row in block.rows if timed(row)]
        for row in rows:
            if timed(base) and row is not base:
                yield block, row, "base", base
            for peer in rows:
                if row["source"] == "ours" and peer["source"] == "peer":
                    yield block, row, "peer", peer


def largest(records: Records) -> Frame:
    """The largest contexts and batches that were searched for: largest.csv."""
    rows = []
    for line in records.searched():
        case = line["case"]
        fitted = [trial for trial in line["trials"] if trial["status"] == "ok"]
        best = max(fitted, key=lambda trial: trial["value"], default={})
        session = records.sessions.get(line["session"], {})
        rows.append(
            {
                **{name: case.get(name) for name in LARGEST[:8]},
                **{name: line[name] for name in ("variant", "status", "reason", "predicted", "memory_bytes")},
                "largest": line["value"],
                "prediction_error": _error(line["predicted"], line["value"]),
                "peak_memory_bytes": best.get("peak_memory_bytes"),
                "trials": len(line["trials"]),
                "device": session.get("device"),
                "code": line["code"],
                "session": line["session"],
                "measured": line["time"],
            }
        )
    return _frame(rows, LARGEST)


def _error(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1 if predicted and measured else None


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Frame:
    """Rows under a fixed schema; sizes and counts stay whole numbers beside empty cells."""
    frame: Frame = pd.DataFrame([dict(row) for row in rows], columns=list(columns))
    return frame.astype({name: "Int64" for name in WHOLE if name in frame})
