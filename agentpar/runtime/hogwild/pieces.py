"""A worker's tokens as pieces of text, as they come.

Knows a tokenizer's ``decode`` and nothing of what writes the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decodes(Protocol):
    """What of a transformers tokenizer is used here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class Pieces:
    """Turns one worker's tokens into text, piece by piece; special tokens are left out.

    A token may be half a character, and how it reads may depend on the one before it. So each
    piece is what a token adds to the text of those before it, and what is no whole character yet
    is kept back. The pieces and the `rest` joined are the text of all tokens.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._from = 0  # where the tokens begin that are read again for context
        self._told = 0  # how many tokens have been told of

    def push(self, token: int) -> str:
        """What ``token`` adds; empty where no character is whole yet."""
        self._tokens.append(token)
        return self._new(whole=True)

    def rest(self) -> str:
        """What was kept back, once no more tokens come: half a character reads as U+FFFD."""
        return self._new(whole=False)

    def _new(self, *, whole: bool) -> str:
        before = self._text(self._from, self._told)
        text = self._text(self._from, len(self._tokens))
        if whole and (text.endswith("\ufffd") or len(text) <= len(before)):
            return ""
        self._from, self._told = self._told, len(self._tokens)
        return text[len(before) :]

    def _text(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(self._tokens[start:stop], skip_special_tokens=True)
