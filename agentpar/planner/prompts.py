"""What the planner and the joiner say to the model: pure text.

Small models copy what they see, so each prompt shows complete examples rather than rules,
and whatever is the same in every run stands first: a server that caches prefixes then
reads it once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agentpar.errors import PlanError
from agentpar.events import PlanFault, Source
from agentpar.plaintext import one_line
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task, has_value, resolve
from agentpar.planner.parser import format_call
from agentpar.ports import Message
from agentpar.tools.base import Tool
from agentpar.tools.page import is_page, pages_of, unread_of

PAGE_CHARS = 900
"""Characters of a page that the joiner is shown."""
VALUE_CHARS = 400
"""Characters of any other result that the joiner is shown."""
USED_CHARS = 120
"""Characters of a result that only fed other calls (search hits, once a page was fetched)."""
RESULTS_CHARS = 11_000
"""Characters of all results together: tables of figures, 0.6 tokens a character, then leave room
for the rest of the prompt and the answer in a context of 8,192 tokens."""
LEAST_CHARS = 100
"""Characters of a call and its result below which showing it is of no use."""
MAX_RESULTS = RESULTS_CHARS // LEAST_CHARS
"""Results that have room at all where there are too many."""
FAULT_CHARS = 200
"""Characters of what was wrong with a line of the plan."""
MAX_FAULTS = 20
"""Faults that are told one by one."""
WHY_CHARS = 400
"""Characters of the reason for which another plan is asked for."""
OFFER_CHARS = 200
"""Characters of a call that is there already; a longer one is not shown."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the plan that a good planner writes for it."""

    question: str
    plan: str


EXAMPLES = (
    # With web_lookup, a fact is one call. The last example weighs most with small models.
    Example(
        "How many moons does Jupiter have?",
        '1. web_lookup(query="Jupiter", find="moons")\njoin()',
    ),
    Example(
        "Which figures do the sources give for the depth of Lake Baikal?",
        '1. web_lookup(query="Lake Baikal", find="depth")\njoin()',
    ),
    Example(
        "How many people live in the capital of Kenya?",
        '1. web_lookup(query="Kenya", find="capital")\n'
        '2. web_lookup(query=$1.value, find="population")\n'
        "join()",
    ),
    Example(
        "Which language is spoken in the country whose largest city is Casablanca?",
        '1. web_lookup(query="Casablanca", find="country")\n'
        '2. web_lookup(query=$1.value, find="language")\n'
        "join()",
    ),
    Example(
        "How long are the Rhine, the Elbe and the Oder together?",
        '1. web_lookup(query="Rhine", find="length")\n'
        '2. web_lookup(query="Elbe", find="length")\n'
        '3. web_lookup(query="Oder", find="length")\n'
        '4. calc(expression="a + b + c", a=$1.value, b=$2.value, c=$3.value)\n'
        "join()",
    ),
    Example(
        "Which is longer, the Nile or the Danube?",
        '1. web_lookup(query="Nile", find="length")\n'
        '2. web_lookup(query="Danube", find="length")\n'
        "3. calc(expression=\"argmax({'Nile': a, 'Danube': b})\", a=$1.value, b=$2.value)\n"
        "join()",
    ),
    # Without it, a fact is a search and a page.
    Example(
        "Which is longer, the Nile or the Danube?",
        '1. web_search(query="Nile length")\n'
        '2. web_search(query="Danube length")\n'
        '3. web_fetch(url=$1[0].url, find="length")\n'
        '4. web_fetch(url=$2[0].url, find="length")\n'
        "5. calc(expression=\"argmax({'Nile': a, 'Danube': b})\", a=$3.value, b=$4.value)\n"
        "join()",
    ),
    Example(
        "How many people live in the capital of Kenya?",
        '1. web_search(query="Kenya capital")\n'
        '2. web_fetch(url=$1[0].url, find="capital")\n'
        "3. web_search(query=$2.value)\n"
        '4. web_fetch(url=$3[0].url, find="population")\n'
        "join()",
    ),
)
"""Plans for the built-in tools; an agent takes those that its own tools can run."""

