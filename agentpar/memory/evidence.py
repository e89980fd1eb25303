"""What a run has read, and whether a sentence stands in it.

Pure text work: an answer's ``[n]`` marks are checked against the results of the run by
program, never by a model. A sentence is supported when every number and every proper
name in it, and most of its other content words, stand in what it cites. That proves where
a statement comes from, not that the source is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentpar.events import Citation, Source
from agentpar.plan import Ok, Outcome, Task

WORDS_NEEDED = 0.6
"""Share of a sentence's content words that its sources must contain."""


@dataclass(frozen=True, slots=True)
class Checked:
    citations: tuple[Citation, ...]
    unsupported: tuple[str, ...]


def sources(tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]) -> dict[int, Source]:
    """What the tasks have brought, numbered from 1 in the order of their ids.

    A value with a ``url`` (a fetched page) is a source by that address, and so is each of
    its ``others``; any other value by its tool call, whose arguments then count as read.
    """
    found: dict[int, Source] = {}
    for id in sorted(tasks):
        outcome = outcomes.get(id)
        if not isinstance(outcome, Ok):
            continue
        given = ", ".join(str(arg) for arg in tasks[id].args.values())
        call = f"{tasks[id].tool}({given})"
        for value in (outcome.value, *_others(outcome.value)):
            page: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
            origin, title = str(page.get("url") or call), str(page.get("title") or call)
            n = len(found) + 1
            found[n] = Source(n, id, origin, title, as_text(value))
    return found


def _others(value: Any) -> list[Any]:
    others = value.get("others") if isinstance(value, Mapping) else None
    return list(others) if isinstance(others, list) else []


def as_text(value: Any) -> str:
    """A result as text to read: strings as they are, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        apart = ("text", "title", "others")
        rest = {key: item for key, item in value.items() if key not in apart and item is not None}
        facts = "\n".join(f"{key}: {as_text(item)}" for key, item in rest.items())
        return f"{facts}\n{value['text']}"
    return json.dumps(value, ensure_ascii=False, default=str)


_MARK = re.compile(r"\[(\d{1,6}(?:\s*,\s*\d{1,6})*)\]")
# A sentence ends at . ! ? before a space, or at a line's end; marks behind the stop belong to it.
_SENTENCE = re.compile(
    r"[^\n]+?(?:(?<!\b[A-Z])[.!?](?=\s|$|\[)(?:\s*\[\d[\d,\s]*\])*|(?=\n)|$)", re.UNICODE
)
_NUMBER = re.compile(r"(?<![\w.,])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.])-?\d+(?:\.\d+)?")
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_WORD = re.compile(r"[^\W\d_]{2,}", re.UNICODE)
# A capital inside a sentence: "Lima" in "the capital is Lima", not the word that opens it.
_NAME = re.compile(r"(?<=[\w,;] )[^\W\d_a-z][^\W\d_]+", re.UNICODE)
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


def check(text: str, known: Mapping[int, Source]) -> Checked:
    """Check every sentence of an answer against the sources it cites.

    Returns one `Citation` per mark, in reading order, and the sentences that are not
    supported. A sentence without a mark is held against everything the run has read and
    every sentence supported so far: a conclusion needs no mark of its own, a number from
    nowhere is found out. That something was not found is not a claim to check.
    """
    citations: list[Citation] = []
    unsupported: list[str] = []
    everything = "\n".join(map(_readable, known.values()))
    for sentence in split_sentences(text):
        marks = _marks(sentence)
        bare = _unmarked(sentence)
        if _ABSENCE.search(bare) or not (_numbers(bare) or _content(bare)):
            continue
        if marks:
            cited = [known[n] for n in marks if n in known]
            problem = _missing(bare, "\n".join(map(_readable, cited)))
            found = [_citation(n, bare, known.get(n), problem) for n in marks]
            citations += found
            supported = all(citation.supported for citation in found)
        else:
            supported = not _missing(bare, everything)
        if supported:
            everything += f"\n{bare}"
        else:
            unsupported.append(sentence)
    return Checked(tuple(citations), tuple(unsupported))


def _citation(n: int, sentence: str, source: Source | None, problem: str) -> Citation:
    """One mark: ``problem`` is what all the sentence's sources together lack."""
    if source is None:
        return Citation(n, sentence, "", supported=False, problem=f"this run has no result [{n}]")
    if not problem and not _shared(sentence, _readable(source)):
        problem = "nothing of this sentence is in the cited result"
    passage = "" if problem else best_passage(sentence, source.text)
    return Citation(
        n, sentence, source.origin, source.task_id, source.title, passage, not problem, problem
    )


def _readable(source: Source) -> str:
    return f"{source.title}\n{source.text}"


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text`` with their trailing ``[n]`` marks, blanks left out."""
    return [part for part in (m.group().strip() for m in _SENTENCE.finditer(text)) if part]


def best_passage(sentence: str, text: str, width: int = 300) -> str:
    """The line of ``text`` that shares most with ``sentence``, cut to ``width`` characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return max(lines, key=lambda line: _shared(sentence, line), default="")[:width]


def _shared(sentence: str, text: str) -> int:
    """How much of ``sentence`` stands in ``text``; a number counts three words."""
    there = [value for value, _ in _numbers(text)]
    hits = sum(_written(number, there) for number in _numbers(sentence))
    return len(_content(sentence) & _content(text)) + 3 * hits


def _marks(sentence: str) -> list[int]:
    numbers = (int(n) for m in _MARK.finditer(sentence) for n in m.group(1).split(","))
    return list(dict.fromkeys(numbers))


def _unmarked(sentence: str) -> str:
    return re.sub(r"\s+(?=[.!?,;])", "", _MARK.sub("", sentence)).strip()


def _missing(sentence: str, text: str) -> str:
    """What of ``sentence`` does not stand in ``text``, in words; empty when it is supported."""
    there = [value for value, _ in _numbers(text)]
    for number in _numbers(sentence):
        if not _written(number, there):
            return f"the number {number[0]:,.10g} is not in the cited result"
    known = _content(text)
    for name in _NAME.findall(sentence):
        if not _content(name) <= known:
            return f"the name {name!r} is not in the cited result"
    words = _content(sentence)
    absent = words - known
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
    for match in _NUMBER.finditer(text):
        digits = match.group().replace(",", "")
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
    slack = half if half > 0.5 or value != int(value) else 0.0
    return any(abs(value - other) <= slack + 1e-9 * abs(other) for other in there)


def mark_unsupported(text: str, unsupported: Iterable[str]) -> str:
    """``text`` with `` [unsupported]`` behind each sentence in ``unsupported``."""
    for sentence in unsupported:
        text = text.replace(sentence, f"{sentence} [unsupported]", 1)
    return text
