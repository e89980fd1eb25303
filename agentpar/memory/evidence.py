"""What a run has read, and whether a sentence stands in it.

Pure text work: an answer's ``[n]`` marks are checked against the results of the run by
program, never by a model. A sentence is supported when every number and every proper
name in it, and most of its other content words, stand in what it cites. That proves where
a statement comes from, not that the source is right.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agentpar.events import Citation, Source
from agentpar.plaintext import cut
from agentpar.plan import Failed, Ok, Outcome, Skipped, Task, fill
from agentpar.tools.page import is_page, pages_of

WORDS_NEEDED = 0.6
"""Share of a sentence's content words that its sources must contain."""


@dataclass(frozen=True, slots=True)
class Checked:
    citations: tuple[Citation, ...]
    unsupported: tuple[str, ...]


def sources(tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]) -> dict[int, Source]:
    """What the tasks have brought, numbered from 1 in the order of their ids.

    A page (see `pages_of`) is a source by its address, and so is each of its ``others``; any
    value without a ``url`` by its tool call, whose arguments then count as read.
    """
    found: dict[int, Source] = {}
    for id in sorted(tasks):
        outcome = outcomes.get(id)
        if not isinstance(outcome, Ok):
            continue
        args = fill(tasks[id].args, outcomes).values()
        given = ", ".join(cut(as_text(arg).replace("\n", " "), 200) for arg in args)
        call = f"{tasks[id].tool}({given})"
        for value in pages_of(outcome.value) or [outcome.value]:
            page: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
            origin, title = str(page.get("url") or call), str(page.get("title") or call)
            n = len(found) + 1
            found[n] = Source(n, id, origin, title, as_text(value))
    return found


def as_text(value: Any) -> str:
    """A result as text to read: strings as they are, a line for each item or small record."""
    if isinstance(value, str):
        return value
    if is_page(value):
        apart = ("url", "title", "text", "others", "unread")  # an address states nothing
        rest = {key: item for key, item in value.items() if key not in apart and item is not None}
        facts = "\n".join(f"{key}: {as_text(item)}" for key, item in rest.items())
        return "\n".join(filter(None, (value["text"], facts)))
    if isinstance(value, Mapping):
        small = not any(isinstance(item, Mapping | list) for item in value.values())
        lines = (f"{key}: {as_text(item)}" for key, item in value.items())
        return (", " if small else "\n").join(lines)
    if isinstance(value, list):
        return "\n".join(map(as_text, value))
    return json.dumps(value)


MARK = re.compile(r"\[(\d{1,6}(?:\s*,\s*\d{1,6})*)\]")
"""A citation mark in an answer: ``[2]``, ``[1, 3]``."""

_ABBREVIATED = "".join(
    rf"(?<!\b{re.escape(word)})"
    for word in "Dr Mr Mrs Ms Prof St Mt No vs approx ca e.g i.e".split()
)
# A sentence ends at . ! ? before a space, or at a line's end; marks behind the stop belong to
# it. The number of a list's item is no sentence.
_SENTENCE = re.compile(
    r"(?:(?m:^)[^\S\n]*\d{1,3}[.)][^\S\n]+)?"
    rf"[^\n]+?(?:(?<!\b[A-Z]){_ABBREVIATED}[.!?](?=\s|$|\[)(?:[^\S\n]*\[\d[\d, ]*\])*|(?=\n)|$)"
)
_ITEM = re.compile(r"^\s*(?:\d{1,3}[.)]|[-*•])\s+")
# Thousands are parted by a comma, an apostrophe, or a space that does not break.
_NUMBER = re.compile(
    r"(?<![\w.,])-?\d{1,3}(?:[,'’\u00a0\u2009\u202f]\d{3})+(?!\d)(?:\.\d+)?"
    r"|(?<![\w.])-?\d+(?:\.\d+)?"
)
_PARTING = str.maketrans("", "", ",'’\u00a0\u2009\u202f")
_SCALE = re.compile(r"\s*(thousand|million|mn|billion|bn|trillion)\b", re.IGNORECASE)
_SCALES = {
    "thousand": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]{2,}", re.UNICODE)
