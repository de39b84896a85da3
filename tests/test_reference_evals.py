"""The committed evaluations: tables follow from the records, README's numbers from the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tnbench.evaluation import by_position, outcomes
from tnbench.evaluation.study import Store
from tnbench.statistics import mean_interval

ROOT = Path(__file__).parent.parent
STORE = Store(ROOT / "results" / "reference" / "evals")


def section() -> str:
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text())
    found = text[text.index("## What the quickstart's models know") :]
    return " ".join(found[: found.index("\n## ", 5)].replace("−", "-").split())


def test_tables_follow_from_the_records():
    lines, problems = STORE.read()
    assert not problems
    frame, compared = outcomes.rows(lines), outcomes.comparisons(STORE, lines)
    assert frame.to_csv(index=False) == (STORE.folder / "results.csv").read_text()
    there = pd.read_csv(STORE.folder / "comparisons.csv")
    for name in ("difference", "low", "high"):
        assert list(compared[name]) == pytest.approx(list(there[name]), rel=1e-9)
    assert list(compared["verdict"]) == list(there["verdict"])
    table = outcomes.markdown(outcomes.cells(frame, compared))
    assert table == (STORE.folder / "table.md").read_text()
    positions = by_position.rows(STORE.positions())
    assert positions.to_csv(index=False) == (STORE.folder / "positions.csv").read_text()


def test_readme_says_what_the_tables_say():
    said = section()
    frame: Any = pd.read_csv(STORE.folder / "results.csv")
    right = frame[frame["metric"] == "acc"]
    assert f"from {right['value'].min():.3f} to {right['value'].max():.3f}" in said
    assert right["at_chance"].all()
    pairs: Any = pd.read_csv(STORE.folder / "comparisons.csv")
    known = {f"{right['value'].min():.3f}", f"{right['value'].max():.3f}"}
    for row in pairs[pairs["metric"] == outcomes.ITEM_BITS].to_dict("records"):
        text = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        assert text in said, text
        known |= set(re.findall(r"\d+\.\d+", text))
    positions: Any = pd.read_csv(STORE.folder / "positions.csv")
    for model, words in (("transnormerllm", "(2.596 bits"), ("transformer", "(2.389 and")):
        mine = positions[positions["model"].str.startswith(model)].set_index("begin")["bits_per_token"]
        assert words.startswith(f"({mine[64]:.3f}")
        assert f"{mine[1024]:.3f}" in said
        known |= {f"{mine[64]:.3f}", f"{mine[1024]:.3f}"}
        assert words in said
    assert set(re.findall(r"\d+\.\d+", said)) <= known
    assert {row["items"] for row in pairs.to_dict("records")} == {500}
    assert set(positions[positions["end"] == 2049]["windows"]) == {128}
    assert "500 questions and 128 windows" in said


def test_the_anchor():
    """The table of docs/evaluation.md, and what is said of it."""
    store = Store(ROOT / "results" / "reference" / "anchor")
    lines, problems = store.read()
    assert not problems
    frame: Any = outcomes.rows(lines)
    compared = outcomes.comparisons(store, lines)
    table = outcomes.markdown(outcomes.cells(frame, compared), outcomes.family(compared))
    assert table == (store.folder / "table.md").read_text()
    right = frame[frame["metric"] == "acc"]
    right = right.assign(kind=[str(name).split()[0] for name in right["model"]])
    said = (ROOT / "docs" / "evaluation.md").read_text().split("## A sanity anchor\n")[1].split("\n## ")[0]
    names = {"arc_easy": "ARC-Easy", "piqa": "PIQA", "sciq": "SciQ", "winogrande": "WinoGrande"}
    assert set(right["task"]) == set(names)
    assert set(right["limit"]) == {100}
    kinds = ("SmolLM2-135M-Instruct.Q4_1", "transnormerllm", "transformer")
    for task, name in names.items():
        mine = right[right["task"] == task].set_index("kind")
        values = [f"{mine.loc[kind, 'value']:.3f}" for kind in kinds]
        assert f"| {name} | {' | '.join(values)} | {mine['chance'].iloc[0]:.3f} |" in said
    ends = right["stderr"].min(), right["stderr"].max()
    assert f"{ends[0]:.3f} to {ends[1]:.3f}" in said
    small = right["kind"] != kinds[0]
    assert right[small]["at_chance"].all()
    assert set(right[~small & right["at_chance"]]["task"]) == {"winogrande"}


def test_the_speed_beside_lm_eval():
    """The table of docs/evaluation.md."""
    path = ROOT / "results" / "reference" / "eval-speed" / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    said = (ROOT / "docs" / "evaluation.md").read_text().split("## Speed\n")[1]
    names = {"arc_challenge": "ARC-Challenge, 5 examples", "piqa": "PIQA"}
    assert [line["task"] for line in lines] == list(names)
    for line in lines:
        forward = line["forward"]
        texts = [
            f"{one['speedup']:.2f} [{one['speedup_low']:.2f}, {one['speedup_high']:.2f}]"
            for one in (line, forward)
        ]
        assert f"| {names[line['task']]} | {line['requests']} | {texts[0]} | {texts[1]} |" in said
        assert (line["threads"], line["precision"], line["model"]["size"]) == (2, "fp32", "10m")
        assert (len(line["ours_seconds"]), list(line["hf_seconds"])) == (6, ["1", "4", "16"])
    assert lines[0]["num_fewshot"] == 5
    apart = max(line["largest_difference_nats"] for line in lines)
    assert f"at most {apart:.1e} nats apart" in said


def test_the_loss_by_position_of_the_suite():
    """The table of docs/evaluation.md, from the records of the evaluations, by variant and seed."""
    folder = ROOT / "results" / "reference" / "positions"
    kept: dict[str, dict[int, list[float]]] = {}
    for line in (folder / "evals" / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        run = folder / "length" / "runs" / record["identity"]["run"]
        mine = kept.setdefault(json.loads((run / "manifest.json").read_text())["variant"], {})
        for begin, bits in zip(record["edges"][:-1], record["bits"], strict=True):
            mine.setdefault(begin, []).append(bits / record["bytes_per_token"])
    said = (ROOT / "docs" / "evaluation.md").read_text().split("## Loss by position\n")[1].split("\n## ")[0]
    lines = [line.split(" | ") for line in said.splitlines() if re.search(r"\[\d", line)]
    assert len(lines) == len(kept) == 16
    for name, *cells in lines:
        mine = kept[re.split("[:,]", name.removeprefix("| "))[0]]
        for begin, cell in zip((64, 1024), cells, strict=True):
            if begin not in mine:
                assert "ends at 128" in cell
                continue
            found = mean_interval(mine[begin], 0.05)
            assert found.n == 3
            assert cell.rstrip(" |") == f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
