"""A bank's database as a LangGraph store, for any LangGraph agent.

It behaves as LangGraph's own stores do, with what differs told in `BankStore`. It must never
embed more of a value than it was told to, and never change an entry of the bank, which it only
shows.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from agentpar.errors import MissingPackage, UsageError
from agentpar.memory import items as tables
from agentpar.memory.embed import open_embedder
from agentpar.memory.entry import Entry
from agentpar.memory.items_sqlite import SqliteItems
from agentpar.memory.store import open_store
from agentpar.tools.threads import in_thread

try:
    from langchain_core.embeddings import Embeddings
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        Item,
        ListNamespacesOp,
        PutOp,
        SearchItem,
        SearchOp,
        ensure_embeddings,
        get_text_at_path,
        tokenize_path,
        validate_op_namespace,
    )
except ImportError:
    raise MissingPackage("langgraph", extra="langgraph", purpose="BankStore") from None

__all__ = ["ENTRIES", "BankStore"]

ENTRIES = "agentpar"
"""The first label of the namespaces in which the bank's entries are seen."""

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")
_OURS = ("hashed", "wordllama", "http://", "https://")

Vector = list[float]
"""Of length 1."""


class BankStore(BaseStore):  # type: ignore[misc]  # langgraph is not read by the type checker
    """Items in a bank's database, under ``namespace`` and ``key``; the last write counts.

    ``url`` is ``"sqlite:///bank.db"`` or ``"postgresql://…"``. ``index`` is LangGraph's: ``embed``
    is one of its embeddings or functions, or one of ours (``"hashed"``, ``"wordllama"``, a server's
    address, an `Embedder`); ``fields`` are the paths that are embedded, and must be given:
    ``["$"]`` embeds whole values, with whatever secrets are in them. ``dims`` may be left out.
    ``ttl`` is LangGraph's `TTLConfig`, in minutes; what has expired is swept out by the next write
    or by `sweep_ttl`.

    The entries of the bank are seen below ``("agentpar",)``, each in its namespace, which dots part
    into labels, under its id. They cannot be written, and are found only where that label is
    named. With a query they are ranked by their questions. What they hold was read by tools: it is
    data, and nothing to obey.

    Differs from LangGraph's own stores where they differ from each other: without a query the
    latest item comes first (as in SqliteStore); items that have no vector follow those that have
    (InMemoryStore); a value that cannot be compared by size does not match (SqliteStore), and one
    that is absent is not equal to any (InMemoryStore); overwriting keeps ``created_at``.

    Raises `BankError` where the database is damaged, of another version or cannot be written, and
    `UsageError` for a value that is no JSON and for vectors of another size or another embedder
    than those in it.
    """

    supports_ttl = True

    def __init__(
        self,
        url: str,
        *,
        index: Mapping[str, Any] | None = None,
        ttl: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.ttl_config = dict(ttl) if ttl else None
        omit_expired = bool((ttl or {}).get("omit_expired"))
        self._lock = threading.Lock()  # over the bank, which is called from one thread at a time
        self._items: tables.Items
        if url.startswith(_POSTGRES):
            from agentpar.memory.items_postgres import PostgresItems

            self._bank = open_store(url)
            self._items = PostgresItems(url, omit_expired=omit_expired, clock=clock)
        else:
            path = _file(url)
            self._bank = open_store(f"{_SQLITE}{path}")
            self._items = SqliteItems(path, omit_expired=omit_expired, clock=clock)
        self._entry_vectors: dict[str, Vector] = {}  # by id: an entry never changes
        self._embeddings: Any = None
        self._fields: list[tuple[str, Any]] = []
        self._dims = 0
        self._space = ""
        self._agreed = False
        if index is not None:
            self._embeddings, self._space = _embeddings(index.get("embed"))
            self._fields = _fields(index.get("fields"))
            self._dims = index.get("dims") or 0
        try:
            self._bank.open()
            self._items.open()
            self._agree()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BankStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. What was put is there for the next one."""
        self._items.close()
        with self._lock:
            self._bank.close()

    def sweep_ttl(self) -> int:
        """Remove what has expired; how many items that were."""
        with self._items.batch(writes=True):
            return self._items.sweep()

    def batch(self, ops: Iterable[Any]) -> list[Any]:
        ops = _checked(ops)
        entries = self._entries(ops)
        queries, texts = self._to_embed(ops, entries)
        made = self._embeddings.embed_documents(texts) if texts else []
        near = [self._embeddings.embed_query(query) for query in queries]
        return self._done(ops, entries, self._units(queries, near), self._units(texts, made))

    async def abatch(self, ops: Iterable[Any]) -> list[Any]:
        ops = _checked(ops)
        entries = await in_thread(self._entries, ops)
        queries, texts = self._to_embed(ops, entries)
        made = await self._embeddings.aembed_documents(texts) if texts else []
        near = [await self._embeddings.aembed_query(query) for query in queries]
        units = self._units(queries, near), self._units(texts, made)
        return await in_thread(self._done, ops, entries, *units)

    def _entries(self, ops: Sequence[Any]) -> list[tables.Item]:
        """The bank's entries, the latest first, if an operation is about them."""
        if not any(map(_about_entries, ops)):
            return []
        with self._lock:
            found = list(self._bank.entries())
        return [_seen(entry) for entry in reversed(found)]

    def _to_embed(
        self, ops: Sequence[Any], entries: Sequence[tables.Item]
    ) -> tuple[list[str], list[str]]:
        """The queries and the texts of items, each once."""
        if self._embeddings is None:
            return [], []
        searches = [op for op in ops if isinstance(op, SearchOp) and (op.query or "").strip()]
        texts = [text for op in ops if isinstance(op, PutOp) for text in self._texts(op)]
        if any(map(_about_entries, searches)):
            new = (item for item in entries if item.key not in self._entry_vectors)
            texts += [item.value["question"] for item in new]
        return list(dict.fromkeys(op.query for op in searches)), list(dict.fromkeys(texts))

    def _texts(self, op: Any) -> list[str]:
        """What of an item is embedded; a text that is empty has no place among vectors."""
        if self._embeddings is None or op.value is None or op.index is False:
            return []
        paths = self._fields if op.index is None else _fields(op.index)
        texts = (text for _, path in paths for text in get_text_at_path(op.value, path))
        return [text for text in texts if text.strip()]

    def _done(
        self,
        ops: Sequence[Any],
        entries: Sequence[tables.Item],
        near: Mapping[str, Vector],
        made: Mapping[str, Vector],
    ) -> list[Any]:
        """Do all of it in one transaction: what is read is what stood there before what is put."""
        # Of two puts to one place the last counts, and the other never was.
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        ready = [(op, _json(op), [made[text] for text in self._texts(op)]) for op in puts.values()]
        for item in entries:
            if (vector := made.get(item.value["question"])) is not None:
                self._entry_vectors[item.key] = vector
        refreshes = any(getattr(op, "refresh_ttl", False) for op in ops)
        writes = bool(puts) or (refreshes and self._items.any_expires())
        with self._items.batch(writes=writes):
            self._agree(note=any(vectors for *_, vectors in ready))
            results = [
                self._shown_entries(op, entries, near)
                if _about_entries(op)
                else self._read(op, near, writes)
                for op in ops
            ]
            if puts:
                self._items.sweep()
            for op, value, vectors in ready:
                if op.value is None:
                    self._items.delete(op.namespace, op.key)
                else:
                    ttl = None if op.ttl is None else op.ttl * 60.0
                    self._items.put(op.namespace, op.key, value, vectors, ttl=ttl)
        return results

    def _read(self, op: Any, near: Mapping[str, Vector], writes: bool) -> Any:
        match op:
            case GetOp():
                item = self._items.get(op.namespace, op.key)
                if item is not None and op.refresh_ttl and writes:
                    self._items.touch([item])
                return None if item is None else _shown(Item, item)
            case SearchOp():
                found = self._items.search(
                    op.namespace_prefix,
                    op.filter,
                    near=near.get(op.query or ""),
                    limit=op.limit,
                    offset=op.offset,
                )
                if op.refresh_ttl and writes:
                    self._items.touch(found)
                return [_shown(partial(SearchItem, score=item.score), item) for item in found]
            case ListNamespacesOp():
                matches = (tables.Match(m.match_type, m.path) for m in op.match_conditions or ())
                names = self._items.namespaces(matches, op.max_depth)
                return names[op.offset : op.offset + op.limit]
            case _:
                return None

    def _shown_entries(
        self, op: Any, entries: Sequence[tables.Item], near: Mapping[str, Vector]
    ) -> Any:
        match op:
            case GetOp():
                there = (i for i in entries if (i.namespace, i.key) == (op.namespace, op.key))
                return next((_shown(Item, item) for item in there), None)
            case SearchOp():
                found = [
                    item
                    for item in entries
                    if item.namespace[: len(op.namespace_prefix)] == tuple(op.namespace_prefix)
                    and tables.matches(item.value, op.filter or {})
                ]
                if (wanted := near.get(op.query or "")) is not None:
                    found = [
                        replace(item, score=_product(wanted, self._entry_vectors[item.key]))
                        for item in found
                    ]
                    found.sort(key=lambda item: -(item.score or 0.0))
                page = found[op.offset : op.offset + op.limit]
                return [_shown(partial(SearchItem, score=item.score), item) for item in page]
            case _:
                conditions = [tables.Match(m.match_type, m.path) for m in op.match_conditions]
                names = {
                    item.namespace[: op.max_depth]
                    for item in entries
                    if all(tables.fits(item.namespace, match) for match in conditions)
                }
                return sorted(names)[op.offset : op.offset + op.limit]

    # Vectors

    def _units(self, texts: Sequence[str], made: Sequence[Vector]) -> dict[str, Vector]:
        if len(made) != len(texts):
            raise UsageError(f"index: the embedder made {len(made)} vectors of {len(texts)} texts")
        return {text: self._unit(vector) for text, vector in zip(texts, made, strict=True)}

    def _unit(self, vector: Sequence[float]) -> Vector:
        """``vector`` in length 1, of the size that all have."""
        numbers = [float(number) for number in vector]
        length = math.sqrt(math.fsum(number * number for number in numbers))
        if not math.isfinite(length):
            raise UsageError("index: the embedder made a vector with what is no number")
        self._dims = self._dims or len(numbers)
        if len(numbers) != self._dims:
            raise UsageError(
                f"index: the embedder made a vector of {len(numbers)} numbers where all have "
                f"{self._dims}"
            )
        return [number / length for number in numbers] if length else numbers

    def _agree(self, *, note: bool = False) -> None:
        """Hold the embedder against the one whose vectors the file has; ``note`` it as that."""
        if self._agreed or self._embeddings is None:
            return
        for name, mine in (("dims", str(self._dims or "")), ("embedder", self._space)):
            there = self._items.agree(name, mine) if note and mine else self._items.meta(name)
            if there and mine and there != mine:
                raise UsageError(
                    f"{self._items.place} has vectors of {name} {there!r}, and those of index have "
                    f"{mine!r}: the two cannot be compared. Use that embedder, or another bank"
                )
        self._agreed = note


def _file(url: str) -> Path:
    from agentpar.sqlite import file_in

    name = file_in(url)
    if not name:
        kind = url.partition(":")[0]  # the rest may hold a password
        raise UsageError(
            f"BankStore: a bank is at sqlite:///FILE or postgresql://…, got an address of {kind!r}"
        )
    if name == ":memory:":
        raise UsageError("BankStore: for items in memory take LangGraph's InMemoryStore")
    return Path(name).absolute()


def _embeddings(embed: Any) -> tuple[Any, str]:
    """LangGraph's view of ``embed``, and the name of the space of its vectors, where it says it."""
    if embed is None:
        raise UsageError("index: 'embed' is missing: name an embedder, embed='hashed'")
    if isinstance(embed, str) and embed.startswith(_OURS):
        embed = open_embedder(embed)
    if isinstance(embed, str | Embeddings) or callable(embed):
        return ensure_embeddings(embed), ""
    return ensure_embeddings(embed.embed), embed.name


def _fields(fields: Sequence[str] | None) -> list[tuple[str, Any]]:
    if not fields:
        raise UsageError(
            "index: say which fields are embedded, fields=['text']; ['$'] embeds whole values, "
            "with whatever secrets are in them"
        )
    if isinstance(fields, str):
        raise UsageError(f"index: fields is a list of paths: [{fields!r}]")
    return [(path, path if path == "$" else tokenize_path(path)) for path in fields]


def _checked(ops: Iterable[Any]) -> list[Any]:
    ops = list(ops)
    for op in ops:
        if not isinstance(op, GetOp | SearchOp | PutOp | ListNamespacesOp):
            raise ValueError(f"Unknown operation type: {type(op)}")
        validate_op_namespace(op)
        if isinstance(op, PutOp) and op.namespace[:1] == (ENTRIES,):
            raise UsageError(
                f"put: {op.namespace!r} shows the bank's entries, which nobody can write; "
                f"begin with another label than {ENTRIES!r}"
            )
    return ops


def _about_entries(op: Any) -> bool:
    match op:
        case GetOp():
            return bool(op.namespace[:1] == (ENTRIES,))
        case SearchOp():
            return bool(op.namespace_prefix[:1] == (ENTRIES,))
        case ListNamespacesOp():
            conditions = op.match_conditions or ()
            return any(m.match_type == "prefix" and m.path[:1] == (ENTRIES,) for m in conditions)
        case _:
            return False


def _seen(entry: Entry) -> tables.Item:
    """An entry as an item of LangGraph."""
    value = {
        "question": entry.question,
        "tool": entry.tool,
        "args": dict(entry.args),
        "value": entry.value,
        "sources": list(entry.sources),
        "run": entry.producer.run_id,
        "parents": list(entry.parents),
    }
    namespace = (ENTRIES, *entry.namespace.split("."))
    return tables.Item(0, namespace, entry.id, value, entry.created, entry.created)


def _product(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _json(op: Any) -> str:
    try:
        return json.dumps(None if op.value is None else dict(op.value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"put: the value of {op.key!r} in {op.namespace!r} is no JSON: {error}"
        ) from None


def _shown(kind: Callable[..., Any], item: tables.Item) -> Any:
    return kind(
        namespace=item.namespace,
        key=item.key,
        value=item.value,
        created_at=datetime.fromtimestamp(item.created, UTC),
        updated_at=datetime.fromtimestamp(item.updated, UTC),
    )
