"""The HTTP runtime against a real loopback server that misbehaves on order."""

from __future__ import annotations

import asyncio
import email.utils
import gc
import json
import socket
import sys
import time
import weakref
from dataclasses import replace
from typing import Any

import httpx
import pytest

from agentpar.errors import GrammarRefused, ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.runtime import open_runtime
from agentpar.runtime.client import OpenAIRuntime
from agentpar.runtime.hogwild.rows import Row

ASK = ModelRequest((Message("system", "Be brief."), Message("user", "Hi")), max_tokens=9)


async def read(runtime: Runtime, request: ModelRequest = ASK) -> tuple[str, Usage]:
    """The whole text and the usage, which has to be the last item and the only one."""
    items = [item async for item in runtime.stream(request)]
    assert [item for item in items if isinstance(item, Usage)] == items[-1:]
    return "".join(items[:-1]), items[-1]


async def good(request: Any) -> None:
    await request.head()
    await request.chunk("Hel")
    await request.chunk("lo")
    await request.end(
        prompt_tokens=12, completion_tokens=2, prompt_tokens_details={"cached_tokens": 8}
    )


def refuse(status: str, *headers: str, body: str = "") -> Any:
    async def answer(request: Any) -> None:
        await request.head(status, "application/json", *headers)
        await request.send(body)

    return answer


async def test_text_comes_in_pieces_and_usage_last(wire: Any) -> None:
    """Two chunks are two pieces; tokens, cached ones too, are counted as the server says."""
    wire.answers = [good]
    runtime = OpenAIRuntime(wire.url)
    items = [item async for item in runtime.stream(ASK)]
    assert items == ["Hel", "lo", Usage(12, 2, 8, calls=1)]
    await runtime.aclose()


@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False)])
async def test_a_text_that_ran_out_of_tokens_is_marked(wire: Any, reason: str, cut: bool) -> None:
    """The server says why it ended; what it says of tokens comes behind that."""

    async def answer(request: Any) -> None:
        await request.head()
        await request.chunk("Hel")
        choice = {"delta": {}, "finish_reason": reason}
        await request.send(f"data: {json.dumps({'choices': [choice]})}\n\n")
        await request.end(prompt_tokens=12, completion_tokens=9)

    wire.answers = [answer]
    runtime = OpenAIRuntime(wire.url)
    assert await read(runtime) == ("Hel", Usage(12, 9, calls=1, cut=cut))
    await runtime.aclose()


async def test_request_says_all_that_was_asked(wire: Any) -> None:
    """Model, messages, limits, stop strings and the key reach the server."""
    wire.answers = [good]
    runtime = OpenAIRuntime(wire.url, api_key="k-1")
    await read(runtime, ModelRequest(ASK.messages, 7, 0.5, stop=("join()",), seed=3))
    (request,) = wire.requests
    assert request.headers["authorization"] == "Bearer k-1"
    assert request.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "stop": ["join()"],
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    await runtime.aclose()


