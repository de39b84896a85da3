"""Language models composed from registered components; importing this registers the built-in ones."""

from tnbench.model import channels, decays, feature_maps, mixers, norms, positions, presets
from tnbench.model.block import Block, check_composition
from tnbench.model.lm import LanguageModel, State

__all__ = [
    "Block",
    "LanguageModel",
    "State",
    "channels",
    "check_composition",
    "decays",
    "feature_maps",
    "mixers",
    "norms",
    "positions",
    "presets",
]
