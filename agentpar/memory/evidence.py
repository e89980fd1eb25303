"""What a run has read, and whether a sentence stands in it.

Pure text work: an answer's ``[n]`` marks are checked against the results of the run by
program, never by a model. A sentence is supported when every number and every proper
name in it, and most of its other content words, stand in what it cites, and when it does not
say the opposite of a choice that a program has made. That proves where a statement comes from,
not that the source is right.
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

_SHORT = 80
"""Characters of a result that is one value; a longer one speaks for itself."""


@dataclass(frozen=True, slots=True)
class Checked:
    citations: tuple[Citation, ...]
    unsupported: tuple[str, ...]


def sources(tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]) -> dict[int, Source]:
    """What the tasks have brought, numbered from 1 in the order of their ids.

    A page (see `pages_of`) is a source by its address, and so is each of its ``others``; any
    value without a ``url`` by its tool call, whose arguments then count as read.
    """
    brought = [
        (id, value)
        for id in sorted(tasks)
        if isinstance(outcome := outcomes.get(id), Ok)
        for value in pages_of(outcome.value) or [outcome.value]
    ]
    numbers: dict[int, int] = {}
    for n, (id, _) in enumerate(brought, 1):
        numbers.setdefault(id, n)
    found: dict[int, Source] = {}
    for n, (id, value) in enumerate(brought, 1):
        args = fill(tasks[id].args, outcomes)
        given = ", ".join(cut(as_text(arg).replace("\n", " "), 200) for arg in args.values())
        call = f"{tasks[id].tool}({given})"
        page: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        origin, title = str(page.get("url") or call), str(page.get("title") or call)
        made_of: tuple[int, ...] = ()
        if origin == call:
            made_of = tuple(numbers[need] for need in tasks[id].needs if need in numbers)
        found[n] = Source(n, id, origin, title, as_text(value), " ".join(args), made_of)
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
    r"\bnot (?:be )?(?:found|known|given|stated|available|determined)\b"
    r"|\bno (?:page|information|result|source|data)\b"
    r"|\b(?:do|does|did)(?: not|n['’]t) (?:say|hold|give|state|mention|contain|provide|include)\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(r"\b(?:not|never|cannot|neither|nor)\b|n['’]t\b", re.IGNORECASE)
_DENIED = re.compile(rf"{_DENIAL.pattern}|\b(?:no|none|nothing|without|false)\b", re.IGNORECASE)
_DISAGREE = frozenset("disagree disagrees differ differs".split())
_MORE = frozenset(
    "more most larger largest bigger biggest greater greatest higher highest older oldest longer "
    "longest taller tallest deeper deepest wider widest heavier heaviest faster fastest".split()
)
_LESS = frozenset(
    "less least fewer fewest smaller smallest lower lowest younger youngest shorter shortest "
    "narrower narrowest lighter lightest slower slowest".split()
)
_COMPARING = _MORE | _LESS
# What a program does with figures, of which no result of it tells.
_COMBINED = frozenset("total sum combined together altogether average difference".split())
# Who has read a length writes that something is so long.
_MEASURES = {
    word: measure
    for measure, words in {
        "length": "long longer longest",
        "height": "high tall taller tallest",
        "depth": "deep deeper deepest",
        "width": "wide wider widest",
        "weight": "weigh weighs weighed heavy heavier heaviest",
        "speed": "fast faster fastest",
        "age": "old",
        "population": "populous",
    }.items()
    for word in words.split()
}
_COMMON = frozenset(
    "the and has have had was were are is be been its it of in on at to for from with by as than "
    "that this these those which who whose what when where not no so but or an more less most "
    "least larger smaller bigger greater higher lower older younger many much both each about "
    "approximately around roughly over under into out up down while therefore thus because since "
    "answer question result results source sources according based on compared there their they "
    "he she his her also only same different between people inhabitants total number "
    "another other say says "
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
    for reading in read.values():
        reading.trace(read)
    everything = _Facts.union(reading.facts for reading in read.values())
    denied = any(reading.denies(reading.source.text) for reading in read.values())
    for sentence in split_sentences(text):
        marks = _marks(sentence)
        bare = unmarked(sentence)
        said = _Facts.of(bare)
        if not said.numbers and (not said.words or _ABSENCE.search(bare)):
            continue
        if marks:
            problem = _problem(bare, said, [read[n] for n in marks if n in read])
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
            supported &= denied or not _denies(bare)
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
    """What can be looked up in a text: its numbers, its content words' stems, and what its
    words are as names (`_forms`)."""

    numbers: frozenset[float] = frozenset()
    words: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    """Words that nobody need have read."""

    @classmethod
    def of(cls, text: str) -> _Facts:
        words = {word.casefold() for word in _WORD.findall(text)}
        names = frozenset(form for word in words for form in _forms(word))
        return cls(frozenset(value for value, _ in _numbers(text)), _content(text), names)

    @classmethod
    def union(cls, all_facts: Iterable[_Facts]) -> _Facts:
        parts = tuple(all_facts)
        return cls(
            frozenset().union(*(part.numbers for part in parts)),
            frozenset().union(*(part.words for part in parts)),
            frozenset().union(*(part.names for part in parts)),
            frozenset().union(*(part.free for part in parts)),
        )


class _Reading:
    """A source as far as it has been read: as a whole at first, piece by piece once cited."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.own = _Facts.of(f"{source.title}\n{source.text}")
        self.facts = _Facts.union((self.own, _Facts(words=_content(source.about))))
        self.leaves: list[_Reading] = []
        """What a call with one short result has made it of: that which was not made itself."""
        self.taken: frozenset[float] = frozenset()
        """The numbers that went into it, through calls of its kind."""

    def trace(self, read: Mapping[int, _Reading]) -> None:
        """Find the leaves among what was ``read``."""
        if len(self.source.text) > _SHORT:
            return
        leaves: dict[int, _Reading] = {}
        ahead, seen = [self], {self.source.n}
        while ahead:
            call = ahead.pop()
            self.taken |= call.own.numbers
            for n in call.source.made_of:
                if n in read and n not in seen:
                    seen.add(n)
                    if read[n].source.made_of:
                        ahead.append(read[n])
                    else:
                        leaves[n] = read[n]
        self.leaves = list(leaves.values())

    @cached_property
    def title(self) -> _Facts:
        return _Facts.of(self.source.title)

    def carrying(self, sentence: str, said: _Facts) -> _Facts:
        """What ``sentence`` may find here.

        A result that was worked out says little by itself, so what went into it lends its words:
        of a page, those beside the figure that was taken. It lends the names in its titles too,
        but not to a comparison, for which of them is more is not in a figure, and not where the
        sentence names some of what a figure was made of, and not the rest.
        """
        if self.choice:
            return _Facts.union((self.lent, _Facts(free=_stems(frozenset().union(*self.tells)))))
        if not self.leaves or _says(sentence, _COMPARING):
            return self.facts
        named = [bool(said.words & title.words) for title in self.titles]
        if any(named) and not all(named):
            return self.facts
        owners = _Facts.union(self.titles)
        if len(self.leaves) > 1:  # so many names would outweigh what is said of them
            owners = _Facts(names=owners.names, free=owners.words)
        return _Facts.union((self.lent, owners, _Facts(free=_stems(_COMBINED))))

    @cached_property
    def lent(self) -> _Facts:
        beside = (leaf.beside(self.taken) for leaf in self.leaves)
        return _Facts.union((self.facts, *beside))

    @cached_property
    def titles(self) -> list[_Facts]:
        """What the title of each leaf has and not those of all leaves: whose figure it is."""
        whole = [leaf.title for leaf in self.leaves]
        shared = frozenset.intersection(*(title.words for title in whole))
        return [
            _Facts(words=title.words - shared if len(whole) > 1 else title.words, names=title.names)
            for title in whole
        ]

    def beside(self, numbers: frozenset[float]) -> _Facts:
        """The words of a call and its result, or those of a page that stand beside ``numbers``."""
        if self.source.origin == self.source.title:
            return _Facts(words=self.facts.words)
        near = (facts.words for _, facts in self.pieces if facts.numbers & numbers)
        return _Facts(words=frozenset().union(*near))

    @cached_property
    def choice(self) -> tuple[str, ...]:
        """The names in quotes of which this call has chosen one, that first; () if it has not."""
        source = self.source
        if source.origin != source.title or not re.match(r"[^\W\d_]", source.text):
            return ()
        quoted = re.findall(r"'([^'\n]+)'|\"([^\"\n]+)\"", source.title)
        names = dict.fromkeys(single or double for single, double in quoted)
        if source.text not in names or len(names) < 2:
            return ()
        return (source.text, *(name for name in names if name != source.text))

    @property
    def tells(self) -> tuple[frozenset[str], frozenset[str]]:
        """Words of comparison that fit what was chosen, and those that fit what was not.

        Of ``'Nile' if a > b`` it is not known whether a is the Nile's, so the second are none.
        """
        title = self.source.title
        if "argmax" in title or "argmin" in title:
            return (_LESS, _MORE) if "argmin" in title else (_MORE, _LESS)
        if (">" in title) == ("<" in title):
            return frozenset(), frozenset()
        return (_MORE if ">" in title else _LESS), frozenset()

    def denies(self, passage: str) -> bool:
        """Whether ``passage`` says that something is not so, or the title does."""
        return any(map(_DENIED.search, (passage, self.source.title)))

    def judges(self, sentence: str) -> bool:
        """Whether it says which is more, and that is what this call has found out."""
        return bool(self.choice) and any(_says(sentence, words) for words in self.tells)

    def against(self, sentence: str) -> str:
        """What in ``sentence`` is the opposite of what this call has worked out."""
        if self.source.text == "false" and not _DENIED.search(sentence):
            return "the cited result is false"
        if not self.choice:
            return ""
        chosen, *others = self.choice
        right = chosen
        if self.judges(sentence):
            subject = _subject(sentence, self.choice)
            turned = not _says(sentence, self.tells[0])
            if turned != _denies(sentence):
                right = others[0] if len(others) == 1 else ""
        else:
            named = _named(sentence, self.choice)
            subject = chosen if chosen in named else "".join(named[-1:])
        return f"the cited result is {chosen!r}" if subject and subject != right else ""

    @cached_property
    def pieces(self) -> list[tuple[str, _Facts]]:
        return [(piece, _Facts.of(piece)) for piece in _pieces(self.source.text)]

    def passage(self, sentence: str, words: frozenset[str]) -> str:
        """The piece that shares most with ``sentence``, whose content is ``words``."""
        numbers = _numbers(sentence)
        best = max(self.pieces, key=lambda p: _shared(numbers, words, p[1]), default=("", _Facts()))
        return best[0]


