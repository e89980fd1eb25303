"""Families of mini-web questions that need the same facts again and again, with their answers.

A family is a form of question. Its questions are drawn with a seed so that each shares a page
with one before it: that is what a bank over several runs can live on. The families for training
and those held out have no form in common, and no question either (`make_questions` splits by
text). Nothing here looks at a page or a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from agentpar.errors import UsageError
from agentpar.miniweb.grading import Kind
from agentpar.miniweb.questions import Question, Split, make_questions


@dataclass(frozen=True, slots=True)
class Family:
    """Questions whose text fits ``form``."""

    name: str
    kind: Kind
    form: str
    held_out: bool = False

    @property
    def split(self) -> Split:
        return "test" if self.held_out else "train"


FAMILIES = (
    Family("more people", "comparison", r"Which country has more people, "),
    Family("largest area", "aggregation", r"Which has the largest area: "),
    Family("people together", "aggregation", r"How many people live in .* together\?"),
    Family("people of a capital", "multi-hop", r"How many people live in the capital of "),
    Family("combined area", "aggregation", r"What is the combined area of ", held_out=True),
    Family("capitals compared", "comparison", r"Which country's capital city has ", held_out=True),
    Family("height of an airport", "multi-hop", r"What is the elevation, in feet, ", held_out=True),
)

SEED = 7
"""Of the questions of the benches."""

_POOL = 180
"""Questions of a kind among which a family's are looked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its family."""

    family: Family
    question: Question


def family_questions(family: Family, n: int, seed: int) -> list[Asked]:
    """``n`` questions, each of which, where that can be had, shares a page with an earlier one."""
    made = make_questions(_POOL, seed, kinds=[family.kind], split=family.split)
    pool = [question for question in made if re.match(family.form, question.text)]
    if len(pool) < n:
        raise UsageError(f"family {family.name!r} has {len(pool)} questions, {n} were asked for")
    random = Random(f"{family.name} {seed}")
    chosen = [pool.pop(random.randrange(len(pool)))]
    while len(chosen) < n:
        known = {page for question in chosen for page in question.pages}
        near = [question for question in pool if known & set(question.pages)]
        question = random.choice(near or pool)
        pool.remove(question)
        chosen.append(question)
    return [Asked(family, question) for question in chosen]


def questions(
    n: int, seed: int, *, families: Sequence[Family] = FAMILIES, skip: int = 0
) -> Iterator[Asked]:
    """``n`` questions of each of ``families``, which take turns, so that any beginning is of them
    all. ``skip`` leaves out as many of each: those of another day."""
    each = [family_questions(family, skip + n, seed)[skip:] for family in families]
    for turn in zip(*each, strict=True):
        yield from turn
