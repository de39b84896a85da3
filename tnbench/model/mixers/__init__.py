"""Token mixers: how tokens exchange information."""

from tnbench.model.mixers.base import Parts, TokenMixer
from tnbench.model.mixers.linear import ClassicalLinearAttention, GatedLinearAttention, NormAttention
from tnbench.model.mixers.softmax import DiagAttention, SoftmaxAttention

__all__ = [
    "ClassicalLinearAttention",
    "DiagAttention",
    "GatedLinearAttention",
    "NormAttention",
    "Parts",
    "SoftmaxAttention",
    "TokenMixer",
]
