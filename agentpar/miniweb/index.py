"""The mini-web's library: every page in SQLite, and a tantivy index to find it by.

Built once into the cache folder, then opened in milliseconds. The folder's name is a
digest of what went in (package versions and the code that renders), so that a library
is either right or not there. It is written beside its place and renamed, so that a
build which was broken off leaves nothing that could be mistaken for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentpar.cache import home
from agentpar.errors import MissingPackage
from agentpar.miniweb.data import PACKAGES, load_world
from agentpar.miniweb.pages import NOTES, Page, render_all
from agentpar.miniweb.text import fold
from agentpar.ports import Progress, silent

MAX_QUERY_WORDS = 48
"""Words of a query that are looked at; longer ones are questions with their context pasted in."""

_UNUSED = 30 * 24 * 3600  # seconds; other environments of this user open other editions
_ABANDONED = 3600  # seconds; a build takes some, so one as old was killed

_SOURCES = ("data.py", "index.py", "languages.py", "pages.py", "text.py")

# Words that say nothing about the page sought. With them left in, a question's small words
# outweigh its one name.
_SMALL_WORDS = frozenset(
    "a about an and are as at be by can did do does find for from give has have how i in is it "
    "its many me much of on or tell that the their there these this to up was were what when "
    "where which who whose will with you".split()
)

# What people ask for, and the word the pages have for it.
_SAME = {"inhabitants": "population", "high": "elevation", "altitude": "elevation"}


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result; ``score`` only orders hits of the same query."""

    path: str
    title: str
    snippet: str
    score: float


