"""The scripted runtime, which users' tests rely on."""

from __future__ import annotations

import pytest

from agentpar.errors import ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.runtime.scripted import ScriptedRuntime

ASK = ModelRequest((Message("user", "three little words"),))


async def test_texts_come_in_order_and_in_pieces() -> None:
    """Each call takes the next text; usage counts words and comes last."""
    runtime = ScriptedRuntime(["one two", "three"], chunk=4)
    assert isinstance(runtime, Runtime)
    assert [item async for item in runtime.stream(ASK)] == ["one ", "two", Usage(3, 2, calls=1)]
    assert [item async for item in runtime.stream(ASK)] == ["thre", "e", Usage(3, 1, calls=1)]
    assert runtime.requests == [ASK, ASK]


async def test_text_ends_before_a_stop_string() -> None:
    """At the first of them, as on a real server; usage counts what was written."""
    request = ModelRequest(ASK.messages, stop=("\njoin()", "END"))
    runtime = ScriptedRuntime(["1. a()\njoin()\nand more END", "all of it"], chunk=64)
    assert [i async for i in runtime.stream(request)] == ["1. a()", Usage(3, 2, calls=1)]
    assert [i async for i in runtime.stream(request)] == ["all of it", Usage(3, 3, calls=1)]


async def test_empty_text_is_usage_alone() -> None:
    """A model may say nothing."""
    assert [i async for i in ScriptedRuntime([""]).stream(ASK)] == [Usage(3, 0, calls=1)]


async def test_end_of_the_script_is_explained() -> None:
    """The message says how many texts there were."""
    runtime = ScriptedRuntime(["one"])
    await anext(runtime.stream(ASK))
    with pytest.raises(UsageError, match="the script has 1 texts"):
        await anext(runtime.stream(ASK))


async def test_exception_in_the_script_is_raised() -> None:
    """A broken server is scripted like any other answer, and the script goes on after it."""
    runtime = ScriptedRuntime([ModelServerError("gone"), "back"])
    with pytest.raises(ModelServerError, match="gone"):
        await anext(runtime.stream(ASK))
    assert await anext(runtime.stream(ASK)) == "back"


async def test_capabilities_are_as_told() -> None:
    """None by default."""
    assert await ScriptedRuntime([]).capabilities() == frozenset()
    told = ScriptedRuntime([], capabilities=["grammar"])
    assert await told.capabilities() == {"grammar"}


def test_one_string_is_no_script() -> None:
    """A forgotten pair of brackets would otherwise give one letter for each call."""
    with pytest.raises(UsageError, match="give a list of texts"):
        ScriptedRuntime("1. a()")