async def test_constraints_reach_a_vllm_and_only_a_vllm(wire: Any) -> None:
    """Grammar and schema are sent where the server is vLLM, refused where it is unknown."""
    wire.answers = [good]
    unknown = OpenAIRuntime(wire.url)
    assert await unknown.capabilities() == frozenset()
    with pytest.raises(UsageError, match="not known to enforce a grammar"):
        await read(unknown, ModelRequest(ASK.messages, grammar='root ::= "a"'))
    wire.is_vllm = True
    known = OpenAIRuntime(wire.url)
    assert await known.capabilities() == {"grammar", "json_schema", "prefill"}
    await read(known, ModelRequest(ASK.messages, grammar='root ::= "a"'))
    await read(known, ModelRequest(ASK.messages, json_schema={"type": "integer"}))
    by_grammar, by_schema = (request.body for request in wire.requests)
    assert by_grammar["structured_outputs"] == {"grammar": 'root ::= "a"'}
    assert by_schema["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    await unknown.aclose()
    await known.aclose()


@pytest.mark.parametrize(("said", "able"), [("True", True), ("False", False), ("", True)])
async def test_a_vllm_without_a_prefix_cache_cannot_prefill(
    wire: Any, said: str, able: bool
) -> None:
    """Its metrics say so; where it shows none, it has vLLM's default."""
    wire.is_vllm = True
    if said:
        wire.metrics = f'vllm:cache_config_info{{enable_prefix_caching="{said}"}} 1.0\n'
    runtime = OpenAIRuntime(wire.url)
    assert ("prefill" in await runtime.capabilities()) == able
    assert "grammar" in await runtime.capabilities()
    await runtime.aclose()


async def test_background_requests_let_others_go_first(wire: Any) -> None:
    """They say so to a vLLM, whose lower numbers go first; no other server is told."""
    wire.answers = [good]
    for wire.is_vllm in (True, False):
        runtime = OpenAIRuntime(wire.url)
        await read(runtime, ASK)
        await read(runtime, replace(ASK, background=True))
        await runtime.aclose()
    assert [request.body.get("priority") for request in wire.requests] == [None, 1, None, None]


async def test_a_server_that_refuses_priorities_is_asked_without(wire: Any) -> None:
    """Once, and from then on it is not told any."""
    wire.is_vllm = True
    wire.answers = [refuse("400 Bad Request", body="Got priority 1, but scheduling is fcfs"), good]
    runtime = OpenAIRuntime(wire.url)
    for _ in range(2):
        await read(runtime, replace(ASK, background=True))
    assert [request.body.get("priority") for request in wire.requests] == [1, None, None]
    await runtime.aclose()


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_429_waits_as_long_as_the_server_says(wire: Any, form: str) -> None:
    """Retry-After is honoured, as a number and as an HTTP date."""
    date = email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 ahead
    value = "0.6" if form == "seconds" else date
    wire.answers = [refuse("429 Too Many Requests", f"retry-after: {value}"), good]
    runtime = OpenAIRuntime(wire.url)
    begun = time.monotonic()
    assert (await read(runtime))[0] == "Hello"
    assert 0.5 < time.monotonic() - begun < 20
    await runtime.aclose()


async def test_server_that_asks_for_an_hour_is_given_up(wire: Any) -> None:
    """Nobody sits through a long Retry-After: the error comes at once, with the message."""
    body = '{"error": {"message": "quota spent"}}'
    wire.answers = [refuse("429 Too Many Requests", "retry-after: 3600", body=body)]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError, match=r"429.*quota spent"):
        await read(runtime)
    assert len(wire.requests) == 1
    await runtime.aclose()


async def test_5xx_is_retried_then_reported(wire: Any) -> None:
    """One attempt and two retries, then the server's status and words."""
    wire.answers = [refuse("503 Service Unavailable", "retry-after: 0", body="warming up")]
    runtime = OpenAIRuntime(wire.url, retries=2)
    with pytest.raises(ModelServerError, match="HTTP 503 for /v1/chat/completions: warming up"):
        await read(runtime)
    assert len(wire.requests) == 3
    await runtime.aclose()


