"""A small MCP server for the tests: over stdio, or over HTTP on the port that is given."""

import asyncio
import os
import sys
from typing import TypedDict

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent, ToolAnnotations

server = MCPServer("tests")
READ = ToolAnnotations(read_only_hint=True)


class City(TypedDict):
    name: str
    people: int


@server.tool(annotations=READ)
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="find-city", annotations=READ)
def find_city(name: str) -> City:
    """Find a city."""
    return {"name": name, "people": 7}


@server.tool(structured_output=False)
def look() -> list[TextContent | ImageContent]:
    """Text, then a picture."""
    return [
        TextContent(type="text", text="a tower"),
        ImageContent(type="image", data="", mime_type="image/png"),
        TextContent(type="text", text="a bridge"),
    ]


@server.tool(annotations=ToolAnnotations(read_only_hint=False, open_world_hint=True))
def post(text: str) -> str:
    """Tell the world."""
    return f"posted {text}"


@server.tool(annotations=READ)
def fail(city: str) -> str:
    """Always fails."""
    raise ToolError(f"no such city: {city}")


@server.tool(annotations=READ)
def pid() -> int:
    """The server's process."""
    return os.getpid()


@server.tool(annotations=READ)
async def sleep() -> str:
    """Longer than any test waits."""
    await asyncio.sleep(60)
    return "late"


def fall_over() -> str:
    """End the process in the middle of the call."""
    print("out of cheese", file=sys.stderr, flush=True)
    os._exit(3)


server.tool(name="die_reading", annotations=READ)(fall_over)
server.tool(name="die_writing")(fall_over)

if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
