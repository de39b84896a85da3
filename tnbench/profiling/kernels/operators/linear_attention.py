"""Decayed causal linear attention: o_i = Σ_{j<=i} λ^(i-j) (q_i · k_j) v_j, a geometric slope per head."""

from __future__ import annotations

from typing import ClassVar

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.operators.base import Grid, Implementation, Operator, ours, peer

CHUNK = 64
"""Tokens of the chunks by which useful operations are counted."""


class LinearAttention(Operator):
    """Softmax attention stands beside it as another operator of the same shape."""

    name = "linear_attention"
    summary = "decayed causal linear attention"
    modes = ("forward", "backward", "both")
    axes = ("mode", "dtype", "batch_heads", "head_dim", "decay", "length")
    sizes = ("length", "batch", "heads", "key_dim", "value_dim")
    grids: ClassVar[dict[str, Grid]] = {
        "cuda": {
            "mode": ("forward", "both"),
            "dtype": ("bfloat16",),
            "batch_heads": ((1, 8), (4, 8), (4, 16), (8, 16)),
            "head_dim": (64, 128),
            "decay": ("geometric",),
            "length": tuple(1024 << n for n in range(8)),
        },
        "cpu": {
            "mode": ("forward", "both"),
            "dtype": ("float32",),
            "batch_heads": ((1, 4),),
            "head_dim": (64,),
            "decay": ("geometric",),
            "length": (256, 512, 1024),
        },
    }
    implementations = (
        ours("triton", "the Triton kernels"),
        ours("lightning1", "Lightning Attention 1, tiled and quadratic"),
        Implementation("chunked", "torch", "chunks of 64 and a carried state, eager torch"),
        Implementation(
            "chunked-compiled", "torch", "the same through torch.compile", slow_on_cpu=True, compiles="anew"
        ),
        Implementation("recurrent", "torch", "one token after the other, up to 1,024"),
        Implementation("quadratic", "torch", "the definition, (Q Kᵀ ⊙ M) V"),
        peer("fla-chunk", "flash-linear-attention, chunk_simple_gla", "fla", "fla-core"),
        peer("fla-fused", "flash-linear-attention, fused_chunk_simple_gla", "fla", "fla-core"),
        peer("lightning2", "OpenNLPLab, lightning_attn2", "lightning_attn", "lightning-attn", "anew"),
        peer("mlstm", "mlstm_kernels, TFLA with sigmoid gates", "mlstm_kernels", "mlstm-kernels", "anew"),
        peer("xopes", "xopes, lacd_parallel_triton", "xopes", "xopes", "anew"),
        Implementation("softmax-cudnn", "softmax", "torch SDPA, cuDNN", gpu=True),
        Implementation("softmax-flash", "softmax", "torch SDPA, FlashAttention"),
        Implementation("softmax-efficient", "softmax", "torch SDPA, memory-efficient", gpu=True),
        Implementation("softmax-math", "softmax", "torch SDPA, the definition"),
    )

    def graphs(self, case: Case) -> bool:
        return case.shape["length"] <= 4096

    def floor_bytes(self, case: Case) -> int:
        """q, k, v in, o out forward; q, k, v, do in, dq, dk, dv out backward. States are not counted."""
        keys, values = {"forward": (2, 2), "backward": (4, 3), "both": (6, 5)}[case.mode]
        return self._elements(case, keys, values) * case.item_size

    def flops(self, case: Case) -> int:
        """Per token and head, by chunks of C = 64 whose full square counts: 2 C (D + E) + 4 D E forward;
        backward five products within a chunk and five with a state.
        """
        shape = case.shape
        key, value = shape["key_dim"], shape["value_dim"]
        forward = 2 * CHUNK * (key + value) + 4 * key * value
        backward = CHUNK * (4 * key + 6 * value) + 10 * key * value
        each = {"forward": forward, "backward": backward, "both": forward + backward}[case.mode]
        return each * shape["length"] * shape["batch"] * shape["heads"]

    def predicted_memory(self, case: Case, implementation: str) -> int | None:
        """Ours: outputs, gradients, states; the quadratic form: what it holds for each pair of tokens."""
        if implementation == "triton":
            from tnbench.profiling.kernels import memory

            return memory.linear_attention(case)
        if implementation == "lightning1":
            return self._results(case)
        if implementation == "quadratic":
            return self._quadratic(case)
        return None

    def _quadratic(self, case: Case) -> int:
        """The mask while it is made, in fp32; later the mask, and the scores before and after it. Backward:
        the gradients of both, o and dv, and q, k, v, do with heads first, not copied for a batch of one.
        """
        pairs, size, batch = self._pairs(case), case.item_size, case.shape["batch"]
        made = 2 * 4 * pairs + 16 * case.shape["length"] ** 2
        later = pairs * size * (1 + 2 * batch)
        beside = self._elements(case, *((0, 2) if batch == 1 else (2, 4))) * size if case.trains else 0
        return max(made, later) + beside

    @staticmethod
    def _pairs(case: Case) -> int:
        """Pairs of tokens of one row of the batch, over all heads."""
        return case.shape["length"] ** 2 * case.shape["heads"]

    def _results(self, case: Case) -> int:
        """o, and dq, dk, dv."""
        keys, values = (2, 2) if case.trains else (0, 1)
        return self._elements(case, keys, values) * case.item_size

    @staticmethod
    def _elements(case: Case, keys: int, values: int) -> int:
        shape = case.shape
        each = keys * shape["key_dim"] + values * shape["value_dim"]
        return each * shape["length"] * shape["batch"] * shape["heads"]
