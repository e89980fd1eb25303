"""From the bytes of a page to its title and passages: charset, HTML, plain text, PDF.

It must never fetch, and never know what is asked of the page.

HTML is read by a tokenizer of our own, a few regular expressions that run in linear time,
because the standard library's parser does not (60 kB of ``<a x="`` held it for 25 s), and
because a question is often about a row of a table: here its cells keep their labels, where
trafilatura writes lines of Markdown that would have to be parsed again. But trafilatura,
where installed, knows better than we do which paragraphs are menus and cookie notices, so
it votes: prose that it drops is dropped, rows stay.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from agentpar.errors import FetchError, MissingPackage
from agentpar.tools.passages import Field, Passage, cut

MAX_PASSAGE = 600
"""Characters of a paragraph; a longer one is cut between sentences into several passages."""
MAX_LABEL = 200
"""Characters of a title, a heading, a term or a table's header: it is read, or written out, once
for each passage below it."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a reader sees of a page."""

    title: str
    passages: tuple[Passage, ...]

    @property
    def text(self) -> str:
        """The whole page, a passage a line."""
        return "\n".join(passage.text for passage in self.passages)


_LOOKS_HTML = re.compile(r"\s*<(!doctype html|html)\b", re.IGNORECASE)


def read_page(body: bytes, media_type: str, charset: str = "", *, url: str = "") -> Page:
    """The page in ``body``. CPU-bound: tens of milliseconds for a long page, so use a thread.

    Raises `FetchError` where it is neither text nor PDF, or is a broken PDF;
    `MissingPackage` for a PDF without pypdf.
    """
    if media_type == "application/pdf" or body.startswith(b"%PDF-"):
        return _read_pdf(body, url)
    if media_type in ("", "application/octet-stream") and b"\0" in body[:1024]:
        raise FetchError(f"{url!r} is not text: data without a type, {len(body)} bytes")
    text = decode(body, charset)
    if media_type in ("text/html", "application/xhtml+xml") or (
        media_type in ("", "text/plain") and _LOOKS_HTML.match(text)
    ):
        return read_html(text)
    return Page("", tuple(_paragraphs(text)))


# ── Charset ──────────────────────────────────────────────────────────────────────