# A capital inside a sentence: "Lima" in "the capital is Lima". The word that opens one always
# has a capital; it is held for a name where it is the subject: "Peru has", "Peru's".
_NAME = re.compile(r"(?<=[\w,;] )[^\W\d_a-z][^\W\d_]+", re.UNICODE)
_SUBJECT = re.compile(
    r"(?:^|: )\W{0,4}([^\W\d_a-z][^\W\d_]+)(?=['’]s\b|\s+(?:has|have|had|is|are|was|were)\b)"
)
# What was not found cannot be looked up.
_ABSENCE = re.compile(
    r"\bnot (?:found|known|given|stated|available)\b|\bno (?:page|information|result|source|data)\b"
    r"|\b(?:do|does|did) not (?:say|hold|give|state|mention|contain|provide|include)\b",
    re.IGNORECASE,
)
_COMMON = frozenset(
    "the and has have had was were are is be been its it of in on at to for from with by as than "
    "that this these those which who whose what when where not no so but or an more less most "
    "least larger smaller bigger greater higher lower older younger many much both each about "
    "approximately around roughly over under into out up down while therefore thus because since "
    "answer question result results source sources according based on compared there their they "
    "he she his her also only same different between people inhabitants total number "
    "thousand million billion trillion".split()
)


def check(
    text: str, known: Mapping[int, Source], outcomes: Mapping[int, Outcome] | None = None
) -> Checked:
    """Check every sentence of an answer against the sources it cites.

    Returns one `Citation` per mark, in reading order, and the sentences that are not
    supported. A sentence without a mark is held against everything the run has read and
    every sentence supported so far: a conclusion needs no mark of its own, a number from
    nowhere is found out. That something was not found is not a claim to check. A mark that is
    no source's number but that of a task without a result says what became of it (``outcomes``).
    """
    citations: list[Citation] = []
    unsupported: list[str] = []
    read = {n: _Reading(source) for n, source in known.items()}
    everything = _Facts.union(reading.facts for reading in read.values())
    for sentence in split_sentences(text):
        marks = _marks(sentence)
        bare = unmarked(sentence)
        said = _Facts.of(bare)
        if not said.numbers and (not said.words or _ABSENCE.search(bare)):
            continue
        if marks:
            problem = _missing(bare, _Facts.union(read[n].facts for n in marks if n in read))
            found = [
                Citation(n, bare, "", supported=False, problem=_absent(n, outcomes or {}))
                if n not in read
                else _citation(bare, said, read[n], problem)
                for n in marks
            ]
            citations += found
            supported = all(citation.supported for citation in found)
        else:
            supported = not _missing(bare, everything)
        if supported:
            everything = _Facts.union((everything, said))
        else:
            unsupported.append(sentence)
    return Checked(tuple(citations), tuple(unsupported))


def _absent(n: int, outcomes: Mapping[int, Outcome]) -> str:
    """Why nothing stands under the number ``n``."""
    match outcomes.get(n):
        case Failed(error, "denied"):
            return f"call {n} was denied, so there is no result [{n}] ({cut(error, 200)})"
        case Failed(error):
            return f"call {n} failed, so there is no result [{n}] ({cut(error, 200)})"
        case Skipped(because):
            return f"call {n} was skipped as call {because} has no result"
        case _:
            return f"this run has no result [{n}]"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What can be looked up in a text: its numbers, and its content words' stems."""

    numbers: frozenset[float] = frozenset()
    words: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str) -> _Facts:
        return cls(frozenset(value for value, _ in _numbers(text)), frozenset(_content(text)))

    @classmethod
    def union(cls, all_facts: Iterable[_Facts]) -> _Facts:
        parts = tuple(all_facts)
        return cls(
            frozenset().union(*(part.numbers for part in parts)),
            frozenset().union(*(part.words for part in parts)),
        )


class _Reading:
    """A source as far as it has been read: as a whole at first, piece by piece once cited."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.facts = _Facts.of(f"{source.title}\n{source.text}")

    @cached_property
    def pieces(self) -> list[tuple[str, _Facts]]:
        return [(piece, _Facts.of(piece)) for piece in _pieces(self.source.text)]

    def passage(self, sentence: str, words: frozenset[str]) -> str:
        """The piece that shares most with ``sentence``, whose content is ``words``."""
        numbers = _numbers(sentence)
        best = max(self.pieces, key=lambda p: _shared(numbers, words, p[1]), default=("", _Facts()))
        return best[0]


def _citation(sentence: str, said: _Facts, reading: _Reading, problem: str) -> Citation:
    """One mark: ``problem`` is what all the sentence's sources together lack."""
    source = reading.source
    if not problem and not _shared(_numbers(sentence), said.words, reading.facts):
        problem = "nothing of this sentence is in the cited result"
    return Citation(
        n=source.n,
        sentence=sentence,
        source=source.origin,
        task_id=source.task_id,
        title=source.title,
        passage="" if problem else reading.passage(sentence, said.words),
        supported=not problem,
        problem=problem,
    )


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text`` with their trailing ``[n]`` marks, blanks left out."""
    return [text[start:end] for start, end in sentence_spans(text)]


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the sentences of ``text`` start and end; between them only blanks are left."""
    for match in _SENTENCE.finditer(text):
        if sentence := match.group().strip():
            start = match.start() + match.group().index(sentence)
            yield start, start + len(sentence)


