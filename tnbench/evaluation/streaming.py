"""Text from token ids as they come."""

from __future__ import annotations

from collections.abc import Sequence

from tnbench.data import Tokenizer

UNKNOWN = "\ufffd"
"""What a tokenizer writes for bytes that are no character, or not yet one."""


class TextStream:
    """Turns a sequence of ids into text piece by piece: joined, the pieces are the text of all ids.

    A character whose bytes lie in several tokens comes with the last of them. Ids are decoded together with
    those before them, because the text of a token, such as the space in front of a word, may depend on what
    it follows.

    Args:
        tokenizer: turns ids into text.
        prompt: ids in front of the first one, whose text is not given again.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)  # from the last token whose text was complete
        self._given = len(tokenizer.decode(self._ids))

    def add(self, token: int) -> str:
        """The text that can be told now that `token` has come; it may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # Only the last character can still change: what is broken before it stays broken.
        whole = not text.endswith(UNKNOWN)
        new = text[self._given : len(text) if whole else len(text) - 1]
        self._given += len(new)
        if whole and new:
            self._ids = self._ids[-1:]
            self._given = len(self._tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        """What is left at the end: a character that was cut short, as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._given :]