async def test_a_retry_prints_nothing(wire: Any) -> None:
    """In a program that has not set up logging, a request that is asked again is not heard."""
    wire.answers = [refuse("503 Service Unavailable", "retry-after: 0"), good]
    program = f"""
import asyncio
from agentpar.ports import Message, ModelRequest
from agentpar.runtime.client import OpenAIRuntime

async def main():
    runtime = OpenAIRuntime({wire.url!r})
    request = ModelRequest((Message("user", "Hi"),))
    print("".join([piece async for piece in runtime.stream(request) if isinstance(piece, str)]))
    await runtime.aclose()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        printed = await process.communicate()
    assert len(wire.requests) == 2
    assert printed == (b"Hello\n", b"")


async def test_a_refused_grammar_is_an_error_of_its_own(wire: Any) -> None:
    """By status or inside the stream, as vLLM does; other refusals are no `GrammarRefused`."""
    body = '{"error": {"message": "Invalid grammar specification: rule x", "code": 400}}'

    async def inside(request: Any) -> None:
        await request.head()
        await request.send(f"data: {body}\n\ndata: [DONE]\n\n")

    too_long = refuse("400 Bad Request", body='{"error": {"message": "context length is 8192"}}')
    wire.is_vllm = True
    wire.answers = [refuse("400 Bad Request", body=body), inside, too_long]
    runtime = OpenAIRuntime(wire.url)
    bound = ModelRequest(ASK.messages, grammar="root ::= x")
    assert "grammar" in await runtime.capabilities()
    for _ in range(2):
        with pytest.raises(GrammarRefused, match="Invalid grammar specification: rule x"):
            await read(runtime, bound)
        assert await runtime.capabilities() == {
            "json_schema",
            "prefill",
        }  # the next run need not try
    with pytest.raises(ModelServerError, match="context length") as caught:
        await read(runtime, bound)
    assert not isinstance(caught.value, GrammarRefused)
    assert len(wire.requests) == 3
    await runtime.aclose()


async def test_400_is_not_retried_and_carries_the_message(wire: Any) -> None:
    """The server's own words reach the user; asking again would not help."""
    body = '{"error": {"message": "context length is 8192", "type": "BadRequestError"}}'
    wire.answers = [refuse("400 Bad Request", body=body)]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError, match=r"HTTP 400.*context length is 8192"):
        await read(runtime)
    assert len(wire.requests) == 1
    await runtime.aclose()


async def test_key_is_in_no_message(wire: Any) -> None:
    """Not even where the server repeats it, nor in the repr, nor one inside the address."""
    body = '{"error": {"message": "bad key sk-secret"}}'
    wire.answers = [refuse("401 Unauthorized", body=body)]
    url = wire.url.replace("http://", "http://user:sk-secret@")
    runtime = OpenAIRuntime(url, api_key="sk-secret")
    with pytest.raises(ModelServerError, match=r"bad key \*\*\*") as caught:
        await read(runtime)
    assert "sk-secret" not in str(caught.value) + repr(runtime)
    await runtime.aclose()


async def test_broken_stream_is_retried_before_the_first_text_only(wire: Any) -> None:
    """A line cut before any text is asked again; after text it is an error, asked once."""

    async def cut_early(request: Any) -> None:
        await request.head()

    async def cut_late(request: Any) -> None:
        await request.head()
        await request.chunk("half a pl")

    wire.answers = [cut_early, good, cut_late]
    runtime = OpenAIRuntime(wire.url)
    assert (await read(runtime))[0] == "Hello"
    assert len(wire.requests) == 2
    with pytest.raises(ModelServerError, match="broke off in the middle of the text"):
        await read(runtime)
    assert len(wire.requests) == 3
    await runtime.aclose()


async def test_error_inside_the_stream_is_the_servers_word(wire: Any) -> None:
    """vLLM reports an engine that died as an error object among the chunks."""

    async def fail(request: Any) -> None:
        await request.head()
        await request.chunk("Hel")
        await request.send('data: {"error": {"message": "EngineCore died"}}\n\n')

    wire.answers = [fail]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError, match="broke off: EngineCore died"):
        await read(runtime)
    await runtime.aclose()


async def test_silence_ends_with_the_read_timeout(wire: Any) -> None:
    """The timeout counts from the last piece, and is not followed by a second request."""

    async def stall(request: Any) -> None:
        await request.head()
        await request.chunk("Hel")
        await request.gone.wait()

    wire.answers = [stall]
    runtime = OpenAIRuntime(wire.url, timeout=0.3)
    with pytest.raises(ModelServerError, match=r"sent nothing for 0\.3 s"):
        await read(runtime)
    assert len(wire.requests) == 1
    await runtime.aclose()


