"""The answer that needs no model: what a run has read when it must stop, and what is missing.

Pure text. It adds nothing: each line is a sentence of the joiner that was looked up, or a
result with its number.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentpar.events import Answered, Source
from agentpar.memory.evidence import check, split_sentences
from agentpar.plaintext import one_line
from agentpar.plan import Failed, Ok, Outcome, Skipped, Task
from agentpar.planner.parser import format_call

VALUE_CHARS = 300
"""Characters of a result that are shown."""


def partial_answer(
    round: int,
    why: str,
    written: str,
    tasks: Mapping[int, Task],
    outcomes: Mapping[int, Outcome],
    sources: Mapping[int, Source],
    at: float,
) -> Answered:
    """The best verified answer of a run that ``why`` has stopped.

    ``written`` is what the joiner had written by then: of it stay the sentences that cite
    something which carries them. Where there are none, the results themselves are the answer.
    """
    lines = _verified(written, sources) or [
        f"{source.title}: {one_line(source.text, VALUE_CHARS)} [{n}]"
        for n, source in sources.items()
    ]
    facts = "\n".join(lines)
    checked = check(facts, sources)
    missing = [
        f"{format_call(task.tool, task.args)} ({_why(outcomes.get(id))})"
        for id, task in tasks.items()
        if not isinstance(outcomes.get(id), Ok)
    ]
    end = f"Answer: not complete, the run was stopped by {why}"
    if missing:
        end += f"; missing: {'; '.join(missing)}"
    text = f"{facts}\n{end}" if facts else end
    return Answered(round, text, checked.citations, checked.unsupported, at)


def _verified(written: str, sources: Mapping[int, Source]) -> list[str]:
    """The sentences of ``written`` with a mark, all of whose marks lead to what carries them."""
    kept = []
    for sentence in split_sentences(written):
        found = check(sentence, sources)
        if found.citations and not found.unsupported:
            kept.append(sentence)
    return kept


def _why(outcome: Outcome | None) -> str:
    match outcome:
        case Failed(error):
            return one_line(error, VALUE_CHARS)
        case Skipped(because):
            return f"needs task {because}"
        case _:
            return "not begun"
