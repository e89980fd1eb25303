"""What of a page answers to a few words: its best passages, and the one value asked for.

Pure: passages in, text and a value out; the same page and words give the same answer. It
must never know where a page came from or who reads it.

The ranking is BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009)
with the page's own passages as the collection, so a word that fills the page weighs little.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Field = tuple[str, str]
"""A label and what stands beside it."""

Value = int | float | str | None

MAX_TEXT = 200
"""Characters of a text that still counts as a value: a name, a list of neighbours."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph, a list item or a row of a table, in page order.

    ``fields`` are a row's cells with their labels; ``name`` is what a row of a table with
    a header is about (its first cell); ``section`` is the heading above.
    """

    text: str
    fields: tuple[Field, ...] = ()
    name: str = ""
    section: str = ""


def excerpt(passages: Sequence[Passage], find: str, title: str, max_chars: int) -> str:
    """The passages that best fit ``find``, in page order, a line each, at most ``max_chars``.

    Without ``find`` the beginning of the page; a third as much of it where no passage holds
    any of the words.
    """
    scores = _scores(passages, find, title)
    best = max(scores, default=0.0)
    order = (
        # What scores far below the best one is there by accident.
        sorted(
            (i for i, score in enumerate(scores) if score > 0.35 * best), key=lambda i: -scores[i]
        )
        if best > 0
        else range(len(passages))
    )
    lines: dict[int, str] = {}
    said: set[str] = set()
    room = max_chars // 3 if best <= 0 and words(find) else max_chars
    for index in order:
        text = passages[index].text
        if text in said:
            continue
        said.add(text)
        if len(text) > room:
            if not lines or best <= 0:
                lines[index] = cut(text, room)
            if best <= 0:
                break
            continue
        lines[index] = text
        room -= len(text) + 1
    return "\n".join(line for _, line in sorted(lines.items()) if line)


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters of ``text``, ending between two words."""
    if len(text) <= limit:
        return text
    if limit < 2:
        return ""
    head = text[: limit - 1]
    return head[: head.rfind(" ") if " " in head[limit // 2 :] else len(head)].rstrip() + "…"


def value(passages: Sequence[Passage], find: str, title: str) -> Value:
    """What the page gives for ``find``: a number, a short text, or None where it is unclear.

    The cell whose label fits best wins; where no label fits, the number nearest to the
    words in the best sentence. A number has its thousands separators taken out and its
    "million" multiplied in; of ``19,116,201 (2020)`` it is the first.
    """
    beyond_title = words(find) - words(title)
    wanted = beyond_title or words(find)
    fits = _field_fits(passages, words(find), wanted, words(title))
    if fits:
        best = max(fit for fit, _ in fits)
        found = [text for fit, text in fits if fit == best]
        # The same column of several rows, none of which was named: no single answer.
        return _of_cell(found[0], find) if best >= 0.5 or len(set(found)) == 1 else None
    if not beyond_title:  # every sentence of the page is about its title
        return None
    scores = _scores(passages, find, title)
    for index in sorted(range(len(passages)), key=lambda i: -scores[i])[:3]:
        number = _of_prose(passages[index].text, wanted, find)
        if scores[index] > 0 and number is not None:
            return number
    return None


def words(text: str) -> frozenset[str]:
    """The words that carry meaning, in lower case and without a plural s."""
    return frozenset(_word_list(text))


_STOP = frozenset(
    "a an and are as at be by for from has have how in is it its many much of on or s that the "
    "their there this to was were what when where which who whom whose with does do did".split()
)


def _word_list(text: str) -> list[str]:
    found = re.findall(r"[^\W_]+", text.casefold())
    return [_stem(word) for word in found if word not in _STOP]


def _stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _scores(passages: Sequence[Passage], find: str, title: str) -> list[float]:
    """BM25 of each passage; a heading above counts half, a word of the page's title a third."""
    query = words(find)
    if not query or not passages:
        return [0.0] * len(passages)
    known = functools.cache(words)  # many passages have one section, one title, one label
    counts = [Counter(_word_list(passage.text)) for passage in passages]
    above = [known(passage.section) for passage in passages]
    lengths = [sum(count.values()) for count in counts]
    usual = sum(lengths) / len(lengths) or 1.0
    weights = {
        word: (1 / 3 if word in known(title) else 1.0)
        * math.log(1 + (len(passages) + 0.5) / (0.5 + sum(word in count for count in counts)))
        for word in query
    }
    scores = []
    for passage, count, section, length in zip(passages, counts, above, lengths, strict=True):
        score = 0.0
        for word in query:
            times = count[word] + 0.5 * (word in section)
            score += weights[word] * times * 2.2 / (times + 1.2 * (0.5 + 0.5 * length / usual))
        labels = known(" ".join(label for label, _ in passage.fields))
        covered = sum(weights[word] for word in query & labels) / sum(weights.values())
        scores.append(score * (1 + covered))
    return scores


def _field_fits(
    passages: Sequence[Passage],
    query: frozenset[str],
    wanted: frozenset[str],
    title: frozenset[str],
) -> list[tuple[float, str]]:
    """How well each labelled cell fits, and its text; cells whose label has no word are out."""
    known = functools.cache(words)
    fits = []
    for passage in passages:
        name, section = known(passage.name), known(passage.section)
        # Where a row has a name, its first cell is that name.
        for label, text in passage.fields[bool(passage.name) :]:
            own = known(label)
            if not own & wanted or not text:
                continue
            recall = len(wanted & (own | name | section)) / len(wanted)
            precision = len(own & (query | title)) / len(own)
            fit = recall * (0.5 + 0.5 * precision)
            if passage.name and not name & (query | title):
                fit *= 0.4  # one of many rows, and not the one that was named
            fits.append((round(fit, 6), text))
    return fits


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b"
_MONTH_BEFORE = re.compile(rf"\b{_MONTH}\.?\s*$", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.,:/])(?P<sign>(?<![)\]])[-−])?(?<![\d.])"
    r"(?P<digits>\d{1,3}(?:[,'’\u00a0\u202f]\d{3})+(?!\d)(?:\.\d+)?"
    r"|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
    r"|\d+,\d{1,2}(?![\d,])|\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2}\b)?)"
    r"(?!\d|[/:.,-]\d)"
    r"(?P<after>\s*(?:(?P<scale>thousand|million|billion|trillion|mn|bn)\b)?"
    r"\s*(?P<unit>[^\W\d_]+|%|°)?)",
    re.IGNORECASE,
)
_SCALES = {
    "thousand": 10**3,
    "million": 10**6,
    "mn": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
}
_BEFORE_NUMBER = re.compile(
    r"(?:about|around|approx(?:imately|\.)?|ca?\.|circa|roughly|nearly|over|under|some|up to"
    r"|US|[≈~<>≤≥±+$€£¥₹(]|\s)*(?:[-−]\s?)?",
    re.IGNORECASE,
)
_MAX_DIGITS = 100
"""Of a quantity: what is longer is a key or a row of figures, and no float holds it."""
_ASKS_YEAR = words(
    "year date founded established born died when since independence opened built inception"
)


