"""Reading ahead on a real vLLM: what it has read, the joiner need not wait for again."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from agentpar.events import Usage
from agentpar.memory.evidence import sources
from agentpar.plan import Ok, Outcome, Task
from agentpar.planner.prompts import join_messages, join_prefix
from agentpar.ports import Message, ModelRequest
from agentpar.runtime.client import OpenAIRuntime

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

BLOCK = 128  # tokens, on vLLM's CPU build; the server keeps whole ones
OPEN = r"vllm:num_requests_(?:running|waiting){"
FINISHED = "vllm:request_success_total{"


@pytest.fixture
async def runtime(vllm_url: str) -> AsyncIterator[OpenAIRuntime]:
    runtime = OpenAIRuntime(vllm_url)
    yield runtime
    await runtime.aclose()


Run = tuple[dict[int, Task], dict[int, Outcome]]


def made() -> Run:
    """Five of six pages are there; nobody has read their text before."""
    chance = random.SystemRandom()
    pages = (" ".join(str(chance.randint(1000, 9999)) for _ in range(150)) for _ in range(5))
    tasks = {id: Task.of(id, "read", page=id) for id in range(1, 7)}
    return tasks, {id: Ok(page) for id, page in enumerate(pages, start=1)}


def begun(tasks: dict[int, Task], outcomes: dict[int, Outcome]) -> tuple[Message, ...]:
    return join_prefix(tasks, outcomes, (), sources(tasks, outcomes))


async def ask(runtime: OpenAIRuntime, request: ModelRequest) -> Usage:
    items = [item async for item in runtime.stream(request)]
    assert isinstance(items[-1], Usage)
    return items[-1]


async def metric(url: str, pattern: str) -> float:
    """The sum of those of the server's metrics whose name and labels match ``pattern``."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{pattern}.* (\S+)$", text, re.MULTILINE))


async def test_a_vllm_can_prefill(runtime: OpenAIRuntime) -> None:
    """It says itself that it caches prefixes."""
    assert "prefill" in await runtime.capabilities()


async def test_what_was_read_ahead_is_cached_for_the_joiner(runtime: OpenAIRuntime) -> None:
    """All but its last blocks, though the prompt goes on where it had ended."""
    tasks, outcomes = made()
    request = ModelRequest(begun(tasks, outcomes), max_tokens=1, background=True)
    read = await ask(runtime, request)
    assert read.prompt_tokens - read.cached_tokens > 5 * BLOCK  # the results were new
    outcomes[6] = Ok("late")
    whole = join_messages("Which?", tasks, outcomes, (), sources(tasks, outcomes))
    join = await ask(runtime, ModelRequest(whole, max_tokens=1))
    assert join.cached_tokens > read.prompt_tokens - 2 * BLOCK


async def test_reading_ahead_that_is_left_leaves_no_request(runtime: OpenAIRuntime) -> None:
    """Cancelled before its first token, while the server reads: it is aborted there."""
    unread = [made() for _ in range(8)]  # many seconds of reading
    before = await metric(runtime.base_url, FINISHED)
    asks = [
        asyncio.create_task(ask(runtime, ModelRequest(begun(*run), max_tokens=1, background=True)))
        for run in unread
    ]
    async with asyncio.timeout(20):
        while not await metric(runtime.base_url, OPEN):
            pass
    for task in asks:
        task.cancel()
    await asyncio.wait(asks)
    async with asyncio.timeout(20):
        while await metric(runtime.base_url, OPEN):
            pass
    # Left to itself the server would have read all; what was in its hands it may have finished.
    assert await metric(runtime.base_url, FINISHED) - before < len(asks) / 2