# Charsets that pages are written in. Python knows codecs that are none (idna, punycode,
# unicode_escape): some are slow, some run over untrusted data with surprises.
_CHARSET = re.compile(
    r"utf[-_]?(8|16([-_]?[lb]e)?|32)|us-ascii|ascii|latin-?1|iso[-_]?(8859[-_]?\d{1,2}|2022[-_]jp)"
    r"|windows-\d{3,4}|cp\d{3,4}|koi8-[rut]|mac[-_]?(roman|cyrillic)|macintosh|tis-620"
    r"|shift[-_]?jis|sjis|euc[-_](jp|kr)|gb(2312|k|18030)|big5(-hkscs)?",
    re.IGNORECASE,
)
_META_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_-]{1,40})", re.IGNORECASE
)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def decode(body: bytes, charset: str = "") -> str:
    """``body`` as text: by its byte order mark, the header, its meta tag, UTF-8, or cp1252.

    Never fails: a charset that is unknown or does not fit gives way to the next, and in the
    last one what cannot be read becomes U+FFFD.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    meta = _META_CHARSET.search(body[:4096])
    declared = [charset, meta[1].decode("ascii") if meta else "", "utf-8"]
    for name in filter(_CHARSET.fullmatch, declared):
        # As browsers do: pages that say latin-1 are written in its superset.
        codec = "cp1252" if re.fullmatch(r"(?i)iso-?8859-?1|latin-?1|(us-)?ascii", name) else name
        try:
            text = body.decode(codec, "strict" if name == "utf-8" else "replace")
        except (LookupError, UnicodeError):
            if name.lower().replace("_", "-") in ("utf-8", "utf8") and _nearly_utf8(body):
                return body.decode("utf-8", "replace")
            continue
        if text.count("\ufffd") <= len(text) // 100:
            return text
    return body.decode("cp1252", "replace")


def _nearly_utf8(body: bytes) -> bool:
    """Whether a few bytes only (a cut at the size cap, a stray byte) keep it from being UTF-8."""
    return body.decode("utf-8", "replace").count("\ufffd") <= 1 + len(body) // 1000


# ── HTML ─────────────────────────────────────────────────────────────────────────

# Each alternative either ends at the next '<' or eats to the end of the text once, so that
# the whole is linear whatever the page does. Possessive quantifiers never come back.
_ATTRIBUTES = r"""(?:"[^"<]*+"|'[^'<]*+'|[^"'<>])*+"""
_TOKEN = re.compile(
    rf"<!--.*?(?:-->|\Z)"
    rf"|<(?P<raw>script|style|title|textarea|iframe|xmp|noscript)\b{_ATTRIBUTES}>"
    rf"(?P<content>.*?)(?:</(?P=raw)\b[^<>]*+>?|\Z)"
    rf"|<(?P<end>/?)(?P<tag>[a-zA-Z][a-zA-Z0-9:-]*+)(?P<attributes>{_ATTRIBUTES})>"
    rf"|</?[a-zA-Z!?][^<>]*+>?"
    rf"|<![^<>]*+>?",
    re.DOTALL | re.IGNORECASE,
)
_HIDDEN = re.compile(
    r"""(?:^|\s)hidden(?=\s|=|/|$)(?!\s*=\s*["']?until-found)|aria-hidden\s*=\s*["']?true"""
    r"""|style\s*=\s*["'][^"']*(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0)""",
    re.IGNORECASE,
)
# Menus, controls and drawings; aside stays, because fact boxes live there.
_SKIPPED = frozenset(
    "nav footer svg math template select button dialog object audio video canvas form".split()
)
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
_OPTIONAL_END = frozenset("p li td th tr dt dd option".split())
_HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
_BLOCKS = _HEADINGS | frozenset(
    "p div section article main header aside ul ol li dl dt dd table caption thead tbody tfoot tr"
    " td th pre blockquote figure figcaption address hr body html details summary footer form"
    " fieldset".split()
)
_FOOTNOTE = re.compile(r"\[(?:\d{1,3}|[a-z]|note \d+|citation needed|edit)\]")


def read_html(text: str) -> Page:
    """The title and passages of an HTML page, without scripts, styles and hidden parts."""
    reader = _HtmlReader()
    at = 0
    for token in _TOKEN.finditer(text):
        if token.start() > at:
            reader.characters(text[at : token.start()])
        at = token.end()
        if token["raw"]:
            if token["raw"].lower() == "title" and not reader.title:
                reader.title = _label(token["content"])
        elif token["tag"]:
            reader.tag(token["tag"].lower(), bool(token["end"]), token["attributes"])
    reader.characters(text[at:])
    reader.finish()
    passages = _vote(text, reader.passages)
    return Page(reader.title or reader.heading, tuple(passages))


@dataclass(slots=True)
class _Table:
    header: list[str] = field(default_factory=list)
    group: str = ""
    cells: list[tuple[str, bool]] = field(default_factory=list)
    rows: int = 0


