"""Workers that share a log: what each reads, round by round, on a runtime that counts words."""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from agentpar.errors import ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ports import Capability, Message, ModelRequest
from agentpar.redact import Redactor
from agentpar.runtime.hogwild import prompts
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.runtime.hogwild.logsync import LogGroup, recomputed
from agentpar.runtime.hogwild.opening import open_group
from agentpar.runtime.redacted import RedactedRuntime
from agentpar.runtime.scripted import ScriptedRuntime
from agentpar.workers import Piece, Workers


class Counting:
    """Writes ``n1 n2 …`` on and on, each request up to its ``max_tokens``; then, once a worker
    has written ``ends`` words, ends by itself."""

    def __init__(self, ends: int = 1_000, *, counts: bool = True) -> None:
        self.requests: list[ModelRequest] = []
        self.open = 0
        self._ends = ends
        self._counts = counts
        self._wrote: dict[str, int] = {}

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        self.requests.append(request)
        who = asked(request).split(",")[0]
        self.open += 1
        try:
            words = min(request.max_tokens, self._ends - self._wrote.get(who, 0))
            for _ in range(words):
                await asyncio.sleep(0)
                self._wrote[who] = self._wrote.get(who, 0) + 1
                yield f"n{self._wrote[who]} "
            counted = words if self._counts else 0
            yield Usage(completion_tokens=counted, calls=1, cut=words == request.max_tokens)
        finally:
            self.open -= 1

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None: ...


def asked(request: ModelRequest) -> str:
    return request.messages[-1].content.rpartition("You are ")[2].replace(".", ",", 1)


def workspace(request: ModelRequest) -> str:
    return "".join(m.content for m in request.messages if m.role == "assistant")


async def text_of(group: WorkerGroup) -> dict[str, str]:
    texts: dict[str, str] = {}
    async for piece in group:
        texts[piece.worker] = texts.get(piece.worker, "") + piece.text
    return texts


