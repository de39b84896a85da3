"""The operator, at every length, decay, shape and segmentation."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tnbench.kernels import devices
from tnbench.kernels.linear_attention import TORCH, linear_attention
from tnbench.kernels.linear_attention.chunked import CHUNK, FEW_CHUNKS, chunked

SMALL = 4
"""A chunk size at which several chunks are cheap."""

torch.set_num_threads(1)

FORMS = {**TORCH, f"chunked by {SMALL}": partial(chunked, chunk=SMALL)}
ROBUST = [name for name in FORMS if name != "original"]
SLOPES = {"none": None, "zero": (0.0,) * 3, "one": (1.0,) * 3, "strong": (8.0,) * 3, "mixed": (0.0, 0.3, 8.0)}
LENGTHS = sorted({1, 2, *(n + k for n in (SMALL, CHUNK) for k in (-1, 0, 1)), SMALL * 5 // 2, CHUNK * 5 // 2})


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def arguments(
    time: int, *, batch: int = 1, heads: int = 3, dk: int = 5, dv: int = 6, seed: int = 0, dtype=torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k (batch, time, heads, dk), v (batch, time, heads, dv) and a state, all standard normal."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shapes = [(batch, time, heads, dk)] * 2 + [(batch, time, heads, dv), (batch, heads, dk, dv)]
    q, k, v, state = (draw(shape).to(dtype) for shape in shapes)
    return q, k, v, state


def log_decay(slopes: tuple[float, ...] | None, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return None if slopes is None else -torch.tensor(slopes, dtype=dtype)


def overflows(slopes: tuple[float, ...] | None, time: int) -> bool:
    """Whether λ^(−time), in float64, is beyond what leaves any accuracy in the original form."""
    return slopes is not None and max(slopes) * time > 600


def test_packed_sequences_are_sequences_of_their_own():
    """One of them is empty: its state stays what it was."""
    bounds = [0, 3, 3, CHUNK + 9]
    q, k, v, _ = arguments(bounds[-1])
    state = torch.randn(3, *v.shape[2:3], q.shape[-1], v.shape[-1], dtype=q.dtype)
    decay = log_decay(SLOPES["mixed"])
    packed = torch.tensor(bounds, dtype=torch.int32)
    for name in TORCH.keys() - {"original"}:
        out, final = linear_attention(
            q, k, v, decay, initial_state=state, output_state=True, cu_seqlens=packed, implementation=name
        )
        assert final is not None
        torch.testing.assert_close(final[1], state[1])
        for n in (0, 2):
            piece = slice(bounds[n], bounds[n + 1])
            alone, after = linear_attention(
                q[:, piece],
                k[:, piece],
                v[:, piece],
                decay,
                initial_state=state[n : n + 1],
                output_state=True,
            )
            torch.testing.assert_close(out[:, piece], alone)
            torch.testing.assert_close(final[n : n + 1], after)
    with pytest.raises(ValueError, match=f"rise from 0 to the time {bounds[-1]}"):
        linear_attention(q, k, v, decay, cu_seqlens=packed - 1)


def test_precise_products_of_16_bit_inputs():
    q, k, v, _ = arguments(2 * CHUNK, dtype=torch.bfloat16)
    exact, _ = linear_attention(q.double(), k.double(), v.double())
    errors = [
        (linear_attention(q, k, v, precise=precise)[0].double() - exact).norm() / exact.norm()
        for precise in (False, True)
    ]
    assert errors[1] < 1.8e-3 < errors[0]  # 2^-9 / sqrt(3) is the rounding of a bf16 output alone


def test_fall_back_is_said_once(caplog: pytest.LogCaptureFixture):
    q, k, v, _ = arguments(4, dtype=torch.float32)
    devices._said.clear()
    for _ in range(3):
        linear_attention(q, k, v)
    assert [record.getMessage() for record in caplog.records] == [
        "linear_attention: the chunked form instead of the Triton kernels "
        "(they need an NVIDIA GPU, and the tensors are on cpu)"
    ]
    with pytest.raises(ValueError, match=r"implementation triton: they need an NVIDIA GPU.*take auto"):
        linear_attention(q, k, v, implementation="triton")


def test_three_steps_by_hand():
    """λ = 1/2: S_1 = 1·2 = 2, S_2 = 2/2 + 2·1 = 3, S_3 = 3/2 + (−1)·3 = −3/2; o = q S = (2, 9, −3)."""
    q, k, v = (torch.tensor(x).double().view(1, 3, 1, 1) for x in ([1, 3, 2], [1, 2, -1], [2, 1, 3]))
    half = torch.tensor([0.5]).double().log()
    for form in FORMS.values():
        out, state = form(q, k, v, half, output_state=True)
        torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 9.0, -3.0]).double())
        torch.testing.assert_close(state.flatten(), torch.tensor([-1.5]).double())
        # After S_0 = 4: o_i grows by q_i 4 / 2^i, the state by 4 / 8; the scale acts on outputs alone.
        four = torch.full((1, 1, 1, 1), 4.0).double()
        out, state = form(q, k, v, half, scale=10.0, initial_state=four, output_state=True)
        torch.testing.assert_close(out.flatten(), torch.tensor([40.0, 120.0, -20.0]).double())
        torch.testing.assert_close(state.flatten(), torch.tensor([-1.0]).double())


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("time", [*LENGTHS, SMALL * (FEW_CHUNKS + 1) + 1])
def test_implementations_agree(time: int, slopes: tuple[float, ...] | None):
    batch = 3 if time % 2 else 1
    q, k, v, state = arguments(time, batch=batch, seed=time)
    weight, weight_state = torch.randn_like(v), torch.randn_like(state)
    results = {}
    for name, form in FORMS.items():
        if name == "original" and overflows(slopes, time):
            continue
        decay = log_decay(slopes)
        leaves = [x.clone().requires_grad_() for x in (q, k, v, state)]
        if decay is not None:
            leaves.append(decay.requires_grad_())
        out, final = form(*leaves[:3], decay, scale=0.7, initial_state=leaves[3], output_state=True)
        total = (out * weight).sum() + (final * weight_state).sum()
        results[name] = (out.detach(), final.detach(), *torch.autograd.grad(total, leaves))
    assert results.keys() >= set(ROBUST)
    names = ("output", "state", "dq", "dk", "dv", "d state", "d decay")
    for name, result in results.items():
        for what, ours, theirs in zip(names, result, results["quadratic"], strict=False):
            gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)
            assert gap < 1e-10, f"{name}: {what} differs by {gap:.1e}"


@pytest.mark.parametrize("name", FORMS)
def test_without_a_state(name: str):
    """No initial state is the state zero, and the final state is returned only when it is asked for."""
    q, k, v, state = arguments(2 * SMALL + 1)
    decay = log_decay(SLOPES["mixed"])
    bare, nothing = FORMS[name](q, k, v, decay)
    zero, final = FORMS[name](q, k, v, decay, initial_state=torch.zeros_like(state), output_state=True)
    assert nothing is None
    assert final.shape == state.shape
    torch.testing.assert_close(bare, zero, rtol=0, atol=1e-13)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject):
    """Any shape and decay, cut into pieces at random and computed by forms drawn at random: one pass."""
    draw = data.draw
    size = st.integers(1, 7)
    heads, pieces = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 11), min_size=1, max_size=4))
    q, k, v, state = arguments(
        sum(pieces), batch=draw(st.integers(1, 3)), heads=heads, dk=draw(size), dv=draw(size), seed=draw(size)
    )
    slope = st.floats(0, 20, allow_subnormal=False)
    decay = log_decay(draw(st.none() | st.tuples(*[slope] * heads)))
    chunk = draw(st.integers(1, 5))
    expected, expected_state = linear_attention(
        q, k, v, decay, initial_state=state, output_state=True, implementation="quadratic"
    )
    outs = []
    for qp, kp, vp in zip(*(x.split(pieces, dim=1) for x in (q, k, v)), strict=True):
        form = draw(st.sampled_from([*(FORMS[name] for name in ROBUST), partial(chunked, chunk=chunk)]))
        out, state = form(qp, kp, vp, decay, initial_state=state, output_state=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=1), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, expected_state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strong_decay_stays_finite(name: str, dtype: torch.dtype):
    """Slopes up to 50 over 200 steps: λ^t underflows to zero, and nothing becomes infinite or NaN."""
    q, k, v, state = (x.requires_grad_() for x in arguments(200, dtype=dtype))
    decay = (-torch.tensor([0.5, 8.0, 50.0])).requires_grad_()
    out, final = FORMS[name](q, k, v, decay, initial_state=state.float(), output_state=True)
    gradients = torch.autograd.grad(out.float().sum() + final.sum(), [q, k, v, state, decay])
    assert out.dtype == dtype
    assert final.dtype == torch.float32
    assert all(x.isfinite().all() for x in (out, final, *gradients))


@pytest.mark.parametrize(
    ("dtype", "slope", "step"),
    # λ^(−t) = exp(s t) passes the largest fp32 number at s t = 88.72, the largest fp16 number at 11.09
    [(torch.float32, 0.5, 178), (torch.float32, 2**-0.25, 106), (torch.float16, 0.5, 23)],
)
def test_original_overflows_when_predicted(dtype: torch.dtype, slope: float, step: int):
    """Values of alternating sign keep the sum below its last term: λ^(−t) itself is what overflows."""
    signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat(step).view(1, -1, 1, 1)
    ones, decay = torch.ones_like(signs), torch.tensor([-slope])
    out, _ = TORCH["original"](ones, ones, signs, decay)
    robust, _ = TORCH["recurrent"](ones, ones, signs, decay)
    broken = int((~out.isfinite()).flatten().nonzero()[0]) + 1
    assert abs(broken - step) <= 1
    torch.testing.assert_close(out[:, : broken - 1], robust[:, : broken - 1], rtol=2e-2, atol=2e-3)
    assert robust.isfinite().all()
    # slope · step lies beyond the dtype's range, and slope · (step − 1) within it
    assert slope * (step - 1) < math.log(torch.finfo(dtype).max) < slope * step


@pytest.mark.parametrize("name", FORMS)
def test_causal(name: str):
    """The output of a step has a gradient of exactly zero in every later step."""
    q, k, v, state = arguments(3 * SMALL + 2, batch=2)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    i = int(torch.randint(0, q.shape[1] - 1, ()))
    out, _ = FORMS[name](*leaves, log_decay(SLOPES["mixed"]), initial_state=state)
    for gradient in torch.autograd.grad(out[:, i].sum(), leaves):
        assert gradient[:, i].abs().min() > 0
        assert gradient[:, i + 1 :].abs().max() == 0


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_a_batch_are_independent(name: str):
    q, k, v, state = arguments(2 * SMALL + 1, batch=3)
    decay = log_decay(SLOPES["mixed"])
    whole, whole_state = FORMS[name](q, k, v, decay, initial_state=state, output_state=True)
    for row in range(3):
        one = [x[row : row + 1] for x in (q, k, v)]
        out, final = FORMS[name](*one, decay, initial_state=state[row : row + 1], output_state=True)
        torch.testing.assert_close(out, whole[row : row + 1], rtol=0, atol=1e-12)
        torch.testing.assert_close(final, whole_state[row : row + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("slopes", [None, (0.0, 0.3, 2.0)], ids=["none", "mixed"])
def test_gradcheck(name: str, slopes: tuple[float, ...] | None):
    leaves = [x.requires_grad_() for x in arguments(SMALL + 2, dk=2, dv=3)]
    decay = log_decay(slopes)
    if decay is not None:
        leaves.append(decay.requires_grad_())

    def call(q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None = None):
        return FORMS[name](q, k, v, decay, scale=0.5, initial_state=state, output_state=True)

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("time", [1, 100, 300])
def test_auto_is_one_of_them(time: int):
    q, k, v, state = arguments(time)
    decay = log_decay(SLOPES["mixed"])
    out, final = linear_attention(q, k, v, decay, initial_state=state, output_state=True)
    expected, expected_state = FORMS["quadratic"](q, k, v, decay, initial_state=state, output_state=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(final, expected_state)


@pytest.mark.parametrize("name", ROBUST[:3])
def test_autocast_keeps_the_state_wide(name: str):
    """Under bf16 autocast the matrix products of bf16 inputs are bf16, but states are summed in fp32."""
    q, k, v, state = arguments(CHUNK + 3, dtype=torch.bfloat16)
    decay = log_decay(SLOPES["mixed"], torch.float32)
    call = partial(linear_attention, q, k, v, decay, output_state=True, implementation=name)
    out, final = call(initial_state=state.float())
    with torch.autocast("cpu", torch.bfloat16):
        cast_out, cast_final = call(initial_state=state.float())
    assert final is not None
    assert cast_final is not None
    assert cast_final.dtype == torch.float32
    assert torch.equal(cast_final, final)
    assert torch.equal(cast_out, out)


@pytest.mark.parametrize("wrong", ["k", "v", "decay", "name", "rank"])
def test_shapes_that_do_not_fit_are_refused(wrong: str):
    q, k, v, _ = arguments(4)
    decay, name = torch.zeros(3), "auto"
    if wrong == "k":
        k = k[:, :3]
    elif wrong == "v":
        v = v[:, :, :2]
    elif wrong == "decay":
        decay = torch.zeros(2)
    elif wrong == "name":
        name = "chunkd"
    else:
        q, k, v = q[0], k[0], v[0]
    with pytest.raises(ValueError, match=r"must be|known are"):
        linear_attention(q, k, v, decay, implementation=name)