class _HtmlReader:
    """Collects passages from tags and characters in page order; one use per page."""

    def __init__(self) -> None:
        self.title = ""
        self.heading = ""
        self.passages: list[Passage] = []
        self._section = ""
        self._text: list[str] = []
        self._block = ""
        self._tables: list[_Table] = []
        self._term = ""
        self._articles = 0
        self._banner = False
        self._skipping = ""
        self._skip_depth = 0

    def characters(self, raw: str) -> None:
        if not self._skipping:
            self._text.append(raw)

    def tag(self, name: str, ends: bool, attributes: str) -> None:
        if self._skipping:
            self._skip(name, ends, attributes)
            if self._skipping:
                return
        if not ends and name not in _VOID and not attributes.rstrip().endswith("/"):
            # The page around it may be one big form: only hide what holds no page.
            hides = name in _SKIPPED and name != "form"
            if hides or (
                attributes and _HIDDEN.search(attributes) and name not in ("html", "body")
            ):
                self._end_block()
                self._skipping, self._skip_depth = name, 1
                return
        if name == "br":
            self._text.append("\n" if self._block == "pre" else " ")
        elif name in _BLOCKS:
            self._end_block()
            self._block = "" if ends else name
            self._table_tag(name, ends)
            if name in ("main", "article"):
                self._articles += -1 if ends else 1
            if name in ("main", "article", "header"):
                self._banner = name == "header" and not ends and self._articles <= 0

    def finish(self) -> None:
        """The page is over: settle what is still open."""
        self._end_block()
        while self._tables:
            self._end_row()
            self._tables.pop()

    def _skip(self, name: str, ends: bool, attributes: str) -> None:
        if name != self._skipping or (not ends and attributes.rstrip().endswith("/")):
            return
        if not ends and name in _OPTIONAL_END:
            self._skipping = ""  # <p hidden> ends where the next <p> begins
            return
        self._skip_depth += -1 if ends else 1
        if self._skip_depth == 0:
            self._skipping = ""

    def _table_tag(self, name: str, ends: bool) -> None:
        if name == "table" and not ends:
            self._tables.append(_Table())
        elif self._tables and name in ("tr", "table", "thead", "tbody", "tfoot"):
            self._end_row()
            if name == "table":
                self._tables.pop()
        elif name == "dl":
            self._term = ""

    def _end_block(self) -> None:
        text, block = _clean("".join(self._text), lines=self._block == "pre"), self._block
        self._text.clear()
        self._block = ""
        if not text:
            return
        if self._tables and block in ("td", "th") and len(text) <= MAX_PASSAGE:
            self._tables[-1].cells.append((text, block == "th"))
        elif block in _HEADINGS:
            self._section = cut(text, MAX_LABEL)
            self.heading = self.heading or self._section
        elif block == "dt":
            self._term = cut(text, MAX_LABEL)
        elif block == "dd" and self._term:
            self._add(f"{self._term}: {text}", ((self._term, text),))
        elif self._tables and self._tables[-1].cells and block not in ("caption", "p"):
            # A cell that goes on after a block inside it (a list, a div).
            before, head = self._tables[-1].cells.pop()
            self._tables[-1].cells.append((f"{before} {text}", head))
        elif self._tables and block in ("div", "li", "span"):
            self._tables[-1].cells.append((text, False))
        elif not self._banner:  # the site's name and slogan, above every page of it
            for part in _paragraphs(text):
                self._add(part.text)

    def _end_row(self) -> None:
        table = self._tables[-1]
        cells, table.cells = table.cells, []
        if not cells:
            return
        table.rows += 1
        texts = [text for text, _ in cells]
        heads = [head for _, head in cells]
        if len(cells) == 1:
            # A heading row inside a fact box: "Area", then "• Total | 756,102 km²".
            table.group = cut(texts[0], MAX_LABEL) if heads[0] else ""
            if not heads[0]:
                self._add(texts[0])
        elif all(heads) and not table.header:
            table.header = [cut(text, MAX_LABEL) for text in texts]
        elif len(table.header) == len(cells):
            fields = tuple(zip(table.header, texts, strict=True))
            text = " | ".join(f"{label}: {value}" for label, value in fields)
            self._add(text, fields, texts[0])
        else:
            label = texts[0].rstrip(":")
            if label.startswith(("•", "·", "–")) and table.group:
                label = f"{table.group}, {label.lstrip('•·– ')}"
            elif heads[0]:
                table.group = ""
            self._add(" | ".join([label, *texts[1:]]), tuple((label, text) for text in texts[1:]))

    def _add(self, text: str, fields: tuple[Field, ...] = (), name: str = "") -> None:
        self.passages.append(Passage(text, fields, name, self._section))


