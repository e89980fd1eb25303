"""An entry as it lies in a row, and the seal by which a row is known to be ours.

Pure, and the same for every database. It must never know SQL, or where the key of a seal lies.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentpar.errors import BankError, UsageError
from agentpar.memory.entry import Entry, Producer

COLUMNS = "seq, id, namespace, key, likeness, vector, body, created, expires, revoked, seal"
"""Of table ``entries``, as `Row.of` reads them."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of table ``entries``. ``body`` is JSON, ``vector`` the bytes of float32 numbers."""

    seq: int
    id: str
    namespace: str
    key: str
    likeness: str
    vector: bytes | None
    body: str
    created: float
    expires: float | None
    revoked: bool
    seal: str

    @classmethod
    def of(cls, values: Sequence[Any]) -> Row:
        seq, id, namespace, key, likeness, vector, body, created, expires, revoked, seal = values
        return cls(
            seq, id, namespace, key, likeness, vector, body, created, expires, bool(revoked), seal
        )

    def stands(self, now: float) -> bool:
        return not self.revoked and (self.expires is None or self.expires > now)

    def sealed(self, seals: Seals) -> str:
        """The seal over all that it says; ``seq`` is the database's own."""
        return seals.of(
            "entry",
            self.id,
            self.namespace,
            self.key,
            self.likeness,
            self.vector or b"",
            self.body,
            repr(self.created),
            repr(self.expires),
            str(self.revoked),
        )

    def is_ours(self, seals: Seals) -> bool:
        return seals.hold(self.seal, self.sealed(seals))

    def entry(self) -> Entry:
        body = json.loads(self.body)
        return Entry(
            self.id,
            plain(self.namespace),
            self.key,
            self.likeness,
            body["tool"],
            body["args"],
            body["question"],
            body["value"],
            tuple(body["sources"]),
            Producer(*body["producer"]),
            tuple(body["parents"]),
            body["literal"],
            body["seconds"],
            body["tokens"],
            body["cost_usd"],
            self.created,
            self.expires,
        )


def body_of(entry: Entry) -> str:
    """What of ``entry`` has no column of its own. Raises `UsageError` where it is no JSON data."""
    producer = entry.producer
    body = {
        "tool": entry.tool,
        "args": dict(entry.args),
        "question": entry.question,
        "value": entry.value,
        "sources": entry.sources,
        "producer": [producer.run_id, producer.task_id, producer.team],
        "parents": entry.parents,
        "literal": entry.literal,
        "seconds": entry.seconds,
        "tokens": entry.tokens,
        "cost_usd": entry.cost_usd,
    }
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the result of {entry.question!r} is no JSON data, so no bank can keep it: {error}"
        ) from None
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no database takes
        return json.dumps(body, separators=(",", ":"))
    return text


def literal(body: str) -> str:
    """``body`` of an entry whose arguments were written by a planner that had read nothing."""
    return json.dumps({**json.loads(body), "literal": True}, separators=(",", ":"))


def escaped(text: str) -> str:
    """``text`` in ASCII, as any database takes it. What began with another text still does."""
    return json.dumps(text)[1:-1]


def plain(text: str) -> str:
    """What was `escaped`."""
    return str(json.loads(f'"{text}"'))


def packed(vector: Sequence[float] | None) -> bytes | None:
    """``vector`` as little-endian float32. Raises `UsageError` where a number is not finite."""
    if vector is None:
        return None
    numbers = array("f", vector)
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UsageError("an embedding is finite numbers, at least one; got one that is not")
    return little(numbers).tobytes()


def little(numbers: array[float]) -> array[float]:
    """``numbers`` in the order of bytes in which they lie in a row, or back from it."""
    if array("H", [1]).tobytes() != b"\x01\x00":
        numbers.byteswap()
    return numbers


def check_size(vector: bytes, dimension: int) -> None:
    """Raise `BankError` where the bank has vectors of another ``dimension`` (0: none yet)."""
    if dimension and len(vector) != 4 * dimension:
        raise BankError(
            f"the bank has embeddings of {dimension} numbers, and this one has {len(vector) // 4}: "
            "use the embedding that the bank was made with, or name another bank"
        )


class Seals:
    """HMAC-SHA256 under ``key`` over the parts of a row; without a key there are no seals."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = key

    def of(self, *parts: str | bytes) -> str:
        if self.key is None:
            return ""
        seal = hmac.new(self.key, digestmod=hashlib.sha256)
        for part in parts:
            data = part if isinstance(part, bytes) else part.encode()
            seal.update(len(data).to_bytes(8, "big"))
            seal.update(data)
        return seal.hexdigest()

    def hold(self, seal: str, wanted: str) -> bool:
        return self.key is None or hmac.compare_digest(seal.encode(), wanted.encode())