async def test_slow_stream_is_no_silence(wire: Any) -> None:
    """A stream may take longer than the timeout as long as pieces keep coming."""

    async def slow(request: Any) -> None:
        await request.head()
        for _ in range(6):
            await asyncio.sleep(0.1)
            await request.chunk("a")
        await request.end()

    wire.answers = [slow]
    runtime = OpenAIRuntime(wire.url, timeout=0.4)
    assert (await read(runtime))[0] == "aaaaaa"
    await runtime.aclose()


@pytest.mark.parametrize("way", ["aclose", "cancel"])
async def test_leaving_early_hangs_up(wire: Any, way: str) -> None:
    """Closing the generator or cancelling the reader closes the connection at once."""

    async def endless(request: Any) -> None:
        await request.head()
        while not request.gone.is_set():
            await request.chunk("a")
            await asyncio.sleep(0.01)

    wire.answers = [endless]
    runtime = OpenAIRuntime(wire.url)
    if way == "aclose":
        stream = runtime.stream(ASK)
        assert await anext(stream) == "a"
        await stream.aclose()
    else:
        reader = asyncio.create_task(read(runtime))
        await wire.asked.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
    await asyncio.wait_for(wire.requests[0].gone.wait(), 20)
    await runtime.aclose()


async def test_line_separators_inside_text_do_not_cut_it(wire: Any) -> None:
    """U+2028, U+0085 and form feeds may stand unescaped in JSON: only newlines end a line."""
    text = "a\u2028b\u0085c\u2029d é 漢"

    async def odd(request: Any) -> None:
        await request.head()
        await request.send(": keep-alive\n\nevent: message\r\n")
        await request.chunk(text)
        await request.end()

    wire.answers = [odd]
    runtime = OpenAIRuntime(wire.url)
    assert (await read(runtime))[0] == text
    await runtime.aclose()


async def test_bytes_may_be_cut_anywhere(wire: Any) -> None:
    """One byte at a time, in the middle of characters and lines, gives the same text."""

    async def drip(request: Any) -> None:
        await request.head()
        for (
            byte
        ) in 'data: {"choices":[{"delta":{"content":"né 漢"}}]}\n\ndata: [DONE]\n\n'.encode():
            await request.send(bytes([byte]))
            await asyncio.sleep(0)

    wire.answers = [drip]
    runtime = OpenAIRuntime(wire.url)
    assert (await read(runtime))[0] == "né 漢"
    await runtime.aclose()


