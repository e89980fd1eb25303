"""Blocking code beside the event loop, each call in a thread of its own.

asyncio's default executor has few threads, and both the loop and the interpreter wait for
them at the end: a few calls that hang would stop every other sync tool, and then the exit.
A daemon thread per call holds up nobody. How many calls run at once is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from agentpar.tools.behind import leave_behind

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``fn`` in a new daemon thread that sees the caller's context variables.

    Cancelling the wait does not stop the thread (nothing can): it is left behind (see
    `agentpar.tools.behind`), and what it brings later is dropped. An exception of ``fn`` is
    raised here; one that would end more than this call, such as `SystemExit`, or that no
    coroutine can raise, `StopIteration`, comes as the cause of a `RuntimeError`.
    """
    loop = asyncio.get_running_loop()
    if getattr(loop, "virtual_time", False):  # a thread beside a clock that jumps comes too late
        return contextvars.copy_context().run(fn, *args, **kwargs)
    future: asyncio.Future[T] = loop.create_future()
    ended: asyncio.Future[None] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            settle = partial(future.set_result, context.run(fn, *args, **kwargs))
        except BaseException as error:
            settle = partial(future.set_exception, _bearable(error))

        def end() -> None:
            ended.set_result(None)
            if not future.done():  # else it was cancelled
                settle()

        with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody waiting
            loop.call_soon_threadsafe(end)

    name = f"in_thread {getattr(fn, '__name__', type(fn).__name__)}"
    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        if not ended.done():
            leave_behind(ended)
        raise


def _bearable(error: BaseException) -> Exception:
    """``error`` as an exception that ends the call, not the loop or the caller's task."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the call raised {error!r}")
    wrapped.__cause__ = error
    return wrapped
