"""How many right answers the citation check marks, and how many wrong ones it lets pass.

The recorded answers of a real model (`memory_record.py`) are held against what they rest on. A
record keeps no contents, so each call is made once more on the mini-web, without latency; no model
is asked. A right answer may be marked with reason: many cite the wrong result. A wrong one may
pass with reason: it says what stands there, beside the question. So each right answer that passes
is also made wrong, in six ways, and of those each should be marked, but for another result that
says the same.

    python bench/citations.py --save
    python bench/citations.py --list
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine_facts
from memory_record import RECORDINGS, tools_of

from agentpar.events import Source
from agentpar.memory.evidence import MARK, check, sources
from agentpar.memory.learning.recorded import RecordedCall, RecordedTeam
from agentpar.miniweb import MiniWeb
from agentpar.plan import Failed, Ok, Outcome, Task

WAYS = (
    "a figure off by one",
    "a name from nowhere",
    "another name of the question",
    "the others of a sum left out",
    "the mark of another result",
    "a denial",
)
TITLE = "Recorded answers under the citation check"
NAME = re.compile(r"[A-Z]\w+(?: (?:(?:of|the) )*[A-Z]\w+)*")


@dataclass(frozen=True, slots=True)
class Case:
    """An answer of a model, and what it had read."""

    question: str
    answer: str
    right: bool
    known: Mapping[int, Source]

    def marks(self, answer: str) -> bool:
        """Whether something of ``answer``, to the same question, is marked."""
        return bool(check(answer, self.known).unsupported)

    @property
    def marked(self) -> bool:
        return self.marks(self.answer)

    @property
    def problems(self) -> list[str]:
        checked = check(self.answer, self.known)
        return list(dict.fromkeys(cited.problem for cited in checked.citations if cited.problem))

    @property
    def declines(self) -> bool:
        """Whether there is nothing in it to hold against anything, such as "not found"."""
        return not MARK.search(self.answer) and not self.marked


def task_of(call: RecordedCall) -> Task:
    """The call as it was made. The names of a calculation's values are not recorded; they are the
    letters of its expression in the order of the alphabet."""
    given = call.question.partition(": ")[2]
    args: dict[str, Any]
    if call.tool == "calc":
        expression, *values = given.rsplit(", ", len(call.needs))
        free = sorted(set(re.findall(r"\b[a-z]\b", re.sub(r"'[^']*'", "", expression))))
        args = {"expression": expression, **dict(zip(free, map(_value, values), strict=False))}
    else:
        query, _, find = given.rpartition(", ")
        args = {"query": query, "find": find}
    return Task(call.id, call.tool, args, call.needs)


def _value(text: str) -> Any:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


async def cases(teams: Sequence[RecordedTeam]) -> list[Case]:
    """The recorded teams that answered, with what their calls bring."""
    made: dict[str, Outcome] = {}
    found = []
    async with MiniWeb() as web:
        tools = {tool.name: tool for tool in tools_of(web.origin)}
        for team in teams:
            tasks, outcomes = {}, {}
            for call in team.calls:
                task = tasks[call.id] = task_of(call)
                if call.question not in made:
                    try:
                        value = await tools[call.tool].call(**task.args)
                        made[call.question] = Ok(value)
                    except Exception as error:
                        made[call.question] = Failed(str(error))
                if call.ok:
                    outcomes[call.id] = made[call.question]
            if team.conclusion:
                known = sources(tasks, outcomes)
                found.append(Case(team.question, team.conclusion, bool(team.right), known))
    return found


def spoilt(case: Case) -> Iterator[tuple[str, str]]:
    """The answer made wrong, each with the way in which."""
    text = case.answer
    bare = MARK.sub(lambda mark: "#" * len(mark.group()), text)
    for figure in re.finditer(r"\d[\d,]*(?<=\d)(?![\d.]*\d)", bare):
        last = str((int(figure.group()[-1]) + 1) % 10)
        yield WAYS[0], f"{text[: figure.end() - 1]}{last}{text[figure.end() :]}"
    asked = list(dict.fromkeys(NAME.findall(case.question.partition(" ")[2])))
    here = [name for name in asked if re.search(rf"\b{name}\b", text)]
    for name in here:
        yield WAYS[1], re.sub(rf"\b{name}\b", "Wakanda", text)
        for other in asked:
            if other not in here:
                yield WAYS[2], re.sub(rf"\b{name}\b", other, text)
    if together := re.search(rf"({NAME.pattern})(?:(?:, | and )(?:{NAME.pattern}))+", text):
        yield WAYS[3], f"{text[: together.start()]}{together[1]}{text[together.end() :]}"
    for mark in MARK.finditer(text):
        cited = {
            case.known[n].task_id for n in map(int, mark.group(1).split(",")) if n in case.known
        }
        for n, source in case.known.items():
            if source.task_id not in cited:
                yield WAYS[4], f"{text[: mark.start()]}[{n}]{text[mark.end() :]}"
    if (denied := re.sub(r"\b(is|are|has|have)\b", r"\1 not", text, count=1)) != text:
        yield WAYS[5], denied


def report(read: list[Case]) -> Iterator[str]:
    """Both tables, in markdown."""
    counts = Counter((case.right, case.marked) for case in read if not case.declines)
    yield "| answers that state something | marked | not marked |"
    yield "|---|---|---|"
    for right, name in ((True, "right"), (False, "wrong")):
        yield f"| {name} | {counts[right, True]} | {counts[right, False]} |"
    yield ""
    yield "| a right answer that passes, with | marked | not marked |"
    yield "|---|---|---|"
    fates = Counter(
        (way, case.marks(text))
        for case in read
        if case.right and not case.marked and not case.declines
        for way, text in spoilt(case)
    )
    for way in WAYS:
        yield f"| {way} | {fates[way, True]} | {fates[way, False]} |"


def listing(read: list[Case]) -> Iterator[str]:
    """Each answer once, with what is missing."""
    lines = Counter(
        f"{'right' if case.right else 'wrong'} {'marked' if case.marked else 'passes'}: "
        f"{case.question} -> {case.answer!r} {case.problems}"
        for case in read
        if not case.declines
    )
    for line, times in sorted(lines.items()):
        yield f"{times} x {line}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--list", action="store_true", help="print every answer with its fate")
    options.add_argument("--save", action="store_true", help="write results/citations.md")
    options.add_argument("--recording", type=Path, default=RECORDINGS / "qwen2.5-coder-0.5b.jsonl")
    chosen = options.parse_args()
    lines = chosen.recording.read_text(encoding="utf-8").splitlines()
    read = asyncio.run(cases([RecordedTeam.from_line(line) for line in lines]))
    made = list(report(read))
    print("\n".join(listing(read) if chosen.list else made))
    if chosen.save:
        machine_facts.save("citations", TITLE, made)


if __name__ == "__main__":
    main()
