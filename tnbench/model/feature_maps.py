"""Feature maps φ, applied elementwise to the queries and keys of linear attention."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tnbench.registry import register


class FeatureMap(nn.Module):
    """Maps (…, head dim) to the same shape. `positive` says that no output is negative."""

    positive: ClassVar[bool] = False


@register("feature_map", "none", reference="arXiv 2307.14995, table 8")
class Identity(FeatureMap):
    """No feature map: x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@register("feature_map", "swish", reference="arXiv 2307.14995v2, GLA activation")
class Swish(FeatureMap):
    """Swish, also called SiLU: x · σ(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


@register("feature_map", "1+elu", reference="arXiv 2006.16236, eq. 7")
class OnePlusELU(FeatureMap):
    """1 + elu(x): x + 1 above zero, exp(x) below."""

    positive = True

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1


@register("feature_map", "elu", reference="arXiv 2210.10340, TransNormer T1")
class ELU(FeatureMap):
    """elu(x): x above zero, exp(x) − 1 below."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x)


@register("feature_map", "relu", reference="arXiv 2103.02143")
class ReLU(FeatureMap):
    """max(x, 0)."""

    positive = True

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@register("feature_map", "squared-relu", reference="arXiv 2109.08668")
class SquaredReLU(FeatureMap):
    """max(x, 0)²."""

    positive = True

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@register("feature_map", "sigmoid")
class Sigmoid(FeatureMap):
    """1 / (1 + exp(−x))."""

    positive = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@register("feature_map", "softmax", reference="arXiv 1812.01243")
class Softmax(FeatureMap):
    """Softmax over the head dimension."""

    positive = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1)
