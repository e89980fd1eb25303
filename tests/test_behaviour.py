"""What real 0.5B weights make of our prompts on the mini-web: shares, never exact words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser

import httpx
import pytest

from agentpar import Agent, Ok
from agentpar.answer import Answer
from agentpar.events import Citation, PlanEnded, PlanFault, TaskPlanned
from agentpar.miniweb import MiniWeb
from agentpar.miniweb.questions import Question, make_questions
from agentpar.miniweb.text import fold
from agentpar.tools.calc import calc
from agentpar.tools.lookup import web_lookup
from agentpar.tools.search import web_search
from agentpar.tools.web import web_fetch

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]


@cache
def questions() -> list[Question]:
    return make_questions(10, seed=1, kinds=["comparison"])


@dataclass(frozen=True)
class Plan:
    """What a plan came to: the arguments of its calls, and the lines that are none."""

    question: Question
    args: list[object] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def both(self) -> tuple[str, ...]:
        return *self.question.accepted, *self.question.rejected


ANSWERED = 5
"""Of so many questions the answer is awaited too, of the others only the plan."""


@dataclass(frozen=True)
class Asked:
    """Ten plans, some answers, and each page they cite as the mini-web serves it."""

    plans: Sequence[Plan]
    answers: Sequence[Answer]
    pages: Mapping[str, str]

    @property
    def citations(self) -> list[Citation]:
        return [citation for answer in self.answers for citation in answer.citations]


@pytest.fixture(scope="module")
def asked(vllm_05b_url: str) -> Asked:
    """Every question under the grammar, all at the same time."""

    async def ask() -> Asked:
        async with agent_on_mini_web(vllm_05b_url, grammar=True) as agent:
            plans, answers = await side_by_side(agent, answered=ANSWERED)
            cited = {c.source for answer in answers for c in answer.citations}
            pages = await served(url for url in cited if url.startswith("http"))
            return Asked(plans, answers, pages)

    return asyncio.run(ask())


async def test_most_plans_parse_and_name_both_without_a_grammar(vllm_05b_url: str) -> None:
    """By the prompt alone, at least 8 of 10 plans have no fault and look up both."""
    async with agent_on_mini_web(vllm_05b_url, grammar=False) as agent:
        plans, _ = await side_by_side(agent, answered=0)
    assert naming_both(plan for plan in plans if not plan.faults) >= 8, plans


def test_every_plan_under_the_grammar_binds(asked: Asked) -> None:
    """No line is lost: not to an unknown tool, a wrong argument or a forward reference."""
    assert [plan.faults for plan in asked.plans] == [[]] * len(questions())
    assert naming_both(asked.plans) >= 8, asked.plans


def test_most_runs_read_several_pages(asked: Asked) -> None:
    """What was planned works: the lookups find pages to read, in at least 4 of 5 runs."""
    assert sum(len(urls_read(answer)) >= 2 for answer in asked.answers) >= 4


def test_most_answers_cite(asked: Asked) -> None:
    """At least half of the answers carry a mark, and some of the marks are supported."""
    assert sum(bool(answer.citations) for answer in asked.answers) >= ANSWERED / 2
    assert any(citation.supported for citation in asked.citations)


def test_what_is_cited_was_read_in_this_run(asked: Asked) -> None:
    """A citation names a page that this very run has fetched, or one of its calls."""
    for answer in asked.answers:
        for citation in answer.citations:
            if citation.source.startswith("http"):
                assert citation.source in urls_read(answer)
            elif citation.source:
                assert citation.source.startswith(f"{answer.tasks[citation.task_id].tool}(")
            else:
                assert "no result" in citation.problem


def test_a_supported_citation_has_its_passage_on_the_page(asked: Asked) -> None:
    """The passage stands on the page as it is served; a claim without one says why."""
    for citation in asked.citations:
        assert citation.supported == bool(citation.passage) == (not citation.problem)
    on_pages = [c for c in asked.citations if c.supported and c.source in asked.pages]
    assert on_pages
    for citation in on_pages:
        # The value that was found is a line of its own among what was read of a page.
        passage = plain(citation.passage.removeprefix("value: "))
        assert passage in asked.pages[citation.source], citation


# ── Running and reading ──────────────────────────────────────────────────────────


@asynccontextmanager
async def agent_on_mini_web(url: str, *, grammar: bool) -> AsyncIterator[Agent]:
    async with MiniWeb(latency=0.02) as web:
        lookup = web_lookup(
            search=web_search(url=web.origin),
            fetch=web_fetch(allow_origins=[web.origin], max_chars=600),
        )
        async with Agent([lookup, calc], model=url, grammar=grammar, max_replans=0) as agent:
            yield agent


async def side_by_side(agent: Agent, *, answered: int) -> tuple[list[Plan], list[Answer]]:
    """The plans of all questions and the answers of the first few; all run at once."""

    async def one(number: int, question: Question) -> tuple[Plan, Answer | None]:
        plan = Plan(question)
        async with agent.run(question.text) as run:
            async for event in run:
                match event:
                    case TaskPlanned():
                        plan.args.extend(event.task.args.values())
                    case PlanFault():
                        plan.faults.append(event.message)
                    case PlanEnded():
                        break
            return plan, await run.wait() if number < answered else None

    done = await asyncio.gather(*(one(n, q) for n, q in enumerate(questions())))
    return [plan for plan, _ in done], [answer for _, answer in done if answer is not None]


def naming_both(plans: Iterable[Plan]) -> int:
    """How many of the plans have both names in the arguments of their calls."""
    return sum(
        all(fold(name) in fold(" ".join(map(str, plan.args))) for name in plan.both)
        for plan in plans
    )


def urls_read(answer: Answer) -> set[str]:
    values = [outcome.value for outcome in answer.outcomes.values() if isinstance(outcome, Ok)]
    pages = [value for value in values if isinstance(value, Mapping)]
    return {page["url"] for value in pages for page in (value, *value["others"])}


async def served(urls: Iterable[str]) -> dict[str, str]:
    """The words of each page, fetched once more and read without any of our own extraction."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return {url: words_of((await client.get(url)).raise_for_status().text) for url in urls}


def words_of(html: str) -> str:
    pieces: list[str] = []
    parser = HTMLParser()
    parser.handle_data = pieces.append  # type: ignore[method-assign]
    parser.feed(html)
    parser.close()
    return plain(" ".join(pieces))


def plain(text: str) -> str:
    """Words and numbers in order, a space around each; thousands without their commas."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=\d),(?=\d)", "", text))
    return f" {' '.join(words)} "