EXTENDED_EXAMPLES = (
    Example(
        "What do the pages on Lake Baikal say of its depth?",
        '1. web_search(query="Lake Baikal depth")\n'
        '2. web_fetch(url=$1[*].url, find="depth")\n'
        "join()",
    ),
    Example(
        "How high is Mont Blanc in kilometres? Look for Monte Bianco, too; the first will do.",
        '1. web_lookup(query="Mont Blanc", find="height")\n'
        '2. web_lookup(query="Monte Bianco", find="height")\n'
        '3. calc(expression="a / 1000", a=any($1.value, $2.value))\n'
        "join()",
    ),
)
"""The same in the wider language: small models write what they were shown, and hardly what they
were told (`bench/plan_language.py`)."""

_PLANNER = """\
You plan tool calls. Calls that do not need each other's results run in parallel.
Write one call per line, numbered from {first_id}, and end with join():
{first_id}. tool(argument="value")
$1 is the result of call 1; $1.name and $1[0] are parts of it. Use them only unquoted, as \
arguments of later calls.{extended}

Tools:
{tools}"""

_EXTENDED = """
$1[*].url as an argument makes the call once for each element of $1, and its result is the list \
of theirs. any($1, $2) is whichever of them comes first; some(2, $1, $2, $3) is a list of the \
first two."""

_SURGERY = """
If the result of {alive} is of no use any more, write cancel({first}), or replace({first}, \
tool(argument="value")) for another call in its place."""

_THERE = "\n\nResults that are there already (these calls cost nothing):"

_JOINER = """\
You answer a question from the results of tool calls.
First write the facts that answer it, each as one short sentence that ends with the number \
of its source, like [3]. Then write a last line that starts with "Answer:".
Use only the results. What calc has worked out is right. If sources disagree, give what each \
says. Only if the results say nothing about it, write: Answer: not found"""

_REPLAN = """\
If a result is missing that other calls could find, write instead only one line: \
Replan: what is missing"""

_JOIN_EXAMPLES = (
    (
        'web_lookup(query="Kenya", find="anthem author")\n[1] Kenya - Atlas: Capital | Nairobi',
        "",
        "Who wrote the anthem of Kenya?",
        "The results do not say who wrote it.\nAnswer: not found",
    ),
    (
        'web_lookup(query="Lake Baikal", find="depth") = 1642, elsewhere 1555\n'
        "[1] Baikal - Atlas: Depth | 1,642 m\n[2] Baikal - Lakes: Depth | 1,555 m",
        "",
        "Do the sources agree on the depth of Lake Baikal?",
        "Lake Baikal is 1,642 m deep [1]. Another source says 1,555 m [2].\n"
        "Answer: no, 1,642 m [1] or 1,555 m [2]",
    ),
    (
        'web_lookup(query="Rhine", find="length") = 1233\n[1] Rhine - Atlas: Length | 1,233 km\n'
        'web_lookup(query="Oder", find="length") = 840\n[2] Oder - Atlas: Length | 840 km\n'
        '[3] calc(expression="a + b", a=1233, b=840) = 2073',
        "2073 [3]",
        "How long are the Rhine and the Oder together?",
        "The Rhine is 1,233 km long [1]. The Oder is 840 km long [2].\nAnswer: 2,073 km [3]",
    ),
    (
        'web_lookup(query="Nile", find="length") = 6650\n[1] Nile - Atlas: Length | 6,650 km\n'
        'web_lookup(query="Danube", find="length") = 2850\n'
        "[2] Danube - Atlas: Length | 2,850 km\n"
        "[3] calc(expression=\"argmax({'Nile': a, 'Danube': b})\", a=6650, b=2850) = Nile",
        "Nile [3]",
        "Which is longer, the Nile or the Danube?",
        "The Nile is 6,650 km long [1]. The Danube is 2,850 km long [2].\n"
        "Answer: the Nile is longer [3]",
    ),
)
"""Results, what the plan has worked out, question, answer."""


