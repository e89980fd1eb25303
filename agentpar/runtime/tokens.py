"""Texts and chats as token ids, by the tokenizer of a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentpar.errors import UsageError
from agentpar.ports import Message


def token_ids(tokenizer: Any, text: str | Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a text as it is, or of a chat up to where the assistant begins.

    ``tokenizer`` is one of transformers'. Raises `UsageError` where it has no chat template.
    """
    if not isinstance(text, str):
        if not tokenizer.chat_template:
            raise UsageError("the tokenizer of these weights has no chat template")
        chat = [{"role": message.role, "content": message.content} for message in text]
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    # The template has written the special tokens.
    return tuple(tokenizer.encode(text, add_special_tokens=False))
