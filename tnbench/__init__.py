"""tnbench: which design choices of a linear-attention language model matter, and what they cost."""

from tnbench.version import VERSION as __version__

__all__ = ["__version__"]
