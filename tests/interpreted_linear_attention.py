"""Run by test_linear_attention_kernels.py in a process with TRITON_INTERPRET=1: every kernel against
float64."""

import pytest
import torch
from linear_attention_cases import case

from tnbench.kernels.linear_attention import linear_attention, plans, triton_op
from tnbench.kernels.linear_attention.configurations import Configuration, Launch
from tnbench.kernels.linear_attention.segments import segment_state, segment_state_gradient

MANY = 1000  # programs to fill: a segment each 128 tokens


def configured(
    programs: int = 1, spans: int = 1, tile: int = 32, chunk: int = 64, tma: bool = False
) -> Configuration:
    launch = Launch(chunk, tile, 4, 1, tma=tma)
    return Configuration(programs, spans, launch, launch, launch)


@pytest.fixture(autouse=True)
def restored():
    yield
    plans.override = None


def right(config: Configuration, **problem) -> None:
    plans.override = config
    defaults = {"dtype": "float32", "precise": True, "states": True, "decay": True, "heads": 2, "scale": 0.3}
    found = case(device="cpu", baseline=False, **(defaults | problem))
    assert not found["bad"], found
    assert max(e for n, e in found["errors"].items() if n != "ddecay") < 1e-6, found


@pytest.mark.parametrize("time", [1, 65])
def test_one_segment(time):
    right(configured(), time=time, dk=16, dv=16, batch=2)


def test_segments_are_joined():
    right(configured(MANY, chunk=128), time=300, dk=16, dv=32)


def test_spans_within_segments():
    right(configured(2, spans=2), time=512, dk=16, dv=16, heads=1)
    plan = plans.Plan((1, 512, 1, 16), (1, 512, 1, 16), torch.float32, None, None, True, True)
    assert (plan.length, plan.span) == (256, 128)


def test_packed_sequences():
    right(configured(MANY), time=300, dk=16, dv=16, heads=1, bounds=[0, 0, 1, 128, 256, 256, 300])


def test_bounds_that_are_not_dense():
    """As numbers of another table's column."""
    q, k, v = torch.randn(3, 1, 20, 2, 16)
    bounds = torch.tensor([[0, 99], [8, 99], [20, 99]], dtype=torch.int32)[:, 0]
    found, again = (
        triton_op.triton_linear_attention(q, k, v, cu_seqlens=b)[0] for b in (bounds, bounds.clone())
    )
    assert torch.equal(found, again)
    ends = [segment_state(k, v, None, cu_seqlens=b) for b in (bounds, bounds.clone())]
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["auto", "triton"])
@pytest.mark.parametrize("shape", [(0, 20, 2, 16), (1, 20, 0, 16), (1, 20, 2, 0)])
def test_nothing_to_launch(shape: tuple[int, ...], name: str):
    q = torch.randn(shape, requires_grad=True)
    out, state = linear_attention(q, q, q, output_state=True, implementation=name)
    assert state is not None
    assert (out.shape, state.shape) == (shape, (shape[0], *shape[2:], shape[3]))
    assert torch.autograd.grad(out.sum(), q)[0].shape == shape


def test_gradients_of_gradients_are_refused():
    """By the operator too, which would otherwise leave the second ones out."""
    q = torch.randn(1, 20, 2, 16, requires_grad=True)
    operator = torch.ops.tnbench.linear_attention
    for out in (
        triton_op.triton_linear_attention(q, q, q)[0],
        operator(q, q, q, None, None, None, 1.0, False, False, True)[0],
    ):
        (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match=r"differentiate twice|differentiated once"):
            dq.sum().backward()


def test_slices_of_a_projection_with_odd_head_dims():
    right(configured(MANY), time=140, dk=24, dv=40, heads=1, batch=2, fused=True)


def test_loads_by_descriptors():
    right(configured(MANY, tma=True), time=140, dk=16, dv=32, bounds=[0, 5, 140])


def test_without_decay_scale_or_states():
    right(configured(MANY), time=140, dk=16, dv=16, scale=1.0, states=False, decay=False)


def test_a_forgotten_past_is_not_read():
    """Segments beyond the horizon hold infinities that must not reach the output; nearer ones are exact."""
    plans.override = configured(MANY)
    q, k, v = (torch.randn(1, 1024, 1, 16) for _ in range(3))
    rate = torch.tensor([-0.15])  # forgets after 185 tokens
    wanted, _ = triton_op.triton_linear_attention(q, k, v, rate, precise=True)
    k[:, :256] = torch.inf
    out, _ = triton_op.triton_linear_attention(q, k, v, rate, precise=True)
    assert torch.equal(out[:, 512:], wanted[:, 512:])


def test_strong_decay_neither_overflows_nor_leaks():
    plans.override = configured(MANY)
    q, k, v = (torch.randn(1, 300, 2, 16, requires_grad=True) for _ in range(3))
    rate = torch.tensor([-200.0, -20.0])
    out, _ = triton_op.triton_linear_attention(q, k, v, rate, precise=True)
    alone = (q * k).sum(-1, keepdim=True) * v  # what is left when the past is forgotten at once
    assert torch.allclose(out[:, :, 0], alone[:, :, 0], atol=1e-5)
    for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_half_precision():
    plans.override = configured()
    found = case(device="cpu", time=100, dk=16, dv=32, heads=2, dtype="float16", states=True)
    assert not found["bad"], found
    assert not found["over"], found


