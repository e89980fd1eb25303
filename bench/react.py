"""The baseline of `e2e.py`: ReAct (Yao et al. 2022, arXiv 2210.03629), one call at a time.

The same server, tools, pages and reading of results as ours; only the order of work
differs: the model writes one thought and one action, waits for its observation, and goes
on. Each turn is appended to the chat, so that a server that caches prefixes reads only
what is new: the fairest form of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from agentpar.errors import AgentparError, PlanError
from agentpar.events import Usage
from agentpar.memory.evidence import sources
from agentpar.plan import Failed, Ok, Outcome, Task
from agentpar.planner.binding import bind
from agentpar.planner.parser import Call, PlanParser
from agentpar.planner.prompts import describe_tool, observations
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.tools.base import Tool
from agentpar.tools.data import to_data

MAX_STEPS = 10

_SYSTEM = """\
You answer a question with tools, one step at a time. Each of your turns is either

Thought: what to do next
Action: tool(argument="value")

after which you are given the result, or, when the results hold the answer,

Thought: what the results say
Answer: the answer

Use only the results. What calc has worked out is right. If sources disagree, give what each \
says. If the results do not hold the answer, write: Answer: not found

Tools:
{tools}"""

_EXAMPLES = (
    (
        "Which is longer, the Nile or the Danube?",
        (
            'Thought: I need both lengths.\nAction: web_lookup(query="Nile", find="length")',
            'web_lookup(query="Nile", find="length") = 6650\n[1] Nile - Atlas: Length | 6,650 km',
        ),
        (
            'Thought: Now the Danube.\nAction: web_lookup(query="Danube", find="length")',
            'web_lookup(query="Danube", find="length") = 2850\n'
            "[1] Danube - Atlas: Length | 2,850 km",
        ),
        (
            "Thought: I compare them.\nAction: "
            "calc(expression=\"argmax({'Nile': a, 'Danube': b})\", a=6650, b=2850)",
            "[1] calc(expression=\"argmax({'Nile': a, 'Danube': b})\", a=6650, b=2850) = Nile",
        ),
        ("Thought: The Nile is longer.\nAnswer: the Nile is longer", ""),
    ),
    (
        "How many people live in the capital of Kenya?",
        (
            'Thought: I need the capital.\nAction: web_lookup(query="Kenya", find="capital")',
            'web_lookup(query="Kenya", find="capital") = Nairobi\n'
            "[1] Kenya - Atlas: Capital | Nairobi",
        ),
        (
            'Thought: Now its population.\nAction: web_lookup(query="Nairobi", find="population")',
            'web_lookup(query="Nairobi", find="population") = 4397073\n'
            "[1] Nairobi - Atlas: Population | 4,397,073",
        ),
        ("Thought: I have it.\nAnswer: 4,397,073 people", ""),
    ),
    (
        "How deep is Lake Baikal? Do the sources agree?",
        (
            'Thought: I need the depth.\nAction: web_lookup(query="Lake Baikal", find="depth")',
            'web_lookup(query="Lake Baikal", find="depth") = 1642, elsewhere 1555\n'
            "[1] Baikal - Atlas: Depth | 1,642 m\n[2] Baikal - Lakes: Depth | 1,555 m",
        ),
        ("Thought: They differ.\nAnswer: the sources disagree: 1,642 m or 1,555 m", ""),
    ),
    (
        "Who wrote the anthem of Kenya?",
        (
            'Thought: I look it up.\nAction: web_lookup(query="Kenya", find="anthem author")',
            'web_lookup(query="Kenya", find="anthem author") failed: '
            "the pages about 'Kenya' say nothing about 'anthem author'",
        ),
        ("Thought: The results do not say.\nAnswer: not found", ""),
    ),
)


@dataclass(slots=True)
class Trace:
    """What one question cost and gave."""

    answer: str = ""
    usage: Usage = field(default_factory=Usage)
    calls: list[str] = field(default_factory=list)
    steps: int = 0


async def react(question: str, runtime: Runtime, tools: Mapping[str, Tool]) -> Trace:
    """Answer ``question`` step by step; ``Trace.answer`` is empty where no answer came."""
    trace = Trace()
    messages = [*_prompt(tools), Message("user", f"Question: {question}")]
    for _ in range(MAX_STEPS):
        trace.steps += 1
        text = await _write(runtime, tuple(messages), trace)
        messages.append(Message("assistant", text))
        head, mark, answer = text.partition("Answer:")
        if mark and "Action:" not in head:
            trace.answer = f"Answer: {answer.strip()}"
            return trace
        observation = await _act(text, tools, trace)
        messages.append(Message("user", f"Observation: {observation}"))
    return trace


def _prompt(tools: Mapping[str, Tool]) -> list[Message]:
    system = _SYSTEM.format(tools="\n".join(describe_tool(tool) for tool in tools.values()))
    messages = [Message("system", system)]
    for question, *turns in _EXAMPLES:
        asked = f"Question: {question}"
        for said, observed in turns:
            messages += [Message("user", asked), Message("assistant", said)]
            asked = f"Observation: {observed}"
    return messages


async def _write(runtime: Runtime, messages: tuple[Message, ...], trace: Trace) -> str:
    text = ""
    request = ModelRequest(messages, max_tokens=200, stop=("\nObservation:",))
    async with aclosing(runtime.stream(request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                trace.usage += piece
            else:
                text += piece
    return text


async def _act(text: str, tools: Mapping[str, Tool], trace: Trace) -> str:
    """Run the first action of ``text``; what went wrong is an observation too."""
    action = text.partition("Action:")[2].strip()
    parser = PlanParser()
    items = [*parser.feed(f"1. {action}\n"), *parser.close()]
    call = next((item for item in items if isinstance(item, Call)), None)
    if call is None:
        return 'not an action: write Action: tool(argument="value")'
    try:
        task = bind(call, tools, ())
    except PlanError as error:
        return str(error)
    trace.calls.append(action)
    outcome = await _run(task, tools[task.tool])
    tasks: dict[int, Task] = {1: task}
    outcomes: dict[int, Outcome] = {1: outcome}
    return observations(tasks, outcomes, (), sources(tasks, outcomes))


async def _run(task: Task, tool: Tool) -> Outcome:
    try:
        return Ok(to_data(await tool.call(**tool.validate(task.args))))
    except AgentparError as error:
        return Failed(str(error))
