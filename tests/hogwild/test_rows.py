"""Groups by rows, on the real 135M weights: the reference engine, and a vLLM with the plugin.

What the weights write is not looked at, but that both write the same, and what is seen of it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from agentpar.errors import ModelServerError, UsageError
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.runtime.client import OpenAIRuntime
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.runtime.hogwild.local import TorchRuntime
from agentpar.runtime.hogwild.opening import open_group
from agentpar.runtime.hogwild.rows import Row, row_server
from agentpar.workers import Workers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

WEIGHTS = "smollm2-135m"
TASK = "Name three rivers of Peru and three lakes of Chile."
SHORT = Workers(2, max_tokens=12, backend="rows")


@pytest.fixture(params=["torch", "vllm"])
async def runtime(request: pytest.FixtureRequest, vllm_sharing_url: str) -> AsyncIterator[Runtime]:
    opened: Runtime
    torch = request.param == "torch"
    opened = TorchRuntime(WEIGHTS) if torch else OpenAIRuntime(vllm_sharing_url)
    yield opened
    await opened.aclose()


async def texts_of(group: WorkerGroup) -> dict[str, str]:
    texts: dict[str, str] = {}
    async for piece in group:
        texts[piece.worker] = texts.get(piece.worker, "") + piece.text
    return texts


async def test_workers_write_by_rows(runtime: Runtime) -> None:
    """Both write, the group says how they read each other, and what was spent is counted."""
    async with open_group(runtime, TASK, ["Alice", "Bob"], SHORT) as group:
        assert (group.backend, group.why) == ("rows", "")
        texts = await texts_of(group)
    assert set(texts) == {"Alice", "Bob"}
    assert 0 < group.usage.completion_tokens <= 24
    assert group.usage.calls == 2


async def test_the_answer_is_written_after_all_have_ended(runtime: Runtime) -> None:
    """What they wrote is kept for whoever comes next. A second answer finds it gone: it is written
    from their texts, and says so."""
    async with open_group(runtime, TASK, ["Alice", "Bob"], SHORT) as group:
        await texts_of(group)
        assert "".join([text async for text in group.answer(max_tokens=8)])
        assert group.faults == ()
        assert "".join([text async for text in group.answer(max_tokens=8)])
        assert re.search(r"not their cache: .*(no more|has ended)", group.why)


async def test_the_answer_stops_those_who_still_write(runtime: Runtime) -> None:
    """It begins in their midst."""
    settings = Workers(2, max_tokens=60, backend="rows")
    async with open_group(runtime, TASK, ["Alice", "Bob"], settings) as group:
        async for _ in group:
            break
        assert "".join([text async for text in group.answer(max_tokens=8)])
        assert group.workers == ()


async def test_members_come_and_go(runtime: Runtime) -> None:
    """Somebody joins, a result is injected, somebody leaves; the others go on."""
    settings = Workers(2, max_tokens=16, backend="rows", layout="contiguous")
    async with open_group(runtime, TASK, ["Alice", "Bob"], settings) as group:
        pieces = group.__aiter__()
        await anext(pieces)
        await group.inject("search", "The Ucayali is a river in Peru.")
        group.join("Carol")
        group.leave("Bob")
        wrote = {piece.worker async for piece in pieces}
    assert "Carol" in wrote


async def test_a_worker_is_asked_whether_its_work_is_redundant(runtime: Runtime) -> None:
    """In a row of its own that goes on where the last one stopped."""
    settings = Workers(2, max_tokens=12, check_every=4, backend="rows")
    async with open_group(runtime, TASK, ["Alice", "Bob"], settings) as group:
        texts = await texts_of(group)
    asked = [text for text in texts.values() if "already doing what I do" in text]
    ended_at_once = group.usage.completion_tokens < 8
    assert asked or ended_at_once


async def test_a_late_row_of_a_group_that_is_no_more_is_refused(runtime: Runtime) -> None:
    """It would see nobody, and not say so."""
    rows = row_server(runtime)
    assert rows is not None
    tokens = await rows.tokenize("Hello there")
    row = Row("gone", "late", tokens, 1, size=0, max_tokens=4, layout="contiguous")
    with pytest.raises(ModelServerError, match=r"no more|has ended"):
        async for _ in rows.write(row):
            pass


async def test_one_worker_writes_what_a_plain_request_gets(vllm_sharing_url: str) -> None:
    """A group of one on the server is plain generation on it."""
    plain = OpenAIRuntime(vllm_sharing_url)
    request = ModelRequest((Message("user", TASK),), max_tokens=24)
    want = "".join([piece async for piece in plain.stream(request) if isinstance(piece, str)])
    settings = Workers(1, max_tokens=24, backend="rows")
    async with plain.group(TASK, ["Alice"], settings) as group:
        got = await texts_of(group)
    await plain.aclose()
    assert got == {"Alice": want}


async def test_a_plain_vllm_says_that_it_does_not_share(vllm_05b_url: str) -> None:
    """And the workers share a log instead."""
    runtime = OpenAIRuntime(vllm_05b_url)
    async with open_group(runtime, TASK, ["Alice"], Workers(1, max_tokens=4)) as group:
        await texts_of(group)
        assert group.backend == "log"
        assert "serve --hogwild" in group.why
    with pytest.raises(UsageError, match="serve --hogwild"):
        async with open_group(runtime, TASK, ["Alice"], SHORT):
            pass
    await runtime.aclose()
