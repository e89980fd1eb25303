"""What the runtimes promise, held against a real vLLM with real (small) weights."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from agentpar.errors import ModelServerError
from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest
from agentpar.runtime.client import OpenAIRuntime

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

LONG = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture
async def runtime(vllm_url: str) -> AsyncIterator[OpenAIRuntime]:
    runtime = OpenAIRuntime(vllm_url)
    yield runtime
    await runtime.aclose()


def ask(text: str, **more: object) -> ModelRequest:
    return ModelRequest((Message("user", text),), **more)  # type: ignore[arg-type]


async def read(runtime: OpenAIRuntime, request: ModelRequest) -> tuple[list[str], Usage]:
    *pieces, usage = [item async for item in runtime.stream(request)]
    assert isinstance(usage, Usage)
    return [piece for piece in pieces if isinstance(piece, str)], usage


async def metric(url: str, name: str) -> float:
    """The sum of a Prometheus metric of the server."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))


async def test_text_streams_and_tokens_are_counted(runtime: OpenAIRuntime) -> None:
    """Many pieces, and exactly the tokens that were allowed."""
    pieces, usage = await read(runtime, ask("Count from one to fifty.", max_tokens=20))
    assert len(pieces) > 10
    assert usage.completion_tokens == 20
    assert usage.cut
    assert usage.prompt_tokens > 5
    assert usage.calls == 1


async def test_prefix_cache_shows_in_the_usage(runtime: OpenAIRuntime) -> None:
    """The second request with one long prompt finds most of it cached."""
    await read(runtime, ask(LONG, max_tokens=1))
    _, usage = await read(runtime, ask(LONG, max_tokens=1))
    assert usage.cached_tokens > usage.prompt_tokens / 2


async def test_grammar_binds_the_text(runtime: OpenAIRuntime) -> None:
    """Nothing outside the grammar is written, whatever the model would like to say."""
    assert "grammar" in await runtime.capabilities()
    grammar = 'root ::= "1. calc(" [0-9]+ ")\\njoin()"'
    pieces, _ = await read(runtime, ask("Tell me a joke.", grammar=grammar, max_tokens=64))
    assert re.fullmatch(r"1\. calc\([0-9]+\)\njoin\(\)", "".join(pieces)) or len(pieces) >= 60


async def test_schema_binds_the_text(runtime: OpenAIRuntime) -> None:
    """The text is JSON of the schema, and no newlines up to the limit."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    pieces, _ = await read(runtime, ask("Is water wet?", json_schema=schema, max_tokens=64))
    assert json.loads("".join(pieces))["answer"] in {"yes", "no"}


async def test_stop_string_ends_the_text_and_is_no_part_of_it(runtime: OpenAIRuntime) -> None:
    """The grammar makes the stop string certain to come."""
    request = ask("Go.", grammar='root ::= "abc join() more"', stop=("join()",), max_tokens=64)
    pieces, _ = await read(runtime, request)
    assert "".join(pieces) == "abc "


async def test_leaving_early_stops_the_model(runtime: OpenAIRuntime) -> None:
    """After ``aclose`` vLLM runs no request: the tokens nobody reads are not computed."""
    # A grammar without an end, so that the request cannot finish by itself.
    endless = ask("Go.", grammar='root ::= "a" root', max_tokens=8000)
    stream = runtime.stream(endless)
    assert await anext(stream)
    assert await metric(runtime.base_url, "vllm:num_requests_running") >= 1
    await stream.aclose()
    async with asyncio.timeout(10):
        running = 1.0
        while running:
            running = await metric(runtime.base_url, "vllm:num_requests_running")


async def test_prompt_too_long_carries_vllms_message(runtime: OpenAIRuntime) -> None:
    """vLLM's own sentence with the limit reaches the user."""
    with pytest.raises(ModelServerError, match=r"HTTP 400.*8192"):
        await read(runtime, ask(LONG * 30, max_tokens=1))


async def test_requests_run_side_by_side(runtime: OpenAIRuntime) -> None:
    """Ten requests at once all end, each with its own tokens."""
    asks = (ask(f"Count from {n}.", max_tokens=16) for n in range(10))
    answers = await asyncio.gather(*(read(runtime, request) for request in asks))
    assert [usage.calls for _, usage in answers] == [1] * 10
    assert all(pieces for pieces, _ in answers)