def plan_messages(
    question: str,
    tools: Iterable[Tool],
    *,
    first_id: int = 1,
    examples: Sequence[Example] = (),
    instructions: str = "",
    why: str = "",
    extended: bool = False,
    surgery: bool = False,
    tasks: Mapping[int, Task] | None = None,
    outcomes: Mapping[int, Outcome] | None = None,
    offers: Iterable[tuple[str, Mapping[str, Any]]] = (),
) -> tuple[Message, ...]:
    """The planner's prompt. In a later round, ``tasks`` and ``outcomes`` tell what is known:
    what is done, what has failed, and what still runs.

    With ``extended`` it explains ``[*]``, ``any(…)`` and ``some(…)``, too; with ``surgery``,
    where calls still run, ``cancel(…)`` and ``replace(…)``. ``offers`` are calls that others have
    made: it shows them, and never what came of them.
    """
    system = _PLANNER.format(
        first_id=first_id,
        extended=_EXTENDED if extended else "",
        tools="\n".join(describe_tool(tool) for tool in tools),
    )
    if instructions:
        system += f"\n\n{instructions}"
    messages = [Message("system", system)]
    for example in examples:
        messages.append(Message("user", f"Question: {example.question}"))
        messages.append(Message("assistant", example.plan))
    tasks, outcomes = tasks or {}, outcomes or {}
    asked = f"Question: {question}"
    if tasks:
        asked += _so_far(tasks, outcomes)
    if there := _offered(offers):
        asked += "\n".join([_THERE, *there])
    if why:
        asked += f"\n\nStill missing: {one_line(why, WHY_CHARS)}"
        asked += f"\nPlan only the calls that find it, from {first_id} on, and end with join()."
    if surgery and (alive := sorted(tasks.keys() - outcomes.keys())):
        asked += _SURGERY.format(alive=_some_of(alive), first=f"${alive[0]}")
    messages.append(Message("user", asked))
    return tuple(messages)


