"""LangChain's own tools, run as tools of a plan."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import pytest
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, ToolException
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel, Field

from agentpar.errors import UsageError
from agentpar.tools import as_tool, toolbox
from agentpar.tools.langchain import from_langchain


class Place(BaseModel):
    name: str
    rank: int = Field(ge=0)


@langchain_tool
async def find(
    query: str,
    limit: int = 2,
    near: Place | None = None,
    user: Annotated[str, InjectedToolArg] = "nobody",
) -> list[str]:
    """Find things."""
    return [query, *([near.name] if near else [])] * limit


class Threaded(BaseTool):
    """A tool that only knows ``_run``."""

    name: str = "thread-name"
    description: str = "Where it runs."

    def _run(self, n: int) -> bool:
        return threading.current_thread() is threading.main_thread()


async def test_an_async_tool_keeps_its_name_schema_and_result() -> None:
    """The schema is closed and plain; injected arguments are hidden."""
    tool = as_tool(find)
    assert (tool.name, tool.description, tool.effect) == ("find", "Find things.", "read")
    assert list(tool.parameters["properties"]) == ["query", "limit", "near"]
    assert tool.parameters["additionalProperties"] is False
    assert tool.parameters["required"] == ["query"]
    args = tool.validate({"query": "a", "limit": "1", "near": {"name": "b", "rank": 1}})
    assert await tool.call(**args) == ["a", "b"]
    assert await tool.call(**tool.validate({"query": "a"})) == ["a", "a"]


async def test_a_sync_tool_runs_in_a_thread_under_a_name_that_a_plan_can_write() -> None:
    """The loop stays free; ``thread-name`` is ``thread_name``."""
    box = toolbox([Threaded()])
    assert await box["thread_name"].call(n=1) is False


TOGETHER = threading.Barrier(100)


@langchain_tool
def doze(n: int) -> bool:
    """Wait until a hundred are here."""
    TOGETHER.wait(20)
    return threading.current_thread().daemon


class Dozing(Threaded):
    """Says where it runs, once a hundred are here."""

    def _run(self, n: int) -> bool:
        TOGETHER.wait(20)
        return threading.current_thread().daemon


@pytest.mark.parametrize("made", [doze, Dozing()], ids=["a function", "a class"])
async def test_sync_tools_do_not_queue_for_the_few_threads_of_asyncio(made: BaseTool) -> None:
    """A hundred wait for each other; asyncio's own threads are 32 at most."""
    call = as_tool(made).call
    assert all(await asyncio.gather(*(call(n=n) for n in range(100))))


async def test_a_tool_may_bring_a_plain_json_schema() -> None:
    """As tools from MCP and OpenAPI do."""

    async def run(**args: Any) -> Any:
        return args

    made = StructuredTool(
        name="raw",
        description="Echo.",
        args_schema={
            "type": "object",
            "properties": {
                "n": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["n"],
        },
        coroutine=run,
    )
    tool = from_langchain(made, effect="write")
    assert tool.effect == "write"
    assert await tool.call(**tool.validate({"n": "3", "tags": ["x"]})) == {"n": 3, "tags": ["x"]}
    with pytest.raises(UsageError, match=r"raw: argument 'tags\[1\]' must be a string, got 2"):
        tool.validate({"n": 3, "tags": ["x", 2]})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"query": 3}, "find: argument 'query' must be a string, got 3"),
        ({"limit": 3}, "find: argument 'query' is missing"),
        ({"query": "a", "user": "root"}, "find: argument 'user' is not known"),
        (
            {"query": "a", "near": {"name": "b", "rank": -1}},
            "find: argument 'near.rank' must be greater than or equal to 0, got -1",
        ),
    ],
)
def test_wrong_arguments_are_named_before_the_call(args: dict[str, Any], message: str) -> None:
    """An injected argument can never be given by a plan."""
    with pytest.raises(UsageError, match=message):
        as_tool(find).validate(args)


async def test_an_error_of_the_tool_comes_through() -> None:
    """The executor turns it into data; this file must not hide it."""

    @langchain_tool
    def broken(n: int) -> str:
        """Never works."""
        raise ToolException("the shop is closed")

    with pytest.raises(ToolException, match="the shop is closed"):
        await as_tool(broken).call(n=1)


def test_something_else_is_refused() -> None:
    """With its value in the message."""
    with pytest.raises(UsageError, match="'search' is not a LangChain tool"):
        from_langchain("search")