def _named(text: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that stand in ``text``, in its order; of one in another the longer."""
    known = {name.casefold(): name for name in sorted(names, key=len, reverse=True)}
    found = re.findall(rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)", text.casefold())
    return [known[name] for name in found]


def _subject(sentence: str, names: Iterable[str]) -> str:
    """Of which of ``names`` a comparison says something, "" if of none of them: the last before
    "than", or before the word that compares, or of all."""
    end = re.search(r"\bthan\b", sentence) or re.search(
        rf"\b(?:{'|'.join(_COMPARING)})\b", sentence, re.IGNORECASE
    )
    before = _named(sentence[: end.start()], names) if end else []
    return (before or _named(sentence, names) or [""])[-1]


def _says(sentence: str, words: frozenset[str]) -> bool:
    return not words.isdisjoint(map(str.casefold, _WORD.findall(sentence)))


def _denies(sentence: str) -> bool:
    """Whether it says that something is not so; that it was not found is another matter."""
    return bool(_DENIAL.search(sentence)) and not _ABSENCE.search(sentence)


def _problem(sentence: str, said: _Facts, cited: list[_Reading]) -> str:
    """What speaks against ``sentence`` in what it cites, all taken together; "" if nothing."""
    known = _Facts.union(reading.carrying(sentence, said) for reading in cited)
    if problem := _missing(sentence, known):
        return problem
    for reading in cited:
        if problem := reading.against(sentence):
            return problem
    if _denies(sentence) and not any(
        reading.denies(reading.passage(sentence, said.words)) or reading.judges(sentence)
        for reading in cited
    ):
        return "the cited result denies nothing"
    return ""


def _citation(sentence: str, said: _Facts, reading: _Reading, problem: str) -> Citation:
    """One mark: ``problem`` is what all the sentence's sources together lack."""
    source = reading.source
    if not problem and not _shared(
        _numbers(sentence), said.words, reading.carrying(sentence, said)
    ):
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
        if name[0].isupper() and _content(name) and not _forms(name.casefold()) & known.names:
            return f"the name {name!r} is not in the cited result"
    words = _content(sentence) - known.free
    if len(_numbers(sentence)) > 1:
        words -= _stems(_DISAGREE)  # both figures were looked up, and they are not the same
    absent = words - known.words
    if len(absent) > (1 - WORDS_NEEDED) * len(words):
        said = {word.casefold() for word in _WORD.findall(sentence)}
        listed = ", ".join(repr(word) for word in sorted(said) if _content(word) & absent)
        return f"the cited result does not mention {listed}"
    return ""


def _content(text: str) -> frozenset[str]:
    """Content words, folded to lower case and to their stems."""
    words = {word.casefold() for word in _WORD.findall(text)}
    return _stems(word for word in words if len(word) > 2 and word not in _COMMON)


def _stems(words: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_stem, words))


def _stem(word: str) -> str:
    """A light stem: without an ending of the plural, and at most six letters."""
    word = _MEASURES.get(word, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
        if word.endswith("ie") and len(word) > 4:
            word = f"{word[:-2]}y"
        elif word.endswith(("xe", "che", "she", "sse", "zze")):
            word = word[:-1]
    return word[:6]


def _forms(name: str) -> frozenset[str]:
    """What a name is looked up by: itself, or without up to three letters of an ending.

    "Brazilian" is found in "Brazil"; but of what begins alike, Mauritius is not Mauritania.
    """
    return frozenset(name[:end] for end in range(max(6, len(name) - 3), len(name))) | {name}


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
