"""Whether a server wants to be left alone, for how long, and whether to try again at all."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

MAX_RETRY_AFTER = 60.0
"""Seconds; a server that asks for more is given up on at once."""


class Refused(Exception):
    """A server's clear no: an error status (0: it is none of HTTP's), and how many seconds it
    asked to be left alone."""

    def __init__(self, text: str, *, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


def is_worth_another_try(error: BaseException) -> bool:
    """Whether a request that failed with ``error`` may go well if it is sent again."""
    match error:
        case Refused(status=429 | 500 | 502 | 503 | 504, retry_after=wait):
            return wait is None or wait <= MAX_RETRY_AFTER
        case httpx.ReadTimeout():
            return False  # the server has the request: a second one doubles its work
        case _:
            return isinstance(error, httpx.TransportError)


def asks_for_less(status: int | None, wait: float | None) -> bool:
    """Whether an answer with this HTTP status says "too many requests", or that the server is
    overloaded and for how many seconds to ``wait``."""
    return status == 429 or (status == 503 and wait is not None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's ``Retry-After`` asks for, None where it says nothing readable.

    ``headers`` are looked up in lower case. The header is a number of seconds or an HTTP
    date; a date is held against the answer's own ``Date`` where there is one, so that the
    two clocks need not agree (RFC 9110, 10.2.3).
    """
    asked = headers.get("retry-after", "").strip()
    try:
        seconds = float(asked)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        now = _unix_time(headers["date"]) if "date" in headers else time.time()
        return max(0.0, _unix_time(asked) - now)
    except (ValueError, OverflowError):
        return None


def _unix_time(date: str) -> float:
    """Seconds since 1970 at an HTTP date: GMT, also where the old form does not say so."""
    when = parsedate_to_datetime(date)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
