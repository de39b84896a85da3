"""One block, and the composition of a token mixer from a configuration."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from tnbench import registry
from tnbench.config import Component, ModelConfig
from tnbench.errors import RequestError
from tnbench.model.feature_maps import FeatureMap
from tnbench.model.mixers.base import PARTS, Parts, TokenMixer, projection_flops
from tnbench.model.mixers.linear import LinearMixer
from tnbench.model.norms import NoNorm, add_norm
from tnbench.model.positions import NoPosition, Position


def build(kind: str, component: Component, *arguments: Any) -> Any:
    """Construct a component from what the composer supplies and the parameters in the configuration."""
    return registry.find(kind, component.name).target(*arguments, **component.parameters)


def _present(config: ModelConfig) -> dict[str, bool]:
    """Which optional parts of a token mixer the configuration asks for."""
    position = registry.find("position", config.position.name).target
    return {
        "position": getattr(position, "place", "nothing") == "scores",
        "decay": config.decay.name != "none",
        "feature_map": config.feature_map.name != "none",
        "inner_norm": config.inner_norm.name != "none",
        "gate": config.gate,
    }


def check_composition(config: ModelConfig) -> None:
    """Refuse parts that no mixer of the model can use, and pairs that have no meaning.

    Where layers have different mixers, a part goes to those that take it.

    Raises:
        RequestError: with the component's own reason, and the keys to change.
    """
    present = _present(config)
    mixers: dict[str, type[TokenMixer]] = {spec.name: _mixer_class(spec) for spec in config.mixer}
    refused: dict[str, str] = {}
    for part in PARTS:
        reasons = [_mixer_class(spec).refusals(**spec.parameters).get(part) for spec in config.mixer]
        if present[part] and all(reasons):
            refused[part] = str(reasons[0])
    if refused:
        part, reason = next(iter(refused.items()))
        value = "true" if part == "gate" else getattr(config, part).name
        cure = ", ".join(f"model.{name}={'false' if name == 'gate' else 'none'}" for name in refused)
        raise RequestError(
            f"model.{part} = {value} does not go with mixer {config.mixer[0].name}: {reason}; set {cure},"
            f" or another model.mixer"
        )
    if config.implementation != "auto" and not any(issubclass(cls, LinearMixer) for cls in mixers.values()):
        raise RequestError(
            f"model.implementation = {config.implementation} is for linear attention, which mixer "
            f"{config.mixer[0].name} is not; set model.implementation=auto"
        )
    for name, cls in mixers.items():
        feature_map: type[FeatureMap] = registry.find("feature_map", config.feature_map.name).target  # type: ignore[assignment]
        if cls.needs_positive and not feature_map.positive:
            positive = [
                e.name for e in registry.entries("feature_map") if getattr(e.target, "positive", False)
            ]
            raise RequestError(
                f"model.feature_map = {config.feature_map.name} does not go with mixer {name}: its "
                f"denominator needs values that are not negative; set one of {', '.join(positive)}"
            )


def _mixer_class(spec: Component) -> type[TokenMixer]:
    return registry.find("mixer", spec.name).target  # type: ignore[return-value]


def compose_mixer(config: ModelConfig, layer: int) -> TokenMixer:
    """The token mixer of one layer, with the parts that it takes."""
    spec = config.mixer_of(layer)
    refused = _mixer_class(spec).refusals(**spec.parameters)
    wanted = {part: present and part not in refused for part, present in _present(config).items()}
    shape = (config.head_dim, config.heads, layer)
    position: Position = (
        build("position", config.position, *shape) if wanted["position"] else NoPosition(*shape)
    )
    decay = config.decay if wanted["decay"] else Component(name="none")
    feature_map = config.feature_map if wanted["feature_map"] else Component(name="none")
    parts = Parts(
        position=position,
        decay=build("decay", decay, config.heads, layer, config.layers),
        feature_map=build("feature_map", feature_map),
        inner_norm=partial(build, "norm", config.inner_norm) if wanted["inner_norm"] else NoNorm,
        gate=wanted["gate"],
        implementation=config.implementation,
    )
    return build("mixer", spec, config.width, config.heads, parts)


class Block(nn.Module):
    """X ← X + Mixer(Norm(X));  X ← X + Channel(Norm(X))   (arXiv 2307.14995, eq. 9).

    The last sum is left to the norm that comes next, of the block above or of the output layer, which does
    it in the same pass (`tnbench.model.norms.add_norm`): a block takes and gives the stream X in two parts,
    x + branch.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.token_norm = build("norm", config.token_norm, config.width)
        self.token_mixer = compose_mixer(config, layer)
        self.channel_norm = build("norm", config.channel_norm, config.width)
        self.channel_mixer = build("channel", config.channel, config.width, config.channel_width)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """X = x + branch, both (batch, time, width), to X in the same form; no branch stands for 0."""
        y, x = add_norm(self.token_norm, x, branch)
        y, x = add_norm(self.channel_norm, x, self.token_mixer(y))
        return x, self.channel_mixer(y)

    def extend(self, x: Tensor, branch: Tensor | None, state: Any, start: int) -> tuple[Tensor, Tensor, Any]:
        """`forward` for tokens start, start + 1, …, from a state of the token mixer, and the next state."""
        y, x = add_norm(self.token_norm, x, branch)
        mixed, state = self.token_mixer.extend(y, state, start)
        y, x = add_norm(self.channel_norm, x, mixed)
        return x, self.channel_mixer(y), state

    def decode(
        self, x: Tensor, branch: Tensor | None, state: Any, position: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """`forward` for one token, (batch, width), from an allocated state, which is changed where it lies.

        `position` and `tokens` as in `TokenMixer.decode`.
        """
        y, x = add_norm(self.token_norm, x, branch)
        y, x = add_norm(self.channel_norm, x, self.token_mixer.decode(y, state, position, tokens))
        return x, self.channel_mixer(y)

    def flops_per_token(self, context: int) -> float:
        """Forward FLOPs of the matrix products per token, the mean over decoding `context` tokens."""
        linear = [module for module in self.channel_mixer.modules() if isinstance(module, nn.Linear)]
        return self.token_mixer.flops_per_token(context) + projection_flops(*linear)
