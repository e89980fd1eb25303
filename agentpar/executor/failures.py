"""What went wrong with a call, as data: which kind of failure an exception is.

Pure. It knows the shapes that errors have in the field (our own, httpx's, anything with a
``status``), not who raised them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentpar.errors import AgentparError, UsageError
from agentpar.net.retry import asks_for_less, retry_after
from agentpar.plan import Failed


def failure_of(error: BaseException) -> tuple[Failed, float | None]:
    """The failure that ``error`` means, and for how many seconds the far side asked for peace.

    A status of 429, or of 503 with a ``Retry-After``, is ``throttled``; a `UsageError` is a
    mistake in the arguments, which no second attempt mends.
    """
    status, wait = _status(error)
    if asks_for_less(status, wait):
        return Failed(described(error), "throttled"), wait
    if isinstance(error, UsageError):
        return Failed(described(error), "arguments"), None
    return Failed(described(error)), None


def described(error: BaseException) -> str:
    """Our own errors speak for themselves; others are told with their type."""
    if isinstance(error, AgentparError):
        return str(error)
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _status(error: BaseException) -> tuple[int | None, float | None]:
    """The HTTP status that an error carries, and its ``Retry-After`` in seconds."""
    response = getattr(error, "response", None)
    bearer: Any = error if response is None else response
    status = getattr(bearer, "status_code", getattr(bearer, "status", None))
    headers = getattr(bearer, "headers", None)
    wait = getattr(error, "retry_after", None)
    if wait is None and isinstance(headers, Mapping):
        wait = retry_after({str(name).lower(): str(headers[name]) for name in headers})
    if not isinstance(wait, int | float) or isinstance(wait, bool) or not wait >= 0:
        wait = None
    return (status if isinstance(status, int) else None), wait
