"""Secrets become ``***`` wherever they turn up, however a text is cut or a value is nested."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar import Agent, McpServer, ScriptedRuntime, UsageError, tool
from agentpar.errors import BackendError
from agentpar.events import Answered, ModelUsed, RunFinished, Usage
from agentpar.plan import Failed, Ok, Task
from agentpar.ports import Message, ModelRequest
from agentpar.redact import (
    HIDDEN,
    Redactor,
    credentials,
    public_url,
    url_credentials,
)
from agentpar.runtime import open_runtime
from agentpar.runtime.redacted import RedactedRuntime

# Few letters, so that secrets overlap, contain each other and nearly match.
SECRETS = st.lists(st.text("ab1", min_size=8, max_size=12), min_size=1, max_size=4)
TEXTS = st.lists(st.one_of(st.text("ab1 "), st.sampled_from(["aaaaaaaa", "abab1abab"])))


def leaks(text: str, secrets: Sequence[str]) -> list[str]:
    return [secret for secret in secrets if secret in text]


@given(SECRETS, TEXTS, st.data())
def test_no_secret_is_left_in_a_text(secrets: list[str], parts: list[str], data: Any) -> None:
    """Wherever it stands, whatever stands beside it."""
    text = "".join([*parts, data.draw(st.sampled_from(secrets)), *reversed(parts)])
    hidden = Redactor(secrets).text(text)
    assert not leaks(hidden, secrets)
    assert HIDDEN in hidden


@given(SECRETS, TEXTS, st.data())
def test_pieces_say_what_the_whole_says(secrets: list[str], parts: list[str], data: Any) -> None:
    """A stream cut anywhere comes out as the whole text does, and no piece has a secret."""
    text = "".join([*parts, data.draw(st.sampled_from(secrets)), *reversed(parts)])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    redactor = Redactor(secrets)
    stream = redactor.stream()
    said = [stream.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said.append(stream.close())
    assert "".join(said) == redactor.text(text)
    assert not leaks("".join(said), secrets)


@given(SECRETS, TEXTS, st.data())
def test_parts_of_a_text_are_hidden_as_the_whole_is(
    secrets: list[str], words: list[str], data: Any
) -> None:
    """However they are cut; a part without any of a secret stays as it is."""
    secret = data.draw(st.sampled_from(secrets))
    text = "".join([*words, secret, *reversed(words)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    redactor = Redactor(secrets)
    assert "".join(redactor.parts(parts)) == redactor.text(text)
    assert redactor.parts(["zz", secret, "z"]) == ["zz", HIDDEN, "z"]


@given(st.text("ab1 ", max_size=40))
def test_what_has_no_secret_comes_through_at_once_or_later(text: str) -> None:
    """Nothing is lost and nothing is changed."""
    stream = Redactor(["zzzzzzzz"]).stream()
    assert "".join(stream.feed(letter) for letter in text) + stream.close() == text


DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text("ab1", max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("ab1", max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(SECRETS, DATA, st.data())
def test_no_secret_is_left_in_data(secrets: list[str], value: Any, data: Any) -> None:
    """In lists, mappings and keys; the shape stays, and two keys stay two."""
    secret = data.draw(st.sampled_from(secrets))
    value = {"in": [value, {f"a {secret}": 1, f"b{secret}": f"<{secret}>"}, (secret,)], "n": 3}
    hidden = Redactor(secrets).data(value)
    assert not leaks(json.dumps(hidden), secrets)
    assert hidden["n"] == 3
    assert len(hidden["in"]) == 3
    assert len(hidden["in"][1]) == 2


@given(DATA)
def test_data_without_secrets_is_as_it_was(value: Any) -> None:
    """Equal, and of the same types."""
    assert Redactor(["zzzzzzzz"]).data(value) == value


@pytest.mark.parametrize("form", ["%s", "Bearer %s", '{"key": "%s"}', "'%s'", "?k=%s&x=1"])
def test_a_secret_is_found_in_other_spellings(form: str) -> None:
    """As URLs, JSON, HTML and Python's messages write it."""
    import html
    from urllib.parse import quote, quote_plus

    secret = 'p4ss "wörd"/&+'
    redactor = Redactor([secret])
    for spelling in (
        secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1],
        html.escape(secret), repr(secret)[1:-1],
    ):  # fmt: skip
        assert redactor.text(form % spelling) == form % HIDDEN