@dataclass(frozen=True, slots=True)
class _Number:
    start: int
    end: int
    value: int | float
    unit: str
    year: bool


def _numbers(text: str) -> list[_Number]:
    """The quantities in ``text`` in order; dates, ordinals and times of day are none."""
    found = []
    for match in _NUMBER.finditer(text):
        unit = (match["unit"] or "").lower()
        touching = not match["after"][:1].isspace()
        if unit in ("st", "nd", "rd", "th") and touching:
            continue
        by_month = re.match(_MONTH, unit) or _MONTH_BEFORE.search(
            text, max(0, match.start() - 12), match.start()
        )
        if by_month and not re.fullmatch(r"\d{4}", match["digits"]):
            continue  # the day of a date
        digits = match["digits"]
        if len(digits) > _MAX_DIGITS:
            continue
        year = bool(re.fullmatch(r"1\d{3}|20\d\d|2100", digits)) and not match["scale"] and not unit
        number = _parse(digits) * _SCALES.get((match["scale"] or "").lower(), 1)
        if isinstance(number, float) and match["scale"] and abs(number - round(number)) < 1e-6:
            number = round(number)
        if match["sign"]:
            number = -number
        found.append(_Number(match.start(), match.end("digits"), number, unit, year))
    return found


def _parse(digits: str) -> int | float:
    plain = re.sub(r"['’\u00a0\u202f]", "", digits)
    if re.fullmatch(r"\d+,\d{1,2}", plain):
        plain = plain.replace(",", ".")
    elif plain.count(".") > 1:
        plain = plain.replace(".", "")
    plain = plain.replace(",", "")
    return float(plain) if re.search(r"[.eE]", plain) else int(plain)


def _of_cell(text: str, find: str) -> Value:
    """The value of a cell: its number if it begins with one, its text if that is short."""
    numbers = _numbers(text)
    prefix = _BEFORE_NUMBER.match(text)
    begins = prefix.end() if prefix else 0
    if not any(number.start <= begins <= number.end for number in numbers):
        short = re.sub(r"\s*[(\[].*", "", text).strip() or text
        return short if len(short) <= MAX_TEXT else None
    return _pick(numbers, find)


def _of_prose(text: str, wanted: frozenset[str], find: str) -> int | float | None:
    """The number nearest to a wanted word, rather behind it than before it."""
    places = [
        match.end()
        for match in re.finditer(r"[^\W_]+", text)
        if _stem(match[0].casefold()) in wanted
    ]
    numbers = [n for n in _numbers(text) if _stem(str(n.value)) not in wanted]
    if not places or not numbers:
        return None

    def distance(number: _Number) -> float:
        return min(
            number.start - place if number.start >= place else 2.0 * (place - number.end)
            for place in places
        )

    return _pick(sorted(numbers, key=distance), find)


def _pick(numbers: Sequence[_Number], find: str) -> int | float | None:
    """The first number that is what was asked for: in that unit, or a year, or no year."""
    asked = words(find)
    years = bool(asked & _ASKS_YEAR)
    in_unit = [n for n in numbers if n.unit and _stem(n.unit) in asked]
    if in_unit and not years:
        return in_unit[0].value
    of_kind = [n for n in numbers if n.year == years] or list(numbers)
    return of_kind[0].value if of_kind else None
