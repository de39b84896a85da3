"""Configuration of a language model that tnbench has trained and exported."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class TnbenchConfig(PretrainedConfig):
    """Sizes and components of the model, under the names of tnbench's own configuration.

    Args:
        composition: `width`, `layers`, `heads`, `channel_width`, `mixer` (a list that splits the layers into
            spans of equal length), `position`, `decay`, `feature_map`, `gate`, `token_norm`, `channel_norm`,
            `inner_norm`, `final_norm`, `channel` and `scale_embeddings`; a component is a dictionary of its
            `name` and its parameters.
        vocab_size: rows of the embedding.
        max_position_embeddings: tokens in a training window. Only learned absolute positions end there.
        tie_word_embeddings: whether the output layer shares the embedding matrix.
        use_cache: whether `forward` returns what the next token needs, unless it is told.
        initializer_range: standard deviation of new weights.
    """

    model_type = "tnbench"

    def __init__(
        self,
        composition: dict[str, Any] | None = None,
        vocab_size: int = 257,
        max_position_embeddings: int = 256,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        initializer_range: float = 0.02,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **others: Any,
    ) -> None:
        self.composition = dict(composition or {})
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        self.initializer_range = initializer_range
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**others)

    @property
    def hidden_size(self) -> int:
        """The model's width."""
        return self.composition["width"]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self.composition["layers"]

    @property
    def num_attention_heads(self) -> int:
        """Heads of every token mixer."""
        return self.composition["heads"]
