"""The Triton linear attention without a GPU: interpreted against float64, and compiled for chips that are
not here."""

import json

import pytest
from triton_processes import interpreted, python

pytest.importorskip("triton")
FILE = "interpreted_linear_attention.py"


def test_interpreted():
    interpreted("not slow", FILE, seconds=200)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_interpreted_over_more_shapes():
    interpreted("slow", FILE, seconds=1400)


def test_rows_are_copied_where_descriptors_could_not_read_them():
    import torch

    from tnbench.kernels.layout import aligned

    x = torch.randn(2, 6, 3, 16).bfloat16()
    assert aligned(x) is x
    assert aligned(x[:, ::2]).data_ptr() == x.data_ptr()
    assert aligned(x[:, :, :1].expand(2, 6, 3, 16)).stride(2) == 0
    for y in (x[..., 1:9], x[:, :1].expand(2, 6, 3, 16), x[..., ::2], x.mT):
        copy = aligned(y)
        assert copy.is_contiguous()
        assert torch.equal(copy, y)


@pytest.mark.parametrize("quick", [True, False])
def test_kept_launches_are_left_alone_while_launches_are_watched(quick: bool, monkeypatch):
    import torch

    from tnbench.kernels import devices
    from tnbench.kernels.linear_attention import plans

    class Taken(Exception):
        pass

    def taken(*arguments):
        raise Taken

    monkeypatch.setattr(devices, "quick_launches", quick)
    plan = plans.Plan.__new__(plans.Plan)
    plan.ready = type("Kept", (dict,), {"get": taken})()
    asked = (lambda *arguments: pytest.fail("Triton was asked")) if quick else taken
    monkeypatch.setattr(plan, "_arguments", asked, raising=False)
    with pytest.raises(Taken):
        plan._launch("outputs", (torch.zeros(1, 1, 1, 16),), (), 1.0)


def compiled(capability: int, *dims: int) -> None:
    """No spills, shared memory within the chip, and the chip's own matrix instructions."""
    command = ("-m", "tnbench.kernels.compiled", "linear_attention", str(capability), *(str(d) for d in dims))
    done = python(*command, interpret=False, seconds=1000)
    assert done.returncode == 0, done.stderr[-4000:]
    from tnbench.kernels.compiled import SHARED

    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows
    for row in rows:
        # The three walks of `gradients` share a kernel: a few words wait in memory for their walk's turn.
        assert row["spills"] <= (24 if row["kernel"].startswith("gradients,") else 0), row
        assert row["shared"] <= SHARED[capability], row
        if capability == 90 and "decay" not in row["kernel"]:
            assert row["wgmma"] > 0, row
            assert row["mma"] == 0, row


def test_compiled():
    compiled(90, 128)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiled_for_more_chips_and_head_dims(capability):
    compiled(capability, 16, 64, 96, 128, 192, 256)
