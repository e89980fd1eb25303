"""Rows on a vLLM server that runs our plugin, over HTTP.

Knows the two doors: ``/hogwild``, where the server says whether it shares, and the ``vllm_xargs``
of a completion (flat names, see `plugin.params`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from agentpar.errors import ModelServerError
from agentpar.events import Usage
from agentpar.ports import Message
from agentpar.runtime.hogwild.plugin.params import FORMAT, PREFIX
from agentpar.runtime.hogwild.rows import Row, RowServer

_ENDINGS = ("", ".", "!", "?", ":", ";", ")", "]", "}", '"', "'", "`", "*", "**", "```", "$", "$$")


class Client(Protocol):
    """Who can ask the server."""

    base_url: str

    async def model(self) -> str: ...

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any: ...

    def post_stream(
        self, path: str, body: dict[str, Any], *, once: bool = False
    ) -> AsyncGenerator[str | Usage, None]: ...


class ServedRows:
    """Rows on the server that ``client`` asks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def cannot_share(self) -> str:
        told = await self._client.ask("/hogwild")
        if not isinstance(told, dict) or "format" not in told:
            return "the server runs without the plugin; 'agentpar serve --hogwild' starts one with"
        if told["format"] != FORMAT:
            return f"the server's plugin speaks format {told['format']!r}, this is {FORMAT}"
        return ""

    async def tokenize(self, text: str | Sequence[Message]) -> tuple[int, ...]:
        body: dict[str, Any] = {"model": await self._client.model()}
        if isinstance(text, str):
            body |= {"prompt": text, "add_special_tokens": False}
        else:
            chat = [{"role": message.role, "content": message.content} for message in text]
            body |= {"messages": chat, "add_generation_prompt": True}
        told = await self._client.ask("/tokenize", body)
        if not isinstance(told, dict) or "tokens" not in told:
            raise ModelServerError(f"{self._client.base_url} has no /tokenize, which groups need")
        return tuple(told["tokens"])

    async def step_tokens(self) -> tuple[int, ...]:
        return await step_tokens(self)

    async def write(self, row: Row) -> AsyncGenerator[str | Usage, None]:
        body: dict[str, Any] = {
            "model": await self._client.model(),
            "prompt": list(row.tokens),
            "max_tokens": row.max_tokens,
            "temperature": row.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": xargs(row),
        }
        if row.seed is not None:
            body["seed"] = row.seed
        # Once: where the server has this row already, it refuses a second of the name.
        async with aclosing(self._client.post_stream("/completions", body, once=True)) as pieces:
            async for piece in pieces:
                yield piece


async def step_tokens(rows: RowServer) -> tuple[int, ...]:
    """`RowServer.step_tokens` by a tokenizer whose vocabulary cannot be looked through.

    These are how sentences and blocks end before a blank line; a step that ends in another way
    is part of the next one.
    """
    ends = [await rows.tokenize(f"{ending}\n\n") for ending in _ENDINGS]
    return tuple(sorted({ids[-1] for ids in ends}))


def xargs(row: Row) -> dict[str, Any]:
    """What ``row`` says of its group, as `plugin.params.parse` reads it."""
    said: dict[str, Any] = {
        "group": row.group,
        "worker": row.name,
        "prefix": row.prefix,
        "layout": row.layout,
        "hold": row.hold,
    }
    said |= {"size": row.size} if row.size else {"late": 1}
    if row.steps:
        said["steps"] = list(row.steps)
    return {PREFIX + name: value for name, value in said.items()}
