"""The norms and LRPE without a GPU: refusals, configurations, interpreter, compiler."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from triton_processes import interpreted, python

from tnbench.kernels import lrpe
from tnbench.kernels.compiled import SHARED
from tnbench.kernels.lrpe import rotate
from tnbench.kernels.normalisation import add_norm, norm
from tnbench.kernels.normalisation.configurations import (
    OPERATIONS,
    SUMMING,
    Configuration,
    by_rule,
    configuration,
    tuned,
)


@pytest.mark.parametrize("only", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(only: str):
    interpreted(only, "interpreted_norms.py", "interpreted_lrpe.py")


@pytest.mark.parametrize(
    ("capability", "every"),
    [
        (90, ""),
        pytest.param(80, "every", marks=pytest.mark.slow),
        pytest.param(90, "every", marks=pytest.mark.slow),
        pytest.param(100, "every", marks=pytest.mark.slow),
    ],
)
def test_compiled_kernels_spill_nothing_and_read_16_bytes(capability: int, every: str):
    pytest.importorskip("triton")
    done = python("compiled_norms.py", str(capability), every, interpret=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= (60 if every else 5)
    for row in rows:
        assert row["spills"] == 0, row
        assert row["shared"] <= SHARED[capability], row
        assert row["wide"] > 0, row
        # What is summed over rows is a single row.
        summed = any(name in row["kernel"] for name in ("sums", *SUMMING))
        assert row["narrow"] <= (2 if summed else 0), row


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rule_fits_the_chip(operation: str):
    for block in [2**n for n in range(16)]:
        chosen = by_rule(operation, block)
        assert 1 <= chosen.warps <= 32
        assert chosen.rows & (chosen.rows - 1) == 0
        assert (chosen.waves > 0) == (operation in SUMMING)


def test_table_and_rule():
    assert configuration("norm", 4096, 2, "sm_90") == Configuration(**tuned()["sm_90 norm 4096"])
    assert configuration("norm", 2048, 4, "sm_90") == Configuration(**tuned()["sm_90 norm 4096"])
    assert configuration("norm", 4096, 2, "sm_80") == by_rule("norm", 4096)
    assert configuration("norm", 32768, 4, "sm_80") is None
    assert configuration("weighted_backward", 16384, 2, "sm_80") is None
    for name, row in tuned().items():
        architecture, operation, block = name.split()
        assert architecture.startswith("sm_")
        assert operation in OPERATIONS
        assert (Configuration(**row).waves > 0) == (operation in SUMMING), name
        assert int(block) & (int(block) - 1) == 0


def test_definition():
    """By hand: a row of 3 and 4 has the mean square 12.5."""
    x = torch.tensor([[3.0, 4.0]])
    assert torch.allclose(norm(x, eps=0.0), x / 12.5**0.5)
    assert torch.allclose(norm(x, gate=2 * x, eps=0.0), 2 * x * x / 12.5**0.5)
    assert torch.allclose(norm(x, centred=True, eps=0.0), torch.tensor([[-1.0, 1.0]]))
    y, total = add_norm(x, x, weight=torch.tensor([1.0, 2.0]), eps=0.0)
    assert torch.equal(total, 2 * x)
    assert torch.allclose(y, x / 12.5**0.5 * torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"gate": torch.ones(2, 4)}, "gate must have x's shape"),
        ({"weight": torch.ones(4)}, r"weight must be \(3,\)"),
        ({"activation": "silu"}, "known are none, swish, sigmoid"),
        ({"implementation": "trtion"}, "known are auto, reference, triton"),
        ({"x": torch.ones(2, 3).double(), "implementation": "triton"}, "float64; take auto or reference"),
        ({"x": torch.ones(2, 0)}, "at least one column"),
        ({"weight": torch.ones(3, device="meta")}, "weight must be on cpu"),
        ({"gate": torch.ones(2, 3, device="meta")}, "gate must be on cpu"),
    ],
)
def test_norm_refuses(arguments: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        norm(**{"x": torch.ones(2, 3), **arguments})


@pytest.mark.parametrize(
    ("shape", "theta", "form", "says"),
    [
        ((2, 3, 4), (1, 4), "cosine", "batch, time, heads, head dim"),
        ((1, 2, 3, 4), (2, 4), "cosine", r"theta must be \(3 or 1, 4\)"),
        ((1, 2, 3, 5), (3, 2), "rotation", "an even number"),
        ((1, 2, 3, 4), (3, 4), "cosin", "known are cosine, rotation"),
    ],
)
def test_rotate_refuses(shape: tuple[int, ...], theta: tuple[int, int], form: str, says: str):
    with pytest.raises(ValueError, match=says):
        rotate(torch.ones(shape), torch.ones(shape), torch.ones(theta), form=form)


def test_operands_on_several_devices_are_refused():
    x, theta = torch.ones(1, 2, 3, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match="residual must be on cpu"):
        add_norm(x, x.to("meta"))
    with pytest.raises(ValueError, match="theta must be on cpu"):
        rotate(x, x, theta.to("meta"))
    with pytest.raises(ValueError, match="k must be on cpu"):
        rotate(x, x.to("meta"), theta)


def test_what_is_kept_belongs_to_one_device():
    pytest.importorskip("triton")
    from tnbench.kernels.normalisation.launching import _sums

    first, second = (_sums(torch.device("cuda", n), 1, 264, 1024, torch.float32) for n in (0, 1))
    assert first is not second
    assert first is _sums(torch.device("cuda", 0), 1, 264, 1024, torch.float32)


def test_heads_beyond_32_bits_are_copied():
    """They stand `head · stride` apart, which the kernels count in 32 bits."""
    pytest.importorskip("triton")
    from tnbench.kernels.lrpe.triton_op import _reachable

    near, far = (
        torch.empty_strided((1, 1, 16, 2), (1, 2, stride, 1), device="meta") for stride in (1 << 20, 1 << 27)
    )
    assert _reachable(near) is near
    assert _reachable(far).stride(2) == 2


def test_auto_takes_the_reference_and_says_so_once(caplog: pytest.LogCaptureFixture):
    from tnbench.kernels import devices

    devices._said.clear()
    x = torch.randn(2, 3, 4, 8)
    for _ in range(2):
        assert torch.equal(norm(x), norm(x, implementation="reference"))
        found = rotate(x, x, torch.ones(4, 8))
        assert torch.equal(found[0], rotate(x, x, torch.ones(4, 8), implementation="reference")[0])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["norm"]
    assert not lrpe.takes_kernels(x)