def _offered(offers: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Each call on a line of its own. One that does not fit there as it is, and so could not be
    asked for in the same words, is left out."""
    lines: list[str] = []
    for tool, args in offers:
        try:
            line = format_call(tool, args)
        except ValueError:  # a value that no plan can hold
            continue
        if len(line) <= OFFER_CHARS and line == one_line(line):
            lines.append(line)
    return list(dict.fromkeys(lines))


def describe_tool(tool: Tool) -> str:
    """``web_search(query: string) -> list of {title, url, snippet}: Search the web.``"""
    required = set(tool.parameters.get("required", ()))
    parameters = ", ".join(
        f"{name}{'' if name in required else '?'}: {_type_name(schema)}"
        for name, schema in tool.parameters.get("properties", {}).items()
    )
    returns = f" -> {tool.returns}" if tool.returns else ""
    lines = [f"{tool.name}({parameters}){returns}: {tool.description}"]
    for name, schema in tool.parameters.get("properties", {}).items():
        if text := schema.get("description"):
            lines.append(f"  {name}: {text}")
    return "\n".join(lines)


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(json.dumps(option, ensure_ascii=False) for option in schema["enum"])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        names = (_type_name(option) for option in options if option.get("type") != "null")
        return " | ".join(dict.fromkeys(names))
    return str(schema.get("type", "any"))


def join_messages(
    question: str,
    tasks: Mapping[int, Task],
    outcomes: Mapping[int, Outcome],
    faults: Sequence[PlanFault] = (),
    sources: Mapping[int, Source] | None = None,
    *,
    final: bool = True,
    instructions: str = "",
) -> tuple[Message, ...]:
    """The joiner's prompt: the same whatever the order in which tasks ended."""
    results = observations(tasks, outcomes, faults, sources or {}) or "(no tool was called)"
    result = _result(tasks, outcomes, sources or {})
    asked = Message("user", _asked(question, results, result))
    return (*_before_results(final, instructions), asked)


def join_prefix(
    tasks: Mapping[int, Task],
    outcomes: Mapping[int, Outcome],
    faults: Sequence[PlanFault] = (),
    sources: Mapping[int, Source] | None = None,
    *,
    final: bool = True,
    instructions: str = "",
) -> tuple[Message, ...]:
    """What `join_messages` will begin with, however the tasks end that have no outcome yet.

    The last message is the beginning of its last one, all others are whole. The plan must be
    complete. That later results do not fit into `RESULTS_CHARS`, which shortens the earlier
    ones, cannot be ruled out: then the beginning is another. Where that is to be expected,
    because so many results of the present mean length would not fit, no result is in it.
    """
    telling = _Telling(tasks, outcomes, faults, sources or {})
    settled = itertools.takewhile(telling.is_settled, telling.ids)
    texts = [telling.told(id, PAGE_CHARS) for id in settled]
    expected = sum(map(len, texts)) * len(telling.ids)
    if expected > RESULTS_CHARS * len(texts):
        texts = []
    begun = "\n".join(texts)
    if 0 < len(texts) < len(telling.ids):
        begun += "\n"
    return (*_before_results(final, instructions), Message("user", f"{_RESULTS}{begun}"))


def _before_results(final: bool, instructions: str) -> tuple[Message, ...]:
    """What is the same in every prompt of an agent's joiner."""
    system = _JOINER if final else f"{_JOINER}\n{_REPLAN}"
    if instructions:
        system += f"\n\n{instructions}"
    messages = [Message("system", system)]
    for results, result, example, answer in _JOIN_EXAMPLES:
        messages.append(Message("user", _asked(example, results, result)))
        messages.append(Message("assistant", answer))
    return tuple(messages)


_RESULTS = "Results:\n"


def _asked(question: str, results: str, result: str) -> str:
    # The question last: it is nearest to what the model writes, and while tools still run
    # the results before it can be read already (`join_prefix`).
    asked = f"{_RESULTS}{results}\n\nQuestion: {question}"
    return f"{asked}\nThe plan's result: {result}" if result else asked


def _result(
    tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome], sources: Mapping[int, Source]
) -> str:
    """What the plan has worked out: the short values at its ends, such as ``Nile [3]``.

    A small model that has read two figures may still compare them wrongly; told the
    result again beside the question, it repeats it.
    """
    used = _used(tasks, outcomes)
    numbers = {source.task_id: source.n for source in sources.values()}
    ends: list[str] = []
    for id in sorted(tasks.keys() - used):
        outcome = outcomes.get(id)
        if isinstance(outcome, Ok) and tasks[id].needs and not is_page(outcome.value):
            short = _short(outcome.value)
            if short is not None:
                ends.append(f"{short} [{numbers[id]}]" if id in numbers else short)
    return _cut(", ".join(ends), PAGE_CHARS)


def observations(
    tasks: Mapping[int, Task],
    outcomes: Mapping[int, Outcome],
    faults: Sequence[PlanFault] = (),
    sources: Mapping[int, Source] | None = None,
) -> str:
    """Every task and plan fault with how it ended, by id, and the sources under their numbers.

    What is too much for `RESULTS_CHARS` is shortened or left out, as `_within` says.
    """
    telling = _Telling(tasks, outcomes, faults, sources or {})
    results = _within(RESULTS_CHARS, telling.ids, telling.used, telling.told)
    return "\n".join([*results, *telling.loose])


