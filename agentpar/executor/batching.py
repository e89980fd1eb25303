"""Calls of one tool that are ready together go as one: the collector behind ``Tool.batch``.

Nothing waits for company. What calls are made in one turn of the event loop goes together, and
that is what the machine wished for in one step. Each call keeps its own coroutine, and with that
its timeout, its attempts and its end; only what goes over the wire is shared. It must never know
which calls are ready or why, and starts nothing by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from agentpar.errors import BackendError
from agentpar.tools.base import Tool
from agentpar.tools.behind import leave_behind
from agentpar.tools.call import CurrentCall, enter_calls, entered_calls

Start = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None] | None]
"""Starts a coroutine; None where nothing may start any more."""


class _Alone:
    """The reply to a call that no other was ready with: it is made by itself."""


_ALONE = _Alone()


@dataclass(slots=True, eq=False)
class _Member:
    """A call that waits for its part of a batch: a value, an exception, or `_ALONE`."""

    arguments: dict[str, Any]
    calls: tuple[CurrentCall, ...]
    reply: asyncio.Future[Any]
    batch: _Batch | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    members: Sequence[_Member]
    work: asyncio.Task[None] | None = None


class Batches:
    """Those of one run. ``start`` is how a batch comes to run beside the calls that share it."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._waiting: dict[str, list[_Member]] = {}

    async def call(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        """What ``tool`` returns for ``arguments``, or raises, asked beside those calls of it that
        are made in the same turn of the loop.

        A call that is cancelled leaves its batch, which goes on for the others and is left
        behind; the last one cancels it, and ends when it has ended.
        """
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(tool.name)
        if waiting is None:
            waiting = self._waiting[tool.name] = []
            loop.call_soon(self._send, tool)
        member = _Member(arguments, entered_calls(), loop.create_future())
        waiting.append(member)
        try:
            reply = await member.reply
        except asyncio.CancelledError:
            await self._leave(member)
            raise
        if reply is _ALONE:
            return await tool.call(**arguments)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def _send(self, tool: Tool) -> None:
        members = [one for one in self._waiting.pop(tool.name) if not one.reply.done()]
        for first in range(0, len(members), tool.batch_size):
            batch = _Batch(members[first : first + tool.batch_size])
            if len(batch.members) == 1:
                batch.members[0].reply.set_result(_ALONE)
                continue
            for member in batch.members:
                member.batch = batch
            batch.work = self._start(self._perform(tool, batch.members))

    async def _leave(self, member: _Member) -> None:
        batch = member.batch
        if batch is None or batch.work is None:
            return
        if all(other.reply.done() for other in batch.members) and not batch.work.done():
            batch.work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([batch.work])
        if not batch.work.done():
            leave_behind(batch.work)

    async def _perform(self, tool: Tool, members: Sequence[_Member]) -> None:
        """Make the one call, and give each member its part."""
        assert tool.batch is not None
        enter_calls(*(call for member in members for call in member.calls))
        replies: Sequence[Any]
        try:
            replies = await _replies(tool, [member.arguments for member in members])
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            replies = [error] * len(members)
        for member, reply in zip(members, replies, strict=True):
            if not member.reply.done():
                member.reply.set_result(reply)


async def _replies(tool: Tool, arguments: list[dict[str, Any]]) -> Sequence[Any]:
    """One reply for each of ``arguments``. Raises what fails them all."""
    assert tool.batch is not None
    returned = await tool.batch(arguments)
    if not isinstance(returned, list | tuple):
        what = f"a {type(returned).__name__}"
    elif len(returned) == len(arguments):
        return returned
    else:
        what = f"{len(returned)} results"
    raise BackendError(
        f"the batch of {tool.name!r} returned {what} for {len(arguments)} calls: "
        "it must return a list with one result, or exception, for each, in order"
    )