def _label(raw: str) -> str:
    return cut(_clean(raw), MAX_LABEL)


def _clean(raw: str, *, lines: bool = False) -> str:
    text = html.unescape(raw) if "&" in raw else raw
    text = _FOOTNOTE.sub("", text) if "[" in text else text
    # Zero-width characters split words for no reader's eye.
    text = re.sub("[\u200b-\u200d\u2060\ufeff\u00ad]", "", text)
    if lines:
        return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()
    # A no-break space between digits is a thousands separator, and keeps its place.
    return re.sub(r"(?:(?![\u00a0\u202f])\s)+|(?<!\d)\s|\s(?!\d)", " ", text).strip()


def _vote(page: str, passages: Sequence[Passage]) -> list[Passage]:
    """``passages`` without the prose that trafilatura, where installed, takes for furniture.

    Where it keeps less than a third of the prose it has misread the page, and is not heard.
    It is not asked about a handful of lines, nor about a page of so many that they would
    hold its thread for seconds.
    """
    prose = [passage for passage in passages if not passage.fields]
    if not 4 <= len(prose) <= 5_000:
        return list(passages)
    extract = _prose_reader()
    if extract is None:
        return list(passages)
    kept = extract(page, favor_recall=True, include_comments=False, include_tables=False, fast=True)
    known = {words for line in (kept or "").splitlines() for words in _windows(line)}
    good = {p.text for p in prose if next(_windows(p.text), ()) in known}
    if 3 * sum(map(len, good)) < sum(len(passage.text) for passage in prose):
        return list(passages)
    return [passage for passage in passages if passage.fields or passage.text in good]


@cache
def _prose_reader() -> Callable[..., str | None] | None:
    """trafilatura's ``extract``; looked for once, as a failed import is a slow one."""
    try:
        import trafilatura
    except ImportError:
        return None
    return trafilatura.extract  # type: ignore[no-any-return]


def _windows(text: str) -> Iterator[tuple[str, ...]]:
    """Every five words in a row, or all of fewer: what two readers of one line agree on.

    They differ in spaces, footnotes, dashes and where a line ends.
    """
    words = re.findall(r"\w+", _FOOTNOTE.sub("", text))
    for start in range(max(1, len(words) - 4)):
        yield tuple(words[start : start + 5])


# ── Plain text and PDF ───────────────────────────────────────────────────────────


def _paragraphs(text: str) -> list[Passage]:
    """Passages of plain text: blank lines divide, long ones are cut between sentences."""
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*•#|])", text):
        line = " ".join(paragraph.split())
        while len(line) > MAX_PASSAGE:
            ends = [m.end() for m in re.finditer(r"[.!?。]['\")\]]?\s", line[:MAX_PASSAGE])]
            at = ends[-1] if ends else (line.rfind(" ", 0, MAX_PASSAGE) + 1 or MAX_PASSAGE)
            found.append(Passage(line[:at].strip()))
            line = line[at:]
        if line.strip():
            found.append(Passage(line.strip()))
    return found


def _read_pdf(body: bytes, url: str) -> Page:
    """The text of a PDF's first 50 pages."""
    import io

    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError:
        raise MissingPackage("pypdf", extra="web", purpose="reading a PDF") from None
    try:
        document = pypdf.PdfReader(io.BytesIO(body))
        pages = [page.extract_text() for page in document.pages[:50]]
        title = str((document.metadata or {}).get("/Title") or "")
    # pypdf lets many kinds of errors through on broken files.
    except (PyPdfError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise FetchError(f"{url!r} is a PDF that cannot be read: {error}") from None
    passages = [
        replace(passage, section=f"page {number}")
        for number, page in enumerate(pages, 1)
        for passage in _paragraphs(page)
    ]
    return Page(cut(title, MAX_LABEL), tuple(passages))