def test_short_values_are_left_alone() -> None:
    """The keys that local servers are given (EMPTY, none) are ordinary words."""
    assert not Redactor(["EMPTY", "none", ""])
    assert Redactor(["EMPTY"]).text("The box is EMPTY.") == "The box is EMPTY."
    with pytest.raises(UsageError, match="secrets must have at least 8 characters"):
        Agent(runtime=ScriptedRuntime([]), secrets=["short"])


def test_words_of_our_own_are_no_secrets() -> None:
    """A key that reads like a status changes no status."""
    redactor = Redactor(["cancelled", "arguments"])
    assert redactor.data(RunFinished("cancelled", "was cancelled")) == RunFinished(
        "cancelled", "was ***"
    )
    assert redactor.data(Failed("bad arguments", "arguments")) == Failed("bad ***", "arguments")
    used = ModelUsed("join", 1, Usage(1, 2), 0.1, 0.2, 0.3)
    assert redactor.data(used) is used


def test_values_of_ours_are_looked_into() -> None:
    """Tasks, outcomes, answers."""
    redactor = Redactor(["s3cr3t-value"])
    task = Task.of(1, "f", "thinks of s3cr3t-value", x=["s3cr3t-value"])
    assert redactor.data(task) == Task.of(1, "f", "thinks of ***", x=["***"])
    assert redactor.data(Ok({"k": "s3cr3t-value"})) == Ok({"k": "***"})
    assert redactor.data(Answered(1, "s3cr3t-value")) == Answered(1, "***")


# ── Where secrets are ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "secrets"),
    [
        ({"Authorization": "Bearer abc def"}, {"Bearer abc def", "abc def"}),
        ({"X-API-Key": "hello"}, {"hello"}),
        ({"STRIPE": "sk_live_51Habcdef9876"}, {"sk_live_51Habcdef9876"}),
        ({"DB": "postgres://u:hunter22@db/x"}, {"hunter22", "dTpodW50ZXIyMg=="}),
        ({"ROOT": "/home/me/project2", "LANG": "en_US.UTF-8", "LOG_LEVEL": "debug"}, set()),
        ({"Accept": "application/json", "MODEL_URL": "http://localhost:8000/v1"}, set()),
    ],
)
def test_what_counts_as_a_secret(fields: dict[str, str], secrets: set[str]) -> None:
    """By its name, or as one long word of letters and digits; no path, type or plain word."""
    assert set(credentials(fields)) == secrets


def test_an_address_is_shown_without_its_secrets() -> None:
    """User, password and values of the query; host and path stay."""
    url = "https://me:hunter22@example.org:8443/mcp?tavilyApiKey=tvly-12345678&limit=5"
    assert public_url(url) == "https://example.org:8443/mcp?tavilyApiKey=***&limit=***"
    assert {"hunter22", "tvly-12345678"} < set(url_credentials(url))
    assert set(url_credentials("https://t0ken-in-front@example.org/")) == {"t0ken-in-front"}
    assert not list(url_credentials("no URL: at all"))
    assert public_url("http://[::1") == HIDDEN
    assert public_url("http://h/?sk-12345678&a=1") == "http://h/?***&a=***"
    twice = "http://h/?key=key-one-11&key=key-two-22"
    assert set(url_credentials(twice)) == {"key-one-11", "key-two-22"}


def test_a_password_is_hidden_as_the_server_has_it() -> None:
    """An address spells it with escapes, and a server that quotes it does not."""
    found = set(url_credentials("https://me:hunter2%40home@example.org/"))
    header = base64.b64encode(b"me:hunter2@home").decode()
    assert {"hunter2%40home", "hunter2@home", header} == found


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/v1?api_key=s3cr3t-value",
        "http://127.0.0.1:9/v1#s3cr3t-value",
        "htp://me:s3cr3t-value@127.0.0.1:9/v1",
        "http://me:s3cr3t-value@:9x/v1",
        "https://me:s3cr3t-value@/v1",
    ],
)
def test_a_bad_model_address_is_told_without_its_secrets(url: str) -> None:
    """A mistake in it must not put the password on the screen."""
    with pytest.raises(UsageError) as caught:
        open_runtime(url)
    assert "s3cr3t-value" not in str(caught.value)


async def test_a_model_server_that_is_away_is_told_without_the_password() -> None:
    """Nor in what httpx itself would log."""
    runtime = open_runtime("http://me:s3cr3t-value@127.0.0.1:9/v1", model_id="m")
    async with Agent(runtime=runtime) as agent:
        run = await _failed(agent)
    assert "s3cr3t-value" not in run