async def test_each_round_all_workers_read_the_same_log() -> None:
    """What the others wrote is there in the next round, and everyone's is in one order."""
    runtime = Counting()
    settings = Workers(max_tokens=4, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        texts = await text_of(group)
    assert texts == {"Alice": "n1 n2 n3 n4 ", "Bob": "n1 n2 n3 n4 "}
    logs = [workspace(request) for request in runtime.requests]
    assert logs == ["", "", "Alice: n1 n2\n\nBob: n1 n2", "Alice: n1 n2\n\nBob: n1 n2"]


async def test_up_to_the_last_words_the_prompts_of_a_round_are_equal() -> None:
    """A server that caches prefixes reads the log once, not once a worker."""
    runtime = Counting()
    settings = Workers(max_tokens=6, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice", "Bob", "Carol"], settings) as group:
        await text_of(group)
    prompts = [
        (*request.messages[:-1], request.messages[-1].content.rpartition("You are ")[0])
        for request in runtime.requests
    ]
    for first in range(0, len(prompts), 3):
        assert len(set(prompts[first : first + 3])) == 1


async def test_what_is_injected_is_read_from_the_next_round_on() -> None:
    """A tool's result, for all at once."""
    runtime = Counting()
    settings = Workers(max_tokens=4, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        await group.inject("search", "Lima has 10 million people.")
        await text_of(group)
    assert all("search:\nLima has 10 million people." in workspace(r) for r in runtime.requests)


async def test_nothing_that_is_injected_is_lost() -> None:
    """Twice under one name in one round."""
    runtime = Counting()
    async with open_group(runtime, "Count.", ["Alice"], Workers(max_tokens=2)) as group:
        await group.inject("search", "Lima")
        await group.inject("search", "Quito")
        await text_of(group)
    assert all(city in workspace(runtime.requests[0]) for city in ("Lima", "Quito"))


async def test_a_server_that_counts_no_tokens_is_asked_no_more_than_one_that_does() -> None:
    """A worker that is cut off each round would go on for ever."""
    runtime = Counting(counts=False)
    settings = Workers(max_tokens=6, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice"], settings) as group:
        await text_of(group)
    assert len(runtime.requests) == 3


async def test_a_group_without_a_task_is_refused() -> None:
    """Before anybody is set to work."""
    with pytest.raises(UsageError, match="what the task is"):
        async with open_group(Counting(), [], ["Alice"]):
            pass


async def test_the_task_is_read_before_the_rules() -> None:
    """A server that has read the task ahead has read how the workers' prompts begin."""
    task = (Message("system", "Be brief."), Message("user", "Count to ten."))
    async with open_group(Counting(ends=1), task, ["Alice", "Bob"]) as group:
        assert group.messages[0] == task[0]
        assert group.messages[-1].content.startswith("Count to ten.")


async def test_one_who_joins_is_in_the_next_round() -> None:
    """And sees what was written before."""
    runtime = Counting()
    settings = Workers(max_tokens=4, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice"], settings) as group:
        async for piece in group:
            if piece == Piece("Alice", "n2 "):
                group.join("Carol")
    carol = next(r for r in runtime.requests if asked(r).startswith("Carol"))
    assert "Alice: n1 n2" in workspace(carol)


async def test_one_who_leaves_is_not_waited_for_and_what_it_wrote_stays() -> None:
    """The others' next round begins without it."""
    runtime = Counting()
    settings = Workers(max_tokens=6, sync_every=3)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        async for piece in group:
            if piece == Piece("Bob", "n2 "):
                group.leave("Bob")
                assert group.workers == ("Alice",)
    last = runtime.requests[-1]
    assert asked(last).startswith("Alice")
    assert "Bob: n1 n2" in workspace(last)


async def test_one_who_has_nothing_to_say_any_more_ends() -> None:
    """A text that ends by itself ends its worker; the others go on."""
    runtime = Counting(ends=3)
    settings = Workers(max_tokens=50, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        texts = await text_of(group)
        assert group.workers == ()
    assert texts["Alice"] == "n1 n2 n3 "
    assert len(runtime.requests) == 4


async def test_the_answer_is_written_behind_the_whole_log() -> None:
    """The workers stop, and one text is written with all of theirs in sight."""
    runtime = Counting()
    settings = Workers(max_tokens=4, sync_every=2)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        async for piece in group:
            if piece.text == "n3 ":
                break
        said = "".join([text async for text in group.answer("Now the sum.", max_tokens=2)])
        assert group.workers == ()
        assert group.usage.cut
    assert said == "n1 n2 "
    final = runtime.requests[-1]
    assert final.messages[-1].content == "Now the sum."
    assert "Alice: n1 n2\n\nBob: n1 n2" in workspace(final)


def in_common(words: list[str], others: list[str]) -> int:
    """How many words two texts begin with in common."""
    pairs = enumerate(zip(words, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(words), len(others)))


class Caching(Counting):
    """Counts as a server that caches what it read, word by word, up to what a worker is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = 0
        self._read: list[list[str]] = [[]]

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        words = " ".join(m.content for m in request.messages).split()
        self.computed += len(words) - max(in_common(words, read) for read in self._read)
        own = len(prompts.turn(asked(request).split(",")[0]).split())
        self._read.append(words[:-own])
        async for piece in super().stream(request):
            yield piece


@pytest.mark.parametrize(("workers", "tokens", "every"), [(1, 6, 2), (2, 9, 3), (3, 8, 8)])
async def test_what_is_read_again_is_what_the_formula_says(
    workers: int, tokens: int, every: int
) -> None:
    """To the word, where nothing is lost to blocks: a name stands before each text of a round."""
    runtime = Caching()
    settings = Workers(workers, max_tokens=tokens, sync_every=every)
    async with open_group(runtime, "Count.", settings.names, settings) as group:
        await text_of(group)
        prompt = " ".join(m.content for m in group.messages).split()
    header = statistics.mean(len(prompts.turn(name).split()) for name in settings.names)
    rounds = tokens // every
    assert runtime.computed == recomputed(
        workers, tokens + rounds, every + 1, prompt=len(prompt), header=header, block=0
    )


KEY = "s3cr3t-value"


class Repeating(Counting):
    """Writes the same text on and on, ``max_tokens`` characters at a time."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._at: dict[str, int] = {}

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        self.requests.append(request)
        who = asked(request).split(",")[0]
        start = self._at.get(who, 0)
        self._at[who] = stop = start + request.max_tokens
        for letter in self._text[start:stop]:
            yield letter
        written = len(self._text[start:stop])
        yield Usage(completion_tokens=written, calls=1, cut=stop < len(self._text))


@pytest.mark.parametrize("every", [1, 5, 7, 11, 40])
async def test_a_secret_that_goes_on_from_round_to_round_is_hidden(every: int) -> None:
    """Whoever joins what a worker wrote does not have it, nor does the log; all else is there."""
    runtime = Repeating(f"It is {KEY}, s3cr et or s3c")
    hidden = RedactedRuntime(runtime, Redactor([KEY]))
    settings = Workers(max_tokens=60, sync_every=every, backend="log")
    async with hidden.group("Say it.", ["Alice", "Bob"], settings) as group:
        texts = await text_of(group)
        assert texts == dict.fromkeys(("Alice", "Bob"), "It is ***, s3cr et or s3c")
        async for _ in group.answer():
            pass
        assert isinstance(group, LogGroup)
        log = group.log
    for name in texts:
        own = re.findall(rf"^{name}: (.*)$", log, re.MULTILINE)
        assert "".join(own).replace(" ", "") == "Itis***,s3cretors3c"


@pytest.mark.parametrize("every", [5, 40])
async def test_what_may_begin_a_secret_is_told_when_a_worker_ends(every: int) -> None:
    """Held back while it goes on, it is not lost where it ends or leaves."""
    runtime = Repeating("word s3cr")
    settings = Workers(max_tokens=60, sync_every=every, backend="log")
    async with RedactedRuntime(runtime, Redactor([KEY])).group("Say it.", ["A"], settings) as group:
        assert await text_of(group) == {"A": "word s3cr"}


async def test_leaving_the_group_leaves_no_request_open() -> None:
    """Neither an error of the user's nor a break leaves anything behind."""
    runtime = Counting()

    async def breaks_off() -> None:
        async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
            async for _ in group:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await breaks_off()
    assert runtime.open == 0
    assert len(asyncio.all_tasks()) == 1


async def test_a_worker_whose_request_fails_is_told_of() -> None:
    """The error of the server, as it is; the others write on, and are not waited for in vain."""
    runtime = ScriptedRuntime(["one", ModelServerError("the server went away"), "So one."])
    async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
        assert await text_of(group) == {"Alice": "one"}
        assert group.faults == ("Bob broke off: the server went away",)
        assert "".join([text async for text in group.answer()]) == "So one."


async def test_a_server_that_is_gone_for_all_is_raised() -> None:
    """Nobody has written anything, and nobody will."""
    runtime = ScriptedRuntime([ModelServerError("the server went away")] * 2)
    with pytest.raises(ModelServerError, match="went away"):
        async with open_group(runtime, "Count.", ["Alice", "Bob"]) as group:
            await text_of(group)


async def test_a_worker_is_asked_from_time_to_time_whether_its_work_is_redundant() -> None:
    """After ``check_every`` tokens, once."""
    runtime = Counting()
    settings = Workers(max_tokens=8, sync_every=2, check_every=4)
    async with open_group(runtime, "Count.", ["Alice", "Bob"], settings) as group:
        await text_of(group)
    checks = ["already does" in asked(r) for r in runtime.requests if asked(r)[:5] == "Alice"]
    assert checks == [False, False, True, False]


async def test_a_group_of_one_gets_the_task_as_it_is() -> None:
    """No rules of working together for somebody who is alone."""
    runtime = Counting(ends=2)
    async with open_group(runtime, "Count.", ["Alice"]) as group:
        await text_of(group)
        assert group.messages == (Message("user", "Count."),)


async def test_a_runtime_that_cannot_share_says_why() -> None:
    """The log is taken, with the reason; whoever insists on rows gets the reason as an error."""
    runtime = Counting(ends=1)
    async with open_group(runtime, "Count.", ["Alice"]) as group:
        assert group.backend == "log"
        assert group.why == "Counting has no cache that could be shared"
    with pytest.raises(UsageError, match="Counting has no cache"):
        async with open_group(runtime, "Count.", ["Alice"], Workers(backend="rows")):
            pass


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ([], "at least one worker"),
        (["Alice", "Alice"], "stands there twice"),
        (["Al:ice"], "'Al:ice'"),
        ([""], "''"),
    ],
)
async def test_a_group_needs_workers_with_names(workers: list[str], message: str) -> None:
    """Names stand in front of texts, and tell workers apart."""
    with pytest.raises(UsageError, match=message):
        async with open_group(Counting(), "Count.", workers):
            pass


async def test_a_name_is_not_used_twice() -> None:
    """Neither of one who writes nor of one who left."""
    async with open_group(Counting(), "Count.", ["Alice", "Bob"]) as group:
        group.leave("Bob")
        with pytest.raises(UsageError, match="take another name"):
            group.join("Bob")
        with pytest.raises(UsageError, match="no worker 'Carol'"):
            group.leave("Carol")


@pytest.mark.parametrize(
    "setting",
    [
        {"n": 0},
        {"n": 9},
        {"max_tokens": 0},
        {"sync_every": 0},
        {"check_every": -1},
        {"layout": "sideways"},
        {"backend": "telepathy"},
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, Any]) -> None:
    """With the name and the value."""
    with pytest.raises(UsageError, match=next(iter(setting))):
        Workers(**setting)