async def test_huge_line_is_read_and_a_monstrous_one_refused(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 MB in one chunk pass in linear time; a line without end is an error, not memory."""

    async def huge(request: Any) -> None:
        await request.head()
        await request.chunk("x" * 4_000_000)
        await request.end()

    async def endless(request: Any) -> None:
        await request.head()
        while not request.gone.is_set():
            await request.send(b"x" * 65536)

    wire.answers = [huge, endless]
    runtime = OpenAIRuntime(wire.url)
    begun = time.process_time()
    assert len((await read(runtime))[0]) == 4_000_000
    assert time.process_time() - begun < 2
    monkeypatch.setattr("agentpar.runtime.client.MAX_LINE", 1 << 20)
    with pytest.raises(ModelServerError, match="a line of more than 1048576 bytes"):
        await read(runtime)
    await runtime.aclose()


@pytest.mark.parametrize("data", [b'data: {"choices": \xff\xfe}\n\n', b"data: {nonsense\n\n"])
async def test_what_is_not_json_in_utf8_is_named(wire: Any, data: bytes) -> None:
    """The error shows the beginning of the line that could not be read."""

    async def garble(request: Any) -> None:
        await request.head()
        await request.send(data)

    wire.answers = [garble]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError, match=r"not JSON in UTF-8.*(choices|nonsense)"):
        await read(runtime)
    await runtime.aclose()


@pytest.mark.parametrize(
    "piece",
    [
        {"choices": [None]},
        {"choices": 7},
        {"choices": [{"delta": "Hi"}]},
        {"choices": [{"delta": {"content": ["Hi"]}}]},
        {"choices": [], "usage": {"prompt_tokens": "12"}},
        {"choices": [], "usage": 12},
    ],
)
async def test_a_piece_of_another_protocol_is_named(wire: Any, piece: dict[str, Any]) -> None:
    """Whatever a server sends, it is its mistake, and no AttributeError of ours."""

    async def odd(request: Any) -> None:
        await request.head()
        await request.send(f"data: {json.dumps(piece)}\n\n")

    wire.answers = [odd]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError, match="none of an OpenAI-compatible server's: b'"):
        await read(runtime)
    await runtime.aclose()


async def test_page_instead_of_a_stream_is_named(wire: Any) -> None:
    """A wrong address that answers with a web page says so."""

    async def page(request: Any) -> None:
        await request.head(kind="text/html")
        await request.send("<html>It works!</html>")

    wire.answers = [page]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError, match="'text/html' instead of an event stream"):
        await read(runtime)
    await runtime.aclose()


async def test_missing_usage_counts_the_call(wire: Any) -> None:
    """A server that tells no tokens still ends with a usage: one call, no tokens."""

    async def silent(request: Any) -> None:
        await request.head()
        await request.chunk("Hi")
        await request.send("data: [DONE]\n\n")

    wire.answers = [silent]
    runtime = OpenAIRuntime(wire.url)
    assert await read(runtime) == ("Hi", Usage(calls=1))
    await runtime.aclose()


async def test_at_most_so_many_connections(wire: Any) -> None:
    """Further requests wait their turn instead of failing."""

    async def slow(request: Any) -> None:
        await asyncio.sleep(0.05)
        await good(request)

    wire.answers = [slow]
    runtime = OpenAIRuntime(wire.url, model="m", max_connections=3)
    texts = await asyncio.gather(*(read(runtime) for _ in range(12)))
    assert {text for text, _ in texts} == {"Hello"}
    assert wire.most_at_once == 3
    await runtime.aclose()


async def test_nobody_there_says_what_to_do() -> None:
    """The address that was tried, and the command that starts a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    runtime = OpenAIRuntime(url, retries=1)
    with pytest.raises(ModelServerError, match=f"{url}.*agentpar serve.*--model-url"):
        await read(runtime)
    await runtime.aclose()


def test_one_runtime_serves_several_event_loops(wire_thread: str) -> None:
    """``ask_sync`` twice is two event loops: connections of the first are not used again."""
    runtime = OpenAIRuntime(wire_thread)
    for _ in range(2):
        assert asyncio.run(_read_and_close(runtime))[0] == "Hello"


def test_each_event_loop_has_its_own_connections(wire_thread: str) -> None:
    """Closing in one loop leaves another's open; those of a loop that is gone are let go."""
    runtime = OpenAIRuntime(wire_thread)

    async def opened() -> httpx.AsyncClient:
        return runtime._http()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        ours, theirs = first.run(opened()), second.run(opened())
        first.run(runtime.aclose())
        assert (ours.is_closed, theirs.is_closed) == (True, False)
        assert second.run(read(runtime))[0] == "Hello"
        gone = weakref.ref(theirs)
        del theirs
    assert asyncio.run(_read_and_close(runtime))[0] == "Hello"
    gc.collect()
    assert gone() is None


async def _read_and_close(runtime: OpenAIRuntime) -> tuple[str, Usage]:
    try:
        return await read(runtime)
    finally:
        await runtime.aclose()


@pytest.mark.parametrize("tail", ["/chat/completions", "/completions", "/models"])
def test_an_address_of_one_request_says_what_to_leave_out(tail: str) -> None:
    """An address that was copied from a call of curl is not asked below itself."""
    with pytest.raises(UsageError, match=f"leave out '{tail}'"):
        open_runtime(f"http://localhost:8000/v1{tail}")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://h:x/v1"])
def test_address_that_is_none_is_refused(url: str) -> None:
    """At once, with the value."""
    with pytest.raises(UsageError, match=url):
        OpenAIRuntime(url)


def test_open_runtime_explains_its_forms() -> None:
    """An address is served over HTTP, a vllm: path in process, anything else is explained."""
    assert isinstance(open_runtime("http://localhost:8000"), OpenAIRuntime)
    assert repr(open_runtime("vllm:/no/such")) == "EngineRuntime('/no/such')"
    with pytest.raises(UsageError, match=r"'gpt-4' is neither.*http://.*vllm:"):
        open_runtime("gpt-4")


async def test_half_a_character_on_a_page_does_not_break_the_request(wire: Any) -> None:
    """A lone surrogate, which UTF-8 cannot carry, is sent as a question mark."""
    wire.answers = [good]
    runtime = OpenAIRuntime(wire.url)
    await read(runtime, ModelRequest((Message("user", "torn \ud83d, whole \U0001f600"),)))
    (request,) = wire.requests
    assert request.body["messages"][0]["content"] == "torn ?, whole \U0001f600"
    await runtime.aclose()


ROW = Row("group", "Alice.1", (1, 2, 3), 2, size=1, max_tokens=4, layout="contiguous")


async def hang_up(request: Any) -> None:
    """The server has read the request, and goes."""


@pytest.mark.parametrize(
    "answer", [hang_up, refuse("503 Service Unavailable", "retry-after: 0"), refuse("502 Bad")]
)
async def test_a_row_is_not_sent_again_where_the_server_may_have_it(wire: Any, answer: Any) -> None:
    """It would be refused for its name, or be there twice."""
    wire.answers = [answer, good]
    runtime = OpenAIRuntime(wire.url)
    with pytest.raises(ModelServerError):
        _ = [piece async for piece in runtime.rows().write(ROW)]
    assert len(wire.requests) == 1
    await runtime.aclose()


async def test_a_row_that_was_refused_for_too_many_requests_is_sent_again(wire: Any) -> None:
    """The server has not taken it."""
    wire.answers = [refuse("429 Too Many Requests", "retry-after: 0"), good]
    runtime = OpenAIRuntime(wire.url)
    items = [piece async for piece in runtime.rows().write(ROW)]
    assert items == ["Hel", "lo", Usage(12, 2, 8, calls=1)]
    await runtime.aclose()


async def test_closing_a_row_hangs_up_before_it_returns(wire: Any) -> None:
    """The server stops writing then, not when Python happens to look."""

    async def endless(request: Any) -> None:
        await request.head()
        await request.chunk("x")
        await request.gone.wait()

    wire.answers = [endless]
    runtime = OpenAIRuntime(wire.url)
    pieces = runtime.rows().write(ROW)
    assert await anext(pieces) == "x"
    await pieces.aclose()
    await asyncio.wait_for(wire.requests[0].gone.wait(), 20)
    await runtime.aclose()


@pytest.mark.parametrize(
    ("door", "why"),
    [
        (None, "serve --hogwild"),
        (("401 Unauthorized", ""), "serve --hogwild"),
        (("200 OK", '{"detail": "welcome"}'), "serve --hogwild"),
        (("200 OK", '{"format": 2}'), "speaks format 2"),
        (("200 OK", '{"format": 1, "layouts": []}'), ""),
    ],
)
async def test_a_server_shares_only_if_its_door_says_so(wire: Any, door: Any, why: str) -> None:
    """In our words: whatever else a gateway answers there is no plugin."""
    wire.door = door
    runtime = OpenAIRuntime(wire.url)
    said = await runtime.rows().cannot_share()
    assert why in said
    assert bool(said) is bool(why)
    await runtime.aclose()