class _Telling:
    """What the joiner is told of each of ``ids``, the tasks and the unusable lines of the plan.

    ``used`` are the tasks that have fed another, ``loose`` the faults that have no number of
    their own.
    """

    def __init__(
        self,
        tasks: Mapping[int, Task],
        outcomes: Mapping[int, Outcome],
        faults: Sequence[PlanFault],
        sources: Mapping[int, Source],
    ) -> None:
        self.used = _used(tasks, outcomes)
        self._tasks = tasks
        self._outcomes = outcomes
        self._sources: dict[int, list[Source]] = {}
        for source in sources.values():
            self._sources.setdefault(source.task_id, []).append(source)
        self._unusable: dict[int, str] = {}
        loose: list[str] = []
        for fault in faults:
            text = _cut(fault.message, FAULT_CHARS)
            if fault.line:
                text = f"A line of the plan was not usable: {text} (line {fault.line!r:.160})"
            if fault.task_id is None or fault.task_id in tasks or fault.task_id in self._unusable:
                loose.append(text)
            else:
                self._unusable[fault.task_id] = text
        if len(loose) > MAX_FAULTS:
            loose[MAX_FAULTS:] = [f"and {len(loose) - MAX_FAULTS} more faults of the plan"]
        self.loose = loose
        self.ids = sorted([*tasks, *self._unusable])

    def told(self, id: int, room: int) -> str:
        """What is said of ``id``; its result in ``room`` characters or fewer."""
        return self._told(id, room, id in self.used)

    def is_settled(self, id: int) -> bool:
        """Whether `told` says the same of ``id`` however the tasks end that still run."""
        if id in self._unusable:
            return True
        shown = (id, *self._tasks[id].needs)
        if any(each in self._tasks and each not in self._outcomes for each in shown):
            return False
        if id in self.used or id not in self._awaited:
            return True
        return self._told(id, PAGE_CHARS, True) == self._told(id, PAGE_CHARS, False)

    @cached_property
    def _awaited(self) -> set[int]:
        """The tasks whose results may yet feed another."""
        waiting = (task for id, task in self._tasks.items() if id not in self._outcomes)
        return {need for task in waiting for need in task.needs}

    def _told(self, id: int, room: int, used: bool) -> str:
        if id in self._unusable:
            return self._unusable[id]
        sources = self._sources.get(id, [])
        return _observation(self._tasks[id], self._outcomes, sources, used, room)


def _within(
    limit: int, ids: Sequence[int], used: Collection[int], told: Callable[[int, int], str]
) -> list[str]:
    """What ``told(id, room)`` says of each of ``ids``, in about ``limit`` characters.

    Where the whole is longer, each id gets the same room. Where even that is too little, the
    ``used`` are left out first, then those behind, and how many is said.
    """
    whole = [told(id, PAGE_CHARS) for id in ids]
    if sum(map(len, whole)) <= limit:
        return whole
    kept = sorted(sorted(ids, key=lambda id: id in used)[: limit // LEAST_CHARS])
    room = limit // len(kept)
    short = [_cut(told(id, min(room, PAGE_CHARS)), room) for id in kept]
    left_out = len(ids) - len(kept)
    return [*short, f"({left_out} more results have no room here)"] if left_out else short


def _used(tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]) -> set[int]:
    """The tasks whose results have fed another call that went well."""
    return {
        need
        for id, task in tasks.items()
        if isinstance(outcomes.get(id), Ok)
        for need in task.needs
    }


def _observation(
    task: Task, outcomes: Mapping[int, Outcome], sources: Sequence[Source], used: bool, room: int
) -> str:
    """A task and how it ended; its result in ``room`` characters or fewer."""
    outcome = outcomes.get(task.id)
    head = _headline(task, outcomes)
    if not isinstance(outcome, Ok):
        return head
    marks = [f"[{source.n}] " for source in sources]
    if pages := pages_of(outcome.value):
        numbered = zip(marks or [""] * len(pages), pages, strict=True)
        share = room // len(pages)
        told = [f"{mark}{_cut(_page(page), share)}" for mark, page in numbered]
        unread = [f"Not read: {_cut(text, VALUE_CHARS)}" for text in unread_of(outcome.value)]
        return "\n".join([head, *told, *unread])
    mark = marks[0] if marks else ""
    if _short(outcome.value) is not None:
        return f"{mark}{head}"
    limit = USED_CHARS if used else VALUE_CHARS
    if isinstance(outcome.value, str):
        limit = PAGE_CHARS
    return f"{mark}{head}\n{_cut(_plain(outcome.value), min(limit, room))}"


def _so_far(tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]) -> str:
    """What became of the calls so far, for a planner that may refer to them.

    Each stands on one line that begins with ``$``, whatever its tool returned: none can be taken
    for a line of a plan.
    """
    ended, alive = tasks.keys() & outcomes.keys(), tasks.keys() - outcomes.keys()
    done = {id for id in ended if has_value(outcomes[id])}
    groups = {
        "Done already, usable as {}:": done,
        "Failed, without a result; do not repeat these:": ended - done,
        "Still running, usable as {}; do not plan these again:": alive,
    }
    told = {title: sorted(ids) for title, ids in groups.items() if ids}
    used = _used(tasks, outcomes)
    room = RESULTS_CHARS // len(told)

    def line(id: int, limit: int) -> str:
        return f"${id}: {_line(tasks[id], outcomes)}"

    text = ""
    for title, ids in told.items():
        lines = _within(room, ids, used, line)
        text += "\n\n" + "\n".join([title.format(_some_of(ids)), *lines])
    return text


