"""A group by rows on a server that refuses, breaks off or forgets: who goes on, and who hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from agentpar.errors import ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ports import Capability, Message, ModelRequest
from agentpar.redact import Redactor
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.runtime.hogwild.opening import open_group
from agentpar.runtime.hogwild.rows import Row
from agentpar.runtime.redacted import RedactedRuntime
from agentpar.workers import Workers

Said = Sequence[str | Exception]


class Rows:
    """A runtime that writes rows by the rules of `RowServer`: a group begins once all of its first
    rows are there, and is no more once ``ended``. ``said`` is what each writes, an error included;
    ordinary requests get ``plain``."""

    def __init__(self, plain: str = "plainly", *, counts: bool = True, **said: Said) -> None:
        self.asked: list[Row] = []
        self.requests: list[ModelRequest] = []
        self.open = 0
        self.ended = False
        self.begun = asyncio.Event()
        self._plain = plain
        self._counts = counts
        self._said = said

    def rows(self) -> Rows:
        return self

    async def cannot_share(self) -> str:
        return ""

    async def tokenize(self, text: str | Sequence[Message]) -> tuple[int, ...]:
        if not isinstance(text, str):
            text = "".join(message.content for message in text)
        return tuple(map(ord, text))

    async def step_tokens(self) -> tuple[int, ...]:
        return (ord("\n"),)

    async def write(self, row: Row) -> AsyncGenerator[str | Usage, None]:
        self.asked.append(row)
        if self.ended or not (row.size or self.begun.is_set()):
            raise ModelServerError("row comes late: its group is no more")
        self.open += 1
        try:
            if len(self.asked) >= row.size:
                self.begun.set()
            await self.begun.wait()
            said = self._said.get(row.name.partition(".")[0], ["a", "b"])[: row.max_tokens]
            for piece in said:
                await asyncio.sleep(0)
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            cut = len(said) == row.max_tokens
            yield Usage(completion_tokens=len(said) * self._counts, calls=1, cut=cut)
        finally:
            self.open -= 1

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        self.requests.append(request)
        yield self._plain
        yield Usage(completion_tokens=1, calls=1)

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None: ...


async def texts_of(group: WorkerGroup) -> dict[str, str]:
    texts: dict[str, str] = {}
    async for piece in group:
        texts[piece.worker] = texts.get(piece.worker, "") + piece.text
    return texts


async def test_who_comes_late_waits_until_the_group_has_begun() -> None:
    """Before that there is no group to come to, and the server would refuse the row."""
    runtime = Rows()
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        group.join("Carol")
        await group.inject("search", "Lima")
        assert set(await texts_of(group)) == {"Alice", "Bob", "Carol"}
    assert [row.size for row in runtime.asked[:2]] == [2, 2]
    assert group.faults == ()


async def test_one_who_fails_ends_and_the_others_go_on() -> None:
    """What it wrote stays, and the group says why it stopped."""
    runtime = Rows(Bob=["one ", ModelServerError("the row broke")], answer=["all of it"])
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        assert await texts_of(group) == {"Alice": "ab", "Bob": "one "}
        assert group.faults == ("Bob broke off: the row broke",)
        assert [text async for text in group.answer()] == ["all of it"]


async def test_where_all_fail_before_anyone_wrote_whoever_listens_hears_it() -> None:
    """Rather than a group that has nothing to say."""
    refused = ModelServerError("larger than memory")
    runtime = Rows(Alice=[refused], Bob=[refused])
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        with pytest.raises(ModelServerError, match="larger than memory"):
            await texts_of(group)
        assert len(group.faults) == 2


async def test_a_fault_of_ours_is_raised_whoever_else_writes() -> None:
    """It is no failure of the world's that others could work around."""
    runtime = Rows(Bob=[ZeroDivisionError()])
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        with pytest.raises(ZeroDivisionError):
            await texts_of(group)