async def _failed(agent: Agent) -> str:
    try:
        await agent.ask("?")
    except BackendError as error:
        return str(error)
    raise AssertionError("the run has an answer")


async def test_an_mcp_server_that_cannot_be_reached_is_told_without_its_secrets() -> None:
    """Neither headers, nor the query of its address, nor what its process wrote at last."""
    away = McpServer(
        url="http://127.0.0.1:9/mcp?key=s3cr3t-value",
        headers={"Authorization": "Bearer s3cr3t-other"},
        timeout=5.0,
    )
    shell = McpServer(
        command=["sh", "-c", "echo key $TOKEN >&2; exit 1", "--key", "s3cr3t-value"],
        env={"TOKEN": "s3cr3t-value"},
        timeout=5.0,
    )
    for server in (away, shell):
        with pytest.raises(BackendError) as caught:
            await server.start()
        text = f"{server} {caught.value} {caught.value.__cause__}"
        assert "s3cr3t" not in text
        assert HIDDEN in text


# ── In a run ─────────────────────────────────────────────────────────────────────

KEY = "s3cr3t-value-4711"


@tool
async def echo(text: str) -> str:
    """Gives back what it was given, and the key it works with."""
    return f"{text} {KEY}"


async def test_the_model_never_reads_a_secret_that_a_tool_gave_back() -> None:
    """Hidden before the result becomes a fact: later calls and the joiner see ``***``."""
    plan = '1. echo(text="a")\n2. echo(text=$1)\njoin()'
    runtime = ScriptedRuntime([plan, f"It is {KEY} [2].\nAnswer: {KEY}"], chunk=3)
    async with (
        Agent([echo], runtime=runtime, secrets=[KEY]) as agent,
        agent.run(f"What is {KEY}?") as run,
    ):
        told = [event async for event in run]
    assert KEY not in repr(told)
    assert run.answer.outcomes[2] == Ok("a *** ***")
    assert run.answer.conclusion == "***"
    assert KEY not in repr(runtime.requests)


@pytest.mark.parametrize("where", ["memory", "journal"])
def test_the_password_of_a_database_is_a_secret(where: str) -> None:
    """A bank's and a journal's, as it is written and as it is meant; a user's name is none."""
    pytest.importorskip("psycopg")
    url = "postgresql://postgres:hunter2%20hunter2@localhost/db"
    options: dict[str, Any] = {where: url}
    redactor = Agent([echo], runtime=ScriptedRuntime([]), **options)._redactor()
    assert redactor.text(f"postgres hunter2 hunter2 {url}") == (
        "postgres *** postgresql://postgres:***@localhost/db"
    )


async def test_a_model_reads_and_writes_no_secret() -> None:
    """Its request is without them, and its text, before a parser or a check reads it."""
    inner = ScriptedRuntime([f"The key is {KEY}, and s3cr"], chunk=1)
    request = ModelRequest((Message("user", f"Use {KEY}."),))
    pieces = [p async for p in RedactedRuntime(inner, Redactor([KEY])).stream(request)]
    assert (
        "".join(piece for piece in pieces if isinstance(piece, str)) == "The key is ***, and s3cr"
    )
    assert isinstance(pieces[-1], Usage)
    assert inner.requests[0].messages == (Message("user", "Use ***."),)


async def test_a_graph_goes_on_where_its_question_held_a_secret() -> None:
    """The record has the question without it; the same question is still the same run."""
    pytest.importorskip("langgraph")
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.types import Command

    writes: list[str] = []

    @tool(effect="write")
    async def send(text: str) -> str:
        """Sends it."""
        writes.append(text)
        return "sent"

    runtime = ScriptedRuntime(['1. send(text="a")\njoin()', "Sent [1].\nAnswer: sent"])
    async with Agent([send], runtime=runtime, secrets=[KEY]) as agent:
        graph = agent.as_graph(InMemorySaver())
        where = {"configurable": {"thread_id": "1"}}
        paused = await graph.ainvoke({"question": f"Send {KEY}?"}, where)
        assert paused["pending"]
        done = await graph.ainvoke(Command(resume=True), where)
    assert done["text"] == "Sent [1].\nAnswer: sent"
    assert writes == ["a"]
    assert KEY not in repr(done["events"])