def spans(text: str, sentences: Iterable[str]) -> list[tuple[int, int]]:
    """Where ``sentences``, as `check` gives them, start and end in ``text``, in its order.

    One that was written twice is found as often as it is given, the first times it stands
    there: what is supported once is supported from then on. One that is only a part of a
    sentence of ``text`` is not found.
    """
    left = Counter(sentences)
    found = []
    for start, end in sentence_spans(text):
        if left[text[start:end]] > 0:
            left[text[start:end]] -= 1
            found.append((start, end))
    return found


def _pieces(text: str, width: int = 300) -> Iterator[str]:
    """The lines of ``text``; those longer than ``width`` in pieces that overlap by half."""
    for line in filter(None, map(str.strip, text.splitlines())):
        for at in range(0, max(1, len(line) - width // 2), width // 2):
            yield line[at : at + width]


def _shared(numbers: Iterable[tuple[float, float]], words: frozenset[str], there: _Facts) -> int:
    """How much of a sentence stands ``there``; a number counts three words."""
    hits = sum(_written(number, there.numbers) for number in numbers)
    return len(words & there.words) + 3 * hits


def _marks(sentence: str) -> list[int]:
    numbers = (int(n) for m in MARK.finditer(sentence) for n in m.group(1).split(","))
    return list(dict.fromkeys(numbers))


def unmarked(sentence: str) -> str:
    """``sentence`` without its marks and its number in a list, as `Citation.sentence` has it."""
    words = MARK.sub("", _ITEM.sub("", sentence, count=1))
    return re.sub(r"(?<!\s)\s+(?=[.!?,;](?!\d))", "", words).strip()


def _missing(sentence: str, known: _Facts) -> str:
    """What of ``sentence`` is not in ``known``, in words; empty when it is supported."""
    for number in _numbers(sentence):
        if not _written(number, known.numbers):
            return f"the number {number[0]:,.15g} is not in the cited result"
    for name in (*_SUBJECT.findall(sentence), *_NAME.findall(sentence)):
        if name[0].isupper() and not _content(name) <= known.words:
            return f"the name {name!r} is not in the cited result"
    words = _content(sentence)
    absent = words - known.words
    if len(absent) > (1 - WORDS_NEEDED) * len(words):
        listed = ", ".join(repr(word) for word in sorted(absent)[:4])
        return f"the cited result does not mention {listed}"
    return ""


def _content(text: str) -> set[str]:
    """Content words, folded to lower case and to their first six letters (a light stem)."""
    words = (word.casefold() for word in _WORD.findall(text))
    return {word[:6] for word in words if len(word) > 2 and word not in _COMMON}


def _numbers(text: str) -> list[tuple[float, float]]:
    """Numbers in ``text`` as (value, half a unit of the last digit written)."""
    found: list[tuple[float, float]] = []
    text = text.replace("\N{MINUS SIGN}", "-")
    for match in _NUMBER.finditer(text):
        digits = match.group().translate(_PARTING)
        decimals = len(digits.partition(".")[2])
        scale = 1.0
        if after := _SCALE.match(text, match.end()):
            scale = _SCALES[after.group(1).lower()]
        found.append((float(digits) * scale, 0.5 * 10.0**-decimals * scale))
    return found


def _written(number: tuple[float, float], there: Iterable[float]) -> bool:
    """Whether a value in ``there``, rounded as ``number`` was written, reads the same.

    "19.1 million" reads 19,116,201; a whole number written in full must match exactly.
    """
    value, half = number
    if math.isinf(value):
        return False  # of so many digits that they cannot be told apart
    slack = half if half > 0.5 or not value.is_integer() else 0.0
    slack += 1e-12 * abs(value)  # for scaled decimals, which are not exact
    return any(abs(value - other) <= slack for other in there)
