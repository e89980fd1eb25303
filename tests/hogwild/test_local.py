"""The reference engine as a runtime, on a small random model: rows come, go, are refused alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, ids, tiny

from agentpar.errors import ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest
from agentpar.runtime.hogwild.engine import Engine
from agentpar.runtime.hogwild.local import TorchRuntime
from agentpar.runtime.hogwild.opening import open_group
from agentpar.runtime.hogwild.rows import Row
from agentpar.workers import Workers

PREFIX = tuple(ids(20, seed=1))


class Letters:
    """A tokenizer with a letter for each token."""

    chat_template = "chat"

    def __len__(self) -> int:
        return VOCABULARY

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return "".join(map(chr, tokens))

    def apply_chat_template(self, chat: list[dict[str, str]], **_: object) -> str:
        return "".join(message["content"] for message in chat)


@pytest.fixture
async def runtime(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TorchRuntime]:
    """In the end no block is held and nothing goes on."""
    engine = Engine(tiny(dtype=torch.float32), Letters())
    monkeypatch.setattr(TorchRuntime, "_load", lambda _: engine)
    runtime = TorchRuntime("tiny")
    yield runtime
    await runtime.aclose()
    assert engine.cache.pool.free == engine.cache.pool.count
    assert len(asyncio.all_tasks()) == 1


def row(name: str, *, prefix: tuple[int, ...] = PREFIX, size: int = 1, tokens: int = 8) -> Row:
    own = (*prefix, *ids(4, seed=len(name)))
    return Row("g", name, own, len(prefix), size, tokens, layout="contiguous")


async def written(runtime: TorchRuntime, row: Row) -> Usage:
    *_, usage = [piece async for piece in runtime.write(row)]
    assert isinstance(usage, Usage)
    return usage


@pytest.mark.parametrize(
    ("name", "constraint"), [("grammar", 'root ::= "a"'), ("json_schema", {"type": "object"})]
)
async def test_a_constraint_that_nothing_would_hold_is_refused(name: str, constraint: Any) -> None:
    """Before any weights are looked for; the message says what would."""
    request = ModelRequest((Message("user", "Hi."),), **{name: constraint})
    runtime = TorchRuntime("smollm2-135m")
    with pytest.raises(UsageError) as refused:
        await anext(runtime.stream(request))
    assert f"the request has a {name}" in str(refused.value)
    assert "model='vllm:smollm2-135m'" in str(refused.value)
    assert name not in await runtime.capabilities()


async def test_a_row_that_cannot_be_in_its_group_is_refused_alone(runtime: TorchRuntime) -> None:
    """Another prefix; the others write all they wanted."""
    other = tuple(ids(20, seed=9))
    good, bad = await asyncio.gather(
        written(runtime, row("Alice", size=2)),
        written(runtime, row("Bob", size=2, prefix=other)),
        return_exceptions=True,
    )
    assert isinstance(good, Usage)
    assert good.completion_tokens == 8
    assert isinstance(bad, UsageError)
    assert "another prefix" in str(bad)


async def test_a_second_row_of_a_name_is_refused(runtime: TorchRuntime) -> None:
    """The first would otherwise be waited for without end."""
    first, second = await asyncio.gather(
        written(runtime, row("Alice", size=2)),
        written(runtime, row("Alice", size=2)),
        return_exceptions=True,
    )
    assert isinstance(second, UsageError)
    assert isinstance(first, Usage)


async def test_rows_that_leave_at_any_moment_leave_nothing(runtime: TorchRuntime) -> None:
    """Before the first step, in the midst of one, between two."""
    for steps in (0, 1, 3):
        pieces = runtime.write(row(f"Alice{steps}", tokens=200))
        for _ in range(steps):
            await anext(pieces)
        await pieces.aclose()
    tasks = [asyncio.create_task(written(runtime, row(n, size=3, tokens=200))) for n in ("A", "Bo")]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_where_all_leave_before_the_group_began_nobody_waits(runtime: TorchRuntime) -> None:
    """The name is free at once for another group."""
    lost = asyncio.create_task(written(runtime, row("Alice", size=2)))
    await asyncio.sleep(0.01)
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    usage = await asyncio.wait_for(written(runtime, row("Bob", size=1)), 60)
    assert usage.completion_tokens == 8


async def test_a_late_row_of_no_group_is_refused(runtime: TorchRuntime) -> None:
    """It would see nobody, and not say so."""
    with pytest.raises(ModelServerError, match="no more"):
        await written(runtime, row("Carol", size=0))


async def test_a_text_that_ends_at_a_stop_string_counts_what_was_written(
    runtime: TorchRuntime,
) -> None:
    """The likeliest text is cut before its third letter; its three tokens were computed."""
    request = ModelRequest((Message("user", "Hello there"),), max_tokens=6)
    whole = [piece async for piece in runtime.stream(request)]
    text = "".join(piece for piece in whole if isinstance(piece, str))
    stop = ModelRequest(request.messages, max_tokens=6, stop=(text[2],))
    *pieces, usage = [piece async for piece in runtime.stream(stop)]
    assert "".join(map(str, pieces)) == text[: text.index(text[2])]
    assert isinstance(usage, Usage)
    assert usage.completion_tokens >= text.index(text[2]) + 1


async def test_a_group_answers_with_all_in_sight(runtime: TorchRuntime) -> None:
    """Workers, somebody who comes late, an injected text; then one text, and nothing is left."""
    settings = Workers(2, max_tokens=12, backend="rows")
    async with open_group(runtime, "Count to ten.", ["Alice", "Bob"], settings) as group:
        await group.inject("search", "Lima")
        group.join("Carol")
        wrote = {piece.worker async for piece in group}
        assert wrote == {"Alice", "Bob", "Carol"}
        assert "".join([text async for text in group.answer(max_tokens=5)])
        assert group.faults == ()
