"""Opens groups: picks what the runtime can do.

*Rows* of one KV cache where it can share one (see `RowServer`), else a *log* that all workers
read again every few tokens. Which of them, and why, is `WorkerGroup.backend` and
`WorkerGroup.why`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from agentpar.errors import UsageError
from agentpar.ports import Message, Named, Runtime
from agentpar.redact import Redactor
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.runtime.hogwild.logsync import LogGroup
from agentpar.runtime.hogwild.rows import RowGroup, row_server
from agentpar.workers import Workers


@asynccontextmanager
async def open_group(
    runtime: Runtime,
    shared: str | Sequence[Message],
    workers: Sequence[str],
    settings: Workers | None = None,
    *,
    redactor: Redactor | None = None,
) -> AsyncGenerator[WorkerGroup, None]:
    """A group of ``workers`` on the task that ``shared`` states, at work.

    Of ``settings``, ``n`` is not looked at: it is as many as there are names. The backend "rows"
    raises `UsageError` where the runtime cannot share a cache, with the reason; "auto" then
    takes a log. ``redactor`` hides what ``runtime`` cannot, since it sees one request at a time:
    secrets of which a worker writes a part in each of two rounds.
    """
    messages = (Message("user", shared),) if isinstance(shared, str) else tuple(shared)
    settings = settings or Workers()
    why = ""
    group: WorkerGroup | None = None
    if settings.backend != "log":
        rows = row_server(runtime)
        if rows is None:
            named = runtime.provider if isinstance(runtime, Named) else type(runtime).__name__
            why = f"{named} has no cache that could be shared"
        elif not (why := await rows.cannot_share()):
            group = RowGroup(runtime, rows, messages, workers, settings)
        if why and settings.backend == "rows":
            raise UsageError(f"workers cannot share a cache here: {why}")
    if group is None:
        group = LogGroup(
            runtime, messages, workers, settings, why=why, redactor=redactor or Redactor()
        )
    async with group:
        yield group


class OpensGroups:
    """A `Runtime` by whose `group` workers are set to work."""

    def group(
        self: Runtime,
        shared: str | Sequence[Message],
        workers: Sequence[str],
        settings: Workers | None = None,
    ) -> AbstractAsyncContextManager[WorkerGroup]:
        """Workers on the task that ``shared`` states: see `open_group`."""
        return open_group(self, shared, workers, settings)
