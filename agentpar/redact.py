"""Known secrets out of texts and data: each becomes ``***``.

Pure. It looks for the very values it was given, as they are and as URLs, JSON and HTML spell
them; it never guesses from a text's shape that something in it might be a secret.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

HIDDEN = "***"
SHORTEST = 8
"""Shorter values are left alone: they would be found in ordinary words (``EMPTY``, ``none``)."""


class Redactor:
    """Hides ``secrets`` of at least `SHORTEST` characters; false where there are none."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for s in secrets if len(s) >= SHORTEST for form in _spellings(s)}
        # The longest first, so that nothing is left of one that contains another.
        self.forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))
        self._pattern = re.compile("|".join(map(re.escape, self.forms)) or r"(?!)")

    def __bool__(self) -> bool:
        return bool(self.forms)

    def text(self, text: str) -> str:
        """``text`` without secrets."""
        return self._pattern.sub(HIDDEN, text)

    def parts(self, parts: Sequence[str]) -> list[str]:
        """The parts of one text, with something else between them, without secrets.

        One that lies across a cut becomes ``***`` where it begins; the rest of it goes.
        """
        text = "".join(parts)
        secrets = [found.span() for found in self._pattern.finditer(text)]
        hidden = []
        stop = 0
        for part in parts:
            start, stop = stop, stop + len(part)
            said, at = "", start
            for first, last in secrets:
                if start < last and first < stop:
                    said += text[at:first] + (HIDDEN if first >= start else "")
                    at = min(last, stop)
            hidden.append(said + text[at:stop])
        return hidden

    def data(self, value: Any) -> Any:
        """JSON-like data or a dataclass, such as an event, without secrets, in keys too.

        Two keys that become the same stay two: the second gets a further ``*``.
        """
        match value:
            case str():
                return self.text(value)
            case Mapping():
                hidden: dict[Any, Any] = {}
                for key, item in value.items():
                    name = self.text(key) if isinstance(key, str) else key
                    while name in hidden:
                        name = f"{name}*"
                    hidden[name] = self.data(item)
                return hidden
            case list():
                return [self.data(item) for item in value]
            case tuple():
                return tuple(self.data(item) for item in value)
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return self._fields(value)
            case _:
                return value

    def _fields(self, value: Any) -> Any:
        changes = {}
        for field in dataclasses.fields(value):
            if field.name in _WORDS_OF_OURS:
                continue
            old = getattr(value, field.name)
            if isinstance(old, bool | int | float | None):
                continue
            if (new := self.data(old)) != old:
                changes[field.name] = new
        return dataclasses.replace(value, **changes) if changes else value

    def stream(self) -> RedactedStream:
        """For a text that comes in pieces."""
        return RedactedStream(self)

    def next_match(self, text: str, start: int) -> re.Match[str] | None:
        """The next secret in ``text``, the longest of those that begin there."""
        return self._pattern.search(text, start)

    def unfinished(self, text: str, start: int) -> int:
        """Where the end of ``text`` may be the beginning of a secret; its length if nowhere."""
        longest = len(self.forms[0]) if self.forms else 0
        for at in range(max(start, len(text) - longest + 1), len(text)):
            tail = text[at:]
            if any(len(form) > len(tail) and form.startswith(tail) for form in self.forms):
                return at
        return len(text)


_WORDS_OF_OURS = frozenset({"status", "kind", "purpose"})
"""Fields whose few values we choose ourselves; a key that reads ``cancelled`` is no reason."""


class RedactedStream:
    """A text in pieces without secrets, however they are cut.

    What may be the beginning of a secret is held back until the next piece, or `close`, tells.
    All that comes out, joined, is what `Redactor.text` makes of the whole.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be said now."""
        text = self._held + piece
        said: list[str] = []
        at = 0
        while True:
            hold = self._redactor.unfinished(text, at)
            found = self._redactor.next_match(text, at)
            if found is None or found.start() >= hold:
                break
            said += text[at : found.start()], HIDDEN
            at = found.end()
        self._held = text[hold:]
        return "".join([*said, text[at:hold]])

    def close(self) -> str:
        """What was held back, now that no more comes."""
        held, self._held = self._held, ""
        return self._redactor.text(held)


def _spellings(secret: str) -> Iterator[str]:
    """``secret`` as it is, and as it stands in a URL, a JSON text, a page, a Python message."""
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield html.escape(secret)
    yield repr(secret)[1:-1]


# Where secrets are

_NAMED_SO = re.compile(
    r"key|token|secret|passw|pwd|auth|cred|cookie|session|signature|private|dsn", re.IGNORECASE
)
_LOOKS_SO = re.compile(r"(?=[^\s/.:]*\d)(?=[^\s/.:]*[A-Za-z])[^\s/.:]{16,}")


def credentials(fields: Mapping[str, str]) -> Iterator[str]:
    """The secrets among named values: headers, variables, the query of a URL.

    A value counts where its name says so, or where it is one long word of letters and digits;
    of a URL its password counts. Paths, media types and plain words do not: hiding those would
    spoil results that a later call needs.
    """
    for name, value in fields.items():
        yield from url_credentials(value)
        if _NAMED_SO.search(name) or _LOOKS_SO.fullmatch(value):
            yield value
            scheme, _, token = value.partition(" ")
            if token and scheme.isalpha():  # "Bearer …"
                yield token.strip()


def url_credentials(url: str) -> Iterator[str]:
    """The secrets in an address: its password, its user name where that stands alone, what its
    query says under a name such as ``key``; nothing for what is no URL."""
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:
        return
    if "://" not in url:
        return
    if password:
        yield from (password, unquote(password))  # as it stands there, and as the server has it
        sent = f"{unquote(user or '')}:{unquote(password)}"
        yield base64.b64encode(sent.encode()).decode()
    elif user:
        yield from (user, unquote(user))
    yield from _query_secrets(parts.query)


def database_secrets(url: str) -> Iterator[str]:
    """The secrets in a database's address, as it stands there and as the server has it: unlike
    that of a web address its user name is none."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        yield from (password, unquote(password))
    yield from _query_secrets(urlsplit(url).query)


def _query_secrets(query: str) -> Iterator[str]:
    for name, value in parse_qsl(query):  # one at a time: a name may come twice
        yield from credentials({name: value})


def public_url(url: str) -> str:
    """An address as a message may show it: without user name, password, query values, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if parts.query:
        named = (part.partition("=") for part in parts.query.split("&"))
        query = "&".join(f"{name}={HIDDEN}" if equals else HIDDEN for name, equals, _ in named)
        shown = shown._replace(query=query)
    return urlunsplit(shown._replace(fragment=HIDDEN if parts.fragment else ""))
