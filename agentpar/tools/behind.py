"""What goes on behind a call that was cancelled: a thread that nothing can stop, a request that
other calls share.

Whoever stops waiting for such work leaves it here, so that its place is not taken for free. It
must never know who asks. Nothing here is touched while no call is cancelled.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

_behind: WeakKeyDictionary[asyncio.Task[Any], list[asyncio.Future[Any]]] = WeakKeyDictionary()


def leave_behind(work: asyncio.Future[Any]) -> None:
    """``work`` goes on although the current task waits for it no more."""
    if (task := asyncio.current_task()) is not None:
        _behind.setdefault(task, []).append(work)


def left_behind(task: asyncio.Task[Any] | None) -> asyncio.Future[Any] | None:
    """Something that ``task`` has left behind and that has not ended; None where all has."""
    works = _behind.get(task, ()) if task is not None else ()
    return next((work for work in works if not work.done()), None)
