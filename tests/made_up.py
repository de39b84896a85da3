"""Suites of synthetic numbers, as reports are given them; no training."""

import numpy as np
import pandas as pd

from tnbench.report.results import CURVE_COLUMNS, RUN_COLUMNS, TUNING_COLUMNS, Choice, SuiteResults

TOKENS = np.arange(1, 21) * 102_400
FACTS = {
    "corpus": "synthetic numbers (no training)",
    "context": "256 tokens",
    "tokens per run": "2.05M",
    "device": "cpu, 1 thread",
    "command": "tnbench ablate quickstart --results 'results & more'",
}
DIFFS = {
    "transnormerllm": {},
    "no-decay": {"model.decay": None},
    "softmax": {"model.mixer.name": "softmax", "model.position.name": "rope"},
    "rmsnorm": {"model.norm": "rmsnorm"},
    "no-gate": {"model.gate": False},
}
SHIFTS = {"no-decay": 0.034, "softmax": -0.012, "rmsnorm": 0.0004, "no-gate": 0.019}
LOST = {("no-gate", 1): "diverged", ("softmax", 2): "missing"}
REASONS = {"diverged": "loss is not finite"}
RATE = "training.learning_rate"
RATES = (0.0005, 0.001, 0.002, 0.004)


def suite(diffs=None, seeds=(0, 1, 2), lost=None, tune=(), **fields) -> SuiteResults:
    """The results of a suite.

    Args:
        lost: (variant, seed) → an outcome other than finished.
        tune: learning rates to have been tried, with seeds 100 and 101; the largest diverges for no-gate.
        fields: other fields of `SuiteResults`.
    """
    diffs, lost = DIFFS if diffs is None else diffs, lost or {}
    runs, curves = [], []
    for index, variant in enumerate(diffs):
        for seed in seeds:
            outcome = lost.get((variant, seed), "finished")
            final, path = _training(index, variant, seed)
            run = _run(index, variant, seed, outcome, final)
            runs.append(run)
            if outcome in ("missing", "out_of_memory", "failed"):
                continue
            if outcome == "diverged":
                rise = 0.02 * np.exp(np.arange(20.0).clip(max=6)) / 20
                path = np.where(np.arange(20) < 6, path + rise, np.nan)
            about = (variant, seed, run["run_id"], "val_bits_per_byte", "tune", "bits per byte")
            curves += [
                (*about, 20 * step, tokens, value)
                for step, (tokens, value) in enumerate(zip(TOKENS, path, strict=True), start=1)
            ]
    given = {"facts": FACTS, "title": "Parts of TransNormerLLM", "fixed": "one corpus, one size", **fields}
    if tune:
        frame = tuning(diffs, tune)
        given = {"tuning": frame, "choices": choices(frame), **given}
    return SuiteResults(
        name="quickstart",
        base=given.pop("base", next(iter(diffs))),
        diffs=diffs,
        runs=pd.DataFrame(runs, columns=list(RUN_COLUMNS)),
        curves=pd.DataFrame(curves, columns=list(CURVE_COLUMNS)),
        **given,
    )


def _shift(index: int, variant: str) -> float:
    """The true difference of a variant to the base."""
    return SHIFTS.get(variant, 0.008 * index)


def _training(index, variant, seed):
    """The final value of a run, and its values on the way; part of the noise is shared by all of a seed."""
    noise = np.random.default_rng([index, seed])
    shared = 0.006 * np.random.default_rng(seed).normal()
    final = 1.82 + _shift(index, variant) + shared + 0.002 * noise.normal()
    fall = 0.9 * ((TOKENS / TOKENS[0]) ** -0.7 - 20**-0.7)
    return final, final + fall + 0.002 * noise.normal(size=len(TOKENS))


def _run(index, variant, seed, outcome, final):
    run = dict.fromkeys(RUN_COLUMNS, np.nan)
    run |= {"variant": variant, "seed": seed, "outcome": outcome, "host": "made-up"}
    run |= {"run_id": f"{index:02d}{seed:02d}abcd" if outcome != "missing" else None}
    run |= {"parameters": 204_800 + 512 * index, "non_embedding_parameters": 108_032 + 512 * index}
    run |= {"flops_per_token": 4.1e5, "state_size": 8192, "attempts": 1, "started": "2024-01-01T00:00:00Z"}
    if outcome == "finished":
        run |= {"val_bits_per_byte": final, "val_loss_nats": final * 0.69, "train_seconds": 120.5}
        run |= {"steps": 400, "tokens": TOKENS[-1], "epochs": 1.4}
        run |= {"tokens_per_second": 17_000 - 900 * index + 50 * seed}
        run |= {"peak_memory_bytes": (410 + 9 * index) * 2**20}
    if outcome == "diverged":
        run |= {"reason": REASONS[outcome], "stopped_step": 120}
    return run


def tuning(diffs, rates) -> pd.DataFrame:
    """Tuning runs whose loss is a parabola in the logarithm of the learning rate."""
    rows = []
    for index, variant in enumerate(diffs):
        for rate in rates:
            for seed in (100, 101):
                noise = 0.003 * np.random.default_rng([index, seed, int(rate * 1e5)]).normal()
                away = np.log2(rate / 0.0016) - 0.4 * index
                value = 1.84 + _shift(index, variant) + 0.012 * away**2 + noise
                diverged = (variant, rate) == ("no-gate", max(rates)) and seed == 100
                run_id = f"{index:02d}{seed}{round(rate * 1e5):04d}"
                end = ("diverged", "loss is not finite", 120) if diverged else ("finished", "", 200)
                rows.append((variant, seed, run_id, *end, np.nan if diverged else value, rate))
    return pd.DataFrame(rows, columns=[*TUNING_COLUMNS, RATE])


def choices(frame) -> dict[str, Choice]:
    """The best learning rate of each variant; a rate that diverged scores 8."""
    found = {}
    for variant, runs in frame.groupby("variant", sort=False):
        scores = runs.fillna({"value": 8.0}).groupby(RATE)["value"].mean()
        best, ends = float(scores.idxmin()), {scores.index[0]: "smallest", scores.index[-1]: "largest"}
        edge = f"{RATE} at its {ends[best]}, {best:g}" if best in ends else ""
        found[variant] = Choice(
            {RATE: best}, scores.min(), len(runs), edge, float(scores.mean() - scores.min())
        )
    return found