def test_segments_of_other_devices():
    """Outputs and gradients of two halves, joined by the exchanged states, are those of the whole."""
    plans.override = configured(MANY)
    t, rate = 280, torch.tensor([-0.5, -0.002])
    q, k, v, do = (torch.randn(1, t, 2, 16) for _ in range(4))
    a, b, c = (x.clone().requires_grad_() for x in (q, k, v))
    out, _ = triton_op.triton_linear_attention(a, b, c, rate, scale=0.5, precise=True)
    wanted = torch.autograd.grad(out, (a, b, c), do)
    half = slice(0, 140), slice(140, None)
    before = segment_state(k[:, half[0]], v[:, half[0]], rate, precise=True)
    after = segment_state_gradient(q[:, half[1]], do[:, half[1]], rate, scale=0.5, precise=True)
    for part, start, end in ((half[0], None, after), (half[1], before, None)):
        a, b, c = (x[:, part].clone().requires_grad_() for x in (q, k, v))
        o, final = triton_op.triton_linear_attention(
            a, b, c, rate, scale=0.5, precise=True, initial_state=start, output_state=True
        )
        assert torch.allclose(o, out[:, part], atol=1e-4)
        assert final is not None
        dfinal = torch.zeros_like(final) if end is None else end
        found = torch.autograd.grad((o, final), (a, b, c), (do[:, part], dfinal))
        for x, y in zip(found, wanted, strict=True):
            assert torch.allclose(x, y[:, part], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_operator_is_registered():
    """Schema, fake kernel, gradients, dynamic shapes."""
    plans.override = configured(MANY)
    q, k, v = (torch.randn(1, 130, 2, d, requires_grad=True) for d in (16, 16, 32))
    rate = torch.tensor([-0.3, -0.01], requires_grad=True)
    start = torch.randn(1, 2, 16, 32, requires_grad=True)
    leaves = (q, k, v, rate, start)
    torch.library.opcheck(torch.ops.tnbench.linear_attention.default, (*leaves, None, 0.5, True, False, True))


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    plans.override = configured()
    q, k, v = (torch.randn(1, 64, 2, d, requires_grad=True) for d in (32, 32, 16))
    with FlopCounterMode(display=False) as counter:
        triton_op.triton_linear_attention(q, k, v)[0].sum().backward()
    forward, backward = 128 * (32 + 16) + 4 * 32 * 16, 128 * (3 * 32 + 2 * 16) + 10 * 32 * 16
    assert counter.get_total_flops() == 64 * 2 * (forward + backward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 4, 2, 300)}, "must be"),
        ({"rate": torch.zeros(3)}, "log_decay"),
        ({"rate": torch.zeros(2, device="meta")}, "log_decay must be on cpu"),
        ({"v": torch.zeros(1, 4, 2, 16, dtype=torch.float64)}, "share"),
        ({"v": torch.zeros(1, 4, 2, 300)}, "up to 256"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q, k, v = (torch.zeros(1, 4, 2, 16) for _ in range(3))
    given = {"q": q, "k": k, "v": v, "rate": None} | change
    with pytest.raises(ValueError, match=message):
        triton_op.triton_linear_attention(given["q"], given["k"], given["v"], given["rate"])


@pytest.mark.slow
@pytest.mark.parametrize("programs", [1, MANY])
@pytest.mark.parametrize("time", [2, 63, 64, 300, 777])
def test_lengths(programs, time):
    right(configured(programs), time=time, dk=16, dv=32, heads=4)


@pytest.mark.slow
@pytest.mark.parametrize(("dk", "dv"), [(48, 80), (96, 128), (192, 32), (32, 256)])
def test_head_dims(dk, dv):
    right(configured(), time=130, dk=dk, dv=dv)


@pytest.mark.slow
@pytest.mark.parametrize("programs", [1, MANY])
@pytest.mark.parametrize("bounds", [[0, 5, 300, 700], [0, 0, 1, 256, 512, 512, 600]])
def test_more_packed_sequences(programs, bounds):
    right(configured(programs), time=bounds[-1], dk=16, dv=32, bounds=bounds)


@pytest.mark.slow
def test_short_chunks():
    right(configured(chunk=16, tile=16), time=100, dk=16, dv=32)


@pytest.mark.slow
def test_a_compiler_sees_one_operator():
    plans.override = configured(MANY)
    q, k, v = (torch.randn(1, 130, 2, d, requires_grad=True) for d in (16, 16, 32))
    rate = torch.tensor([-0.3, -0.01], requires_grad=True)
    start = torch.randn(1, 2, 16, 32, requires_grad=True)
    leaves = (q, k, v, rate, start)

    def call(q, k, v, rate, start):
        out, final = triton_op.triton_linear_attention(
            q, k, v, rate, scale=0.5, initial_state=start, output_state=True
        )
        assert final is not None
        return out, final

    results = []
    for f in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        outs = f(q, k, v, rate, start)
        results.append([*outs, *torch.autograd.grad(outs, leaves, [torch.ones_like(x) for x in outs])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