async def test_an_answer_whose_group_is_gone_is_an_ordinary_request() -> None:
    """With all that was written and injected in its prompt, and a word that it was so."""
    runtime = Rows()
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        await group.inject("search", "Lima")
        await texts_of(group)
        runtime.ended = True
        await group.inject("mail", "Quito")
        answer = group.answer("Now the sum.", temperature=0.5, seed=7)
        assert [text async for text in answer] == ["plainly"]
        assert "not their cache: row comes late" in group.why
        assert group.faults == ("only the answer is told of 'mail': row comes late: its group is "
                                "no more", group.why)  # fmt: skip
    (asked,) = runtime.requests
    prompt = "\n".join(message.content for message in asked.messages)
    for text in ("Alice: ab", "Bob: ab", "search:\nLima", "mail:\nQuito", "Now the sum."):
        assert text in prompt
    assert (asked.temperature, asked.seed) == (0.5, 7)


async def test_an_answer_that_breaks_off_in_the_middle_is_not_begun_again() -> None:
    """What was told of it cannot be taken back."""
    runtime = Rows(answer=["It is ", ModelServerError("broke")])
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        await texts_of(group)
        with pytest.raises(ModelServerError, match="broke"):
            _ = [text async for text in group.answer()]
    assert not runtime.requests


async def test_what_is_injected_while_others_write_and_fails_is_raised() -> None:
    """They would go on without what they were to be told."""
    runtime = Rows(Alice=["x"] * 1000, search=[ModelServerError("no room")])
    settings = Workers(max_tokens=1000)
    async with open_group(runtime, "Count.", ["Alice"], settings) as group:
        with pytest.raises(ModelServerError, match="no room"):
            await group.inject("search", "Lima")


async def test_the_answer_has_a_randomness_of_its_own() -> None:
    """That of the workers is theirs."""
    runtime = Rows()
    settings = Workers(temperature=0.9, seed=3)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        await texts_of(group)
        _ = [text async for text in group.answer(seed=5)]
    sampled = {row.name.partition(".")[0]: (row.temperature, row.seed) for row in runtime.asked}
    assert sampled == {"Alice": (0.9, 3), "Bob": (0.9, 4), "answer": (0.0, 5)}


async def test_a_server_that_counts_no_tokens_is_asked_no_more_than_one_that_does() -> None:
    """A worker that is cut off each time would go on for ever."""
    runtime = Rows(Alice=["x"] * 9, counts=False)
    settings = Workers(max_tokens=8, check_every=2)
    async with open_group(runtime, "Count.", ["Alice"], settings) as group:
        await texts_of(group)
    assert len(runtime.asked) == 4


async def test_rows_of_one_group_never_share_a_name() -> None:
    """A server refuses the second, whoever asks for it."""
    runtime = Rows()
    settings = Workers(max_tokens=8, check_every=2)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        await group.inject("search", "Lima")
        await group.inject("search", "Quito")
        await texts_of(group)
        _ = [text async for text in group.answer()]
    names = [row.name for row in runtime.asked]
    assert len(set(names)) == len(names) > 5


async def test_whoever_goes_leaves_no_row_open() -> None:
    """In the middle of a text, in the middle of the answer, before the group began."""
    runtime = Rows(Alice=["x"] * 50, answer=["x"] * 50)
    settings = Workers(max_tokens=50)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        answer = group.answer()
        async for _ in answer:
            break
        await answer.aclose()
        assert runtime.open == 0
        assert group.workers == ()
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        pass
    assert runtime.open == 0
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("name", ["Alice", "Bob"])
async def test_nothing_is_injected_under_a_workers_name(name: str) -> None:
    """It would read as if the worker had written it."""
    async with open_group(Rows(), "Count.", ["Alice", "Bob"]) as group:
        with pytest.raises(UsageError, match=f"{name!r} is a worker"):
            await group.inject(name, "Lima")


async def test_a_hidden_runtime_is_the_same_to_those_who_open_groups() -> None:
    """It says who serves it, opens groups, and hides what is split over pieces of a row."""
    runtime = Rows(Alice=["the key is s3cr", "3t-va", "lue."], answer=["s3cr3t", "-value"])
    hidden = RedactedRuntime(runtime, Redactor(["s3cr3t-value"]))
    assert hidden.provider == "Rows"
    assert hidden.model_name == ""
    async with hidden.group("Use s3cr3t-value.", ["Alice"]) as group:
        assert group.backend == "rows"
        assert (await texts_of(group))["Alice"] == "the key is ***."
        assert "".join([text async for text in group.answer()]) == "***"
    prompts = ["".join(map(chr, row.tokens)) for row in runtime.asked]
    assert not any("s3cr3t-value" in prompt for prompt in prompts)
