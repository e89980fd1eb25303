"""Is this text a right answer to that question? Pure, and strict: no model is asked.

Numbers may be written in any common way and be 1 % off; names may lack their accents. Where
the text has a part that begins with ``Answer:``, only the last such part counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agentpar.miniweb.text import fold

Kind = Literal["comparison", "multi-hop", "aggregation", "unanswerable", "conflicting"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A fact a question rests on: ``page`` (a path) holds the words ``says``; ``search`` is
    what one would type to find it."""

    page: str
    says: str
    search: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question whose answer is known from the tables.

    ``answer`` is how we would put it. A name is right if it is one of ``accepted``, and in a
    comparison if the text does not choose one of ``rejected``. A number is right within
    ``tolerance`` (a share) of one of ``numbers``; a conflicting question wants them all, or
    one of them and word that the sources disagree. ``hops`` is how many pages have to be
    read one after another: each hop's search needs the page before.
    """

    text: str
    kind: Kind
    answer: str
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    tolerance: float = 0.01
    evidence: tuple[Evidence, ...] = ()
    hops: int = 1

    @property
    def pages(self) -> tuple[str, ...]:
        """The paths of the pages that hold the facts."""
        return tuple(dict.fromkeys(e.page for e in self.evidence))


MOST_NUMBERS = 24
"""A text with more numbers than this is a list, not an answer."""


def score(question: Question, answer_text: str) -> bool:
    """Whether ``answer_text`` answers ``question`` rightly."""
    text = _final(answer_text)
    match question.kind:
        case "unanswerable":
            return _declines(text)
        case "comparison":
            return not _declines(text) and _chosen(question, text) == question.accepted[0]
        case "conflicting":
            return _reports(question, text)
        case "multi-hop" | "aggregation":
            if question.numbers:
                found = numbers_in(text)
                return len(found) <= MOST_NUMBERS and any(
                    _near(question, want, found) for want in question.numbers
                )
            return _names(question, text)


def numbers_in(text: str) -> tuple[tuple[float, ...], ...]:
    """The numbers of ``text``, each with all its readings: ``1.234`` may be 1.234 or 1234."""
    return tuple(_numbers(text))


_SCALES = {
    "thousand": 1e3, "k": 1e3, "million": 1e6, "mn": 1e6, "m": 1e6, "billion": 1e9, "bn": 1e9,
}  # fmt: skip
_WORDS = {
    word: float(i)
    for i, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}
_NUMBER = re.compile(
    r"(?<![\w.,])[-−]?(\d+(?:[.,'’ \u00a0\u202f_]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?)(?![\d])"
    r"(?:[ \u00a0-]?(thousand|million|billion|mn|bn|k|m)\b(?!²|\d))?",
    re.IGNORECASE,
)


def _numbers(text: str) -> Iterator[tuple[float, ...]]:
    # Citations are no numbers, and neither is the power in km^2.
    plain = re.sub(r"\[\d+(?:\s*,\s*\d+)*\]|\^\d", " ", text)
    for match in _NUMBER.finditer(plain):
        sign = -1.0 if match.group(0)[0] in "-−" else 1.0
        scale = (match.group(2) or "").lower()
        readings = dict.fromkeys(_readings(match.group(1)))
        # "474 m" is metres, "18.7M" is millions: keep both where the letter cannot tell.
        factors = (1.0, _SCALES[scale]) if scale == "m" else (_SCALES.get(scale, 1.0),)
        yield tuple(sign * r * f for r in readings for f in factors)
    for word in re.findall(r"[a-z]+", plain.lower()):
        if word in _WORDS and word != "one":
            yield (_WORDS[word],)


def _readings(digits: str) -> Iterator[float]:
    """``547,030`` is 547030; ``547.030`` may be that too; ``18.7`` and ``18,7`` are 18.7."""
    parts = re.split(r"[.,'’ \u00a0\u202f_]", digits)
    marks = re.findall(r"[.,'’ \u00a0\u202f_]", digits)
    if not marks:
        yield float(digits)
        return
    if all(len(part) == 3 for part in parts[1:]) and len(set(marks)) == 1:
        yield float("".join(parts))
    last = marks[-1]
    if last in ".," and marks.count(last) == 1 and not (last == "," and len(parts[-1]) == 3):
        yield float("".join(parts[:-1]) + "." + parts[-1])


def _near(question: Question, wanted: float, found: tuple[tuple[float, ...], ...]) -> bool:
    slack = abs(wanted) * question.tolerance + 1e-9
    return any(abs(reading - wanted) <= slack for readings in found for reading in readings)


def _final(text: str) -> str:
    """The part after the last ``Answer:``, or all of it."""
    marked = re.split(r"(?im)(?:^|(?<=[\s*#]))(?:final )?answer(?:\*\*)?\s*:", text)
    return marked[-1] if marked[-1].strip() else text


def _places(name: str, folded: str) -> list[int]:
    return [m.start() for m in re.finditer(rf"(?<!\w){re.escape(fold(name))}(?!\w)", folded)]


def _names(question: Question, text: str) -> bool:
    folded = fold(text)
    right = any(_places(name, folded) for name in question.accepted)
    wrong = any(_places(name, folded) for name in question.rejected)
    return right and (not wrong or _chosen(question, text) in question.accepted)


# --- who wins a comparison -------------------------------------------------------------

_MORE = r"more|larger|largest|bigger|biggest|greater|greatest|higher|highest|most|exceeds"
_LESS = r"fewer|fewest|smaller|smallest|less|lower|lowest|least"
_THAN = r"than|compared (?:to|with)|against|versus|vs|exceeds"


def _chosen(question: Question, text: str) -> str | None:
    """The entity that ``text`` says has more, or None where it does not say.

    Read from the last sentence that compares; then from an opening or closing sentence that
    names one of them and nothing else to weigh it against.
    """
    entities = (*question.accepted[:1], *question.rejected)
    folded = fold(text)
    named = [e for e in entities if _places(e, folded)]
    if len(named) <= 1:
        denied = re.search(rf"\b(?:not|{_LESS})\b", folded)
        return None if denied or not named else named[0]
    sentences = [s for s in re.split(r"(?<=[.!?;])\s+|\n+", folded) if s.strip()]
    for sentence in reversed(sentences):
        winner = _winner(entities, sentence)
        if winner:
            return winner
    for sentence in (sentences[0], sentences[-1]):
        alone = [e for e in entities if _places(e, sentence)]
        if len(alone) == 1 and not re.search(r"\d{3}", sentence):
            return alone[0]
    return None


def _winner(entities: tuple[str, ...], sentence: str) -> str | None:
    comparative = re.search(rf"\b(?:{_MORE}|{_LESS}|{_THAN})\b", sentence)
    if comparative is None:
        return None
    # "of Chile and Peru, ..." only lists the two.
    names = "|".join(re.escape(fold(e)) for e in sorted(entities, key=len, reverse=True))
    listing = rf"(?<!\w)(?:{names})(?:,? (?:and|or)|,) (?:{names})(?!\w)"
    while (
        re.search(listing, sentence) and len(re.findall(rf"(?<!\w)(?:{names})(?!\w)", sentence)) > 2
    ):
        sentence = re.sub(listing, "both", sentence, count=1)
    places = sorted((at, e) for e in entities for at in _places(e, sentence))
    if not places:
        return None
    than = re.search(rf"\b(?:{_THAN})\b", sentence)
    word = re.search(rf"\b(?:{_MORE}|{_LESS})\b", sentence)
    before = [e for at, e in places if than and at < than.start()]
    if before:
        winner = before[-1]
    else:
        near = word or than or comparative
        winner = min(places, key=lambda p: abs(p[0] - near.start()))[1]
    swapped = bool(re.search(rf"\b(?:{_LESS})\b", sentence)) and not re.search(
        rf"\b(?:{_MORE})\b", sentence
    )
    if re.search(r"\bnot\b|n't\b", sentence):
        swapped = not swapped
    if not swapped:
        return winner
    others = [e for e in entities if e != winner]
    return others[0] if len(others) == 1 else None


# --- saying that one does not know, and that sources differ ----------------------------

_UNKNOWN = re.compile(
    r"\b(?:unknown|unanswerable|undetermined|n/a|insufficient|"
    r"(?:is|are|was|were)(?: not|n't) (?:\w+ )?(?:known|available|found|given|stated|listed|"
    r"mentioned|provided|reported|specified|included|in|on|among|part|a real|enough|possible|"
    r"contained|present)|"
    r"not (?:known|available|found|given|stated|listed|mentioned|provided|reported|specified)|"
    r"(?:can|could|do|does|did)(?:not| not|n't) (?:be |been )?(?:\w+ )?(?:find|found|determine|"
    r"determined|answer|answered|know|say|tell|state|give|list|mention|contain|include|exist|"
    r"provide|report|establish|established|locate|located|"
    r"have (?:\w+ )?(?:information|data|figure|figures|page))|"
    r"unable to|nothing (?:was|is|about|on)|"
    r"no (?:\w+ ){0,2}(?:information|data|page|pages|record|records|result|results|evidence|"
    r"figure|answer|mention|source|sources|country|city|such))\b"
)
_GUESS = re.compile(
    r"\b(?:but|however|though|although)\b[^.]*\b(?:probably|likely|about|around|approximately|"
    r"roughly|estimated|i (?:think|believe|recall)|is|are)\b[^.]*\d"
)
_DIFFER = re.compile(
    r"\b(?:disagree|disagrees|differ|differs|differing|conflict|conflicts|conflicting|"
    r"inconsistent|contradict|contradicts|contradictory|discrepancy|"
    r"(?:do|does)(?: not|n't) agree|different (?:figure|figures|number|numbers|value|values))\b"
)


def _declines(text: str) -> bool:
    folded = fold(text)
    return bool(_UNKNOWN.search(folded)) and not _GUESS.search(folded)


def _reports(question: Question, text: str) -> bool:
    found = numbers_in(text)
    if len(found) > MOST_NUMBERS:
        return False
    had = sum(_near(question, want, found) for want in question.numbers)
    return had == len(question.numbers) or (had > 0 and bool(_DIFFER.search(fold(text))))
