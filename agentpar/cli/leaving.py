"""Runs a command's coroutine and gets out again, whatever a tool's thread is stuck in.

A thread cannot be cancelled, and Python waits for every thread when it ends. Someone's
function that never returns must not keep the terminal.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
PATIENCE = 3.0  # seconds for threads to tidy up (a cancelled download removes its folder)


class _Unwaiting(ThreadPoolExecutor):
    """A pool that asyncio can shut down without waiting for what runs in it."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`; Ctrl-C cancels ``work``, waits for its clean-up, then raises."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(_Unwaiting(thread_name_prefix="agentpar"))
        return runner.run(work)


def leave(code: int | str | None) -> NoReturn:
    """End the process with ``code``, at the latest `PATIENCE` seconds from now."""
    deadline = time.monotonic() + PATIENCE
    stuck = False
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            stuck = stuck or thread.is_alive()
    if stuck:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)