class Library:
    """An open library. Close it, or use it in a ``with``."""

    def __init__(self, folder: Path) -> None:
        tantivy = _tantivy()
        self._pages = sqlite3.connect(
            f"file:{folder / 'pages.sqlite'}?mode=ro&immutable=1",
            uri=True,
            check_same_thread=False,  # opened by the caller, read by the server's thread
        )
        self._index = tantivy.Index(_schema(tantivy), path=str(folder / "tantivy"))
        self._index.register_tokenizer("plain", _analyser(tantivy))
        self._searcher = self._index.searcher()
        self.folder = folder

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of pages, the hostile ones left out."""
        (count,) = self._pages.execute(
            "SELECT count(*) FROM pages WHERE site != ?", (NOTES.key,)
        ).fetchone()
        return int(count)

    def close(self) -> None:
        """Let go of the files. Closing twice is harmless."""
        self._pages.close()

    def page(self, path: str) -> Page | None:
        """The page at ``path`` (``/atlas/country/chile``), or None."""
        row = self._pages.execute(
            "SELECT path, site, name, title, html, text, alias, weight FROM pages WHERE path = ?",
            (path,),
        ).fetchone()
        if row is None:
            return None
        path, site, name, title, html, text, alias, weight = row
        return Page(path, site, name, title, _unpack(html), _unpack(text), alias, weight)

    def search(
        self, query: str, *, limit: int = 10, offset: int = 0, hostile: bool = False
    ) -> tuple[Hit, ...]:
        """The pages that fit ``query`` best, the best first.

        Any text will do: a few words, a whole question, code. There is no query syntax, so
        there are no queries that fail. ``hostile`` lets the prompt-injection pages in.
        """
        words = _words(query)
        if not words or limit < 1:
            return ()
        parsed = self._index.parse_query(
            " ".join(words),
            default_field_names=["name", "title", "text"],
            field_boosts={"name": 3.0, "title": 2.0, "text": 1.0},
        )
        # Deeper than asked, because the order is settled below by more than word counts.
        found = self._searcher.search(parsed, max(60, 2 * (offset + limit))).hits
        asked = set(words)
        ranked: list[tuple[float, str, str]] = []
        for score, address in found:
            doc = self._searcher.doc(address)
            if doc.get_first("site") == NOTES.key and not hostile:
                continue
            rank = _rank(score, asked, doc.get_all("name"), doc.get_first("weight"))
            ranked.append((rank, doc.get_first("path"), doc.get_first("title")))
        ranked.sort(key=lambda r: (-r[0], r[1]))
        return tuple(
            Hit(path, title, self._snippet(path, words), round(score, 3))
            for score, path, title in ranked[offset : offset + limit]
        )

    def _snippet(self, path: str, words: Sequence[str]) -> str:
        page = self.page(path)
        return snippet(page.text if page else "", words)


def snippet(text: str, words: Sequence[str], *, length: int = 240) -> str:
    """The lines of ``text`` that hold most of ``words``, in their order, within ``length``."""
    wanted = set(words)
    lines = text.split("\n")
    order = sorted(range(len(lines)), key=lambda i: (-len(wanted & set(_words(lines[i]))), i))
    chosen: list[int] = []
    room = length
    for i in order:
        if len(lines[i]) <= room:
            chosen.append(i)
            room -= len(lines[i]) + 1
    if not chosen:
        return lines[order[0]][:length]
    return " ".join(lines[i] for i in sorted(chosen))


def open_library(folder: Path | None = None, *, progress: Progress | None = None) -> Library:
    """Open the library, building it first where there is none.

    ``folder`` holds libraries of several editions; without it, the cache folder does. Raises
    `MissingPackage` where a package is absent.
    """
    place = (folder or home() / "miniweb") / edition()
    if not (place / "pages.sqlite").exists():
        _build_into(place, progress or silent)
        _tidy(place.parent)
    with contextlib.suppress(OSError):  # the library may be somebody else's, and only read here
        os.utime(place)
    return Library(place)


def edition() -> str:
    """A name for what a library built now would hold."""
    digest = hashlib.blake2b(digest_size=8)
    for package in (*PACKAGES, "tantivy"):
        try:
            digest.update(f"{package}=={version(package)}\n".encode())
        except PackageNotFoundError as error:
            raise MissingPackage(package, extra="miniweb", purpose="the mini-web") from error
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _build_into(place: Path, progress: Progress) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent))
    try:
        _write(scratch, progress)
        try:
            scratch.rename(place)
        except OSError:
            # Somebody else finished first: theirs is the same as ours.
            if not (place / "pages.sqlite").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tidy(shelf: Path) -> None:
    """Remove editions that nobody has opened for long, and what killed builds have left."""
    for folder in shelf.iterdir():
        if re.fullmatch(r"[0-9a-f]{16}|\.building-\w+", folder.name):
            keep = _ABANDONED if folder.name.startswith(".") else _UNUSED
            with contextlib.suppress(OSError):  # another process may be tidying too
                if time.time() - folder.stat().st_mtime > keep:
                    shutil.rmtree(folder)


def _write(folder: Path, progress: Progress) -> None:
    tantivy = _tantivy()
    progress("reading the tables of the mini-web", 0, 0)
    world = load_world()
    expected = 2 * len(world.countries) + len(world.entries) + len(world.cities)
    expected += len(world.airports) + len(world.airports_of)
    (folder / "tantivy").mkdir()
    index = tantivy.Index(_schema(tantivy), path=str(folder / "tantivy"))
    index.register_tokenizer("plain", _analyser(tantivy))
    with (
        _writer(index) as writer,
        contextlib.closing(sqlite3.connect(folder / "pages.sqlite")) as pages,
        pages,
    ):
        pages.execute(
            "CREATE TABLE pages (path TEXT PRIMARY KEY, site TEXT, name TEXT, title TEXT,"
            " html BLOB, text BLOB, alias TEXT, weight REAL)"
        )
        for done, page in enumerate(render_all(world)):
            if done % 500 == 0:
                progress("writing the mini-web's pages", done, max(done, expected))
            pages.execute(
                "INSERT INTO pages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    page.path,
                    page.site,
                    page.name,
                    page.title,
                    _pack(page.html),
                    _pack(page.text),
                    page.alias,
                    page.weight,
                ),
            )
            writer.add_document(
                tantivy.Document(
                    path=page.path,
                    site=page.site,
                    name=[page.name, page.alias],
                    title=page.title,
                    text=page.text,
                    weight=page.weight,
                )
            )
        progress("indexing the mini-web", expected, expected)


@contextlib.contextmanager
def _writer(index: Any) -> Iterator[Any]:
    """Adds documents to ``index``. Its threads end with it, or they would go on writing into
    the folder of a build that was broken off while that is being removed."""
    writer = index.writer(heap_size=64_000_000, num_threads=1)
    try:
        yield writer
        writer.commit()
    finally:
        writer.wait_merging_threads()


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("path", stored=True, tokenizer_name="raw")
    builder.add_text_field("site", stored=True, tokenizer_name="raw")
    builder.add_text_field("name", stored=True, tokenizer_name="plain")
    builder.add_text_field("title", stored=True, tokenizer_name="plain")
    builder.add_text_field("text", stored=False, tokenizer_name="plain")
    builder.add_float_field("weight", stored=True)
    return builder.build()


def _analyser(tantivy: Any) -> Any:
    """Words in lower case without accents, cut to their English stem."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


def _words(text: str) -> list[str]:
    """The words of ``text`` that say something, folded; nothing that could be query syntax."""
    words = re.findall(r"[^\W_]+", fold(text))
    telling = [_SAME.get(w, w) for w in words if w not in _SMALL_WORDS and w != "s"]
    return telling[:MAX_QUERY_WORDS] or words[:MAX_QUERY_WORDS]


def _rank(score: float, asked: set[str], names: Sequence[str], weight: float) -> float:
    """Word statistics, then: is a whole name in the query, and is the thing well known?"""
    whole = 0
    for name in names:
        words = _words(name)
        if asked.issuperset(words):
            whole = max(whole, len(words))
    return score * (1.0 + 0.75 * whole) * (1.0 + weight)


def _pack(text: str) -> bytes:
    return zlib.compress(text.encode(), level=3)


def _unpack(packed: bytes) -> str:
    return zlib.decompress(packed).decode()


def _tantivy() -> Any:
    try:
        import tantivy
    except ImportError as error:
        raise MissingPackage("tantivy", extra="miniweb", purpose="the mini-web") from error
    return tantivy
