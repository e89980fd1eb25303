"""What a model call took where its server has not said: counted from the texts.

Pure. It must never know a tokenizer, nor who asks for what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from agentpar.events import Usage
from agentpar.ports import Message

BYTES = 3
"""Of a token, in UTF-8: English text and code have more, so that the estimate is rather high."""
AROUND = 8
"""Tokens that a chat template writes around a message."""

_DIGIT = re.compile("[0-9]")


def tokens_of(text: str) -> int:
    """About how many tokens ``text`` has: one for every `BYTES`, and one for every digit."""
    digits = len(_DIGIT.findall(text))
    return digits + -(-(len(text.encode("utf-8", "replace")) - digits) // BYTES)


def prompt_of(messages: Iterable[Message]) -> int:
    """About how many tokens a chat of ``messages`` has for a prompt."""
    return sum(AROUND + tokens_of(message.content) for message in messages)


def known(told: Usage, prompt: int | Iterable[Message], written: str) -> Usage:
    """``told`` where it has any tokens; else an estimate, marked as one, for a call whose
    ``prompt`` has so many tokens, or is a chat of these, and that brought ``written``."""
    if told.prompt_tokens or told.completion_tokens:
        return told  # nothing need be counted
    if not isinstance(prompt, int):
        prompt = prompt_of(prompt)
    return replace(
        told,
        prompt_tokens=prompt,
        completion_tokens=tokens_of(written),
        estimated=True,
    )