def _some_of(ids: Sequence[int]) -> str:
    """The first references to ``ids``: ``$1, $2, …``."""
    return ", ".join([*(f"${id}" for id in ids[:2]), *(["…"] if len(ids) > 2 else [])])


def _line(task: Task, outcomes: Mapping[int, Outcome]) -> str:
    """A call and what became of it, on one line."""
    match outcomes.get(task.id):
        case None:
            text = _call(task, outcomes)
            if waits := [f"${need}" for need in task.needs if need not in outcomes]:
                text += f" waits for {', '.join(waits)}"
        case Ok(value) if not is_page(value) and _short(value) is None:
            text = f"{_call(task, outcomes)} = {_cut(_plain(value), USED_CHARS)}"
        case _:
            text = _headline(task, outcomes)
    return one_line(text)


def _headline(task: Task, outcomes: Mapping[int, Outcome]) -> str:
    """The call and, in short, how it ended: ``web_lookup(query="Nile", …) = 6650``."""
    call = _call(task, outcomes)
    match outcomes.get(task.id):
        case Ok(value):
            short = _found(value) if is_page(value) else _short(value)
            return call if short is None else f"{call} = {short}"
        case Failed(error):
            return f"{call} failed: {_cut(error, VALUE_CHARS)}"
        case Skipped(because):
            return f"{call} skipped, because call {because} has no value"
        case _:
            return f"{call} not finished"


def _call(task: Task, outcomes: Mapping[int, Outcome]) -> str:
    return format_call(task.tool, {k: _shown(v, outcomes) for k, v in task.args.items()})


def _shown(arg: Any, outcomes: Mapping[int, Outcome]) -> Any:
    """A reference as the short value it had, so that the joiner sees ``a=6650``."""
    if isinstance(arg, Ref) and isinstance(outcomes.get(arg.task), Ok):
        try:
            value = resolve(arg, outcomes)
        except PlanError:  # the task itself has failed with this very message
            return arg
        if isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 60):
            return value
    return arg


def _found(page: Mapping[str, Any]) -> str | None:
    """The page's value, and the numbers that other pages give instead: ``1642, elsewhere 1555``."""
    value = page.get("value")
    short = _short(value)
    if short is None or not isinstance(value, int | float):
        return short
    elsewhere = [other.get("value") for other in pages_of(page)[1:]]
    differing = [
        str(other)
        for other in elsewhere
        if isinstance(other, int | float) and abs(other - value) > 0.01 * abs(value)
    ]
    return ", elsewhere ".join([short, *dict.fromkeys(differing)])


def _short(value: Any) -> str | None:
    """A value that fits on the call's own line, or None."""
    text = _plain(value)
    return text if value is not None and len(text) <= 60 and "\n" not in text else None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _page(page: Mapping[str, Any]) -> str:
    title = str(page.get("title") or "")
    text = str(page.get("text") or "").strip()
    return f"{_cut(title, 80)}: {text}" if title else text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit].rstrip()} …"
