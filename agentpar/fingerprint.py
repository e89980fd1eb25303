"""One text, and one hash, for values that are equal, on every machine and in every process.

Pure. It knows nothing of what the values mean. For what is looked at and compared: a record's
commands, an approval. It takes any value, so that nothing is too odd to be recorded. What a
result is kept under is a stricter name, `agentpar.tools.call.call_key`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ORDINARY = 63
"""Bits of an integer that any reader of JSON has; Python writes no decimals of a huge one."""


def canonical(value: Any) -> str:
    """``value`` as JSON on one line, keys sorted. What JSON does not know stands there as its
    ``repr``, an integer of more than 63 bits in hexadecimal."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, default=repr)


def fingerprint(value: Any) -> str:
    """SHA-256 of the `canonical` text, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    match value:
        case bool():
            return value
        case int() if value.bit_length() > _ORDINARY:
            return hex(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
