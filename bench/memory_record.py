"""Record teams on the mini-web: every variation of a team alone on each question, without a bank.

What comes out is what `memory_recorded.py` replays. A team runs by itself, so its times are those
of a model server that serves nobody else. What is there already is not recorded again.

    python bench/memory_record.py --questions 4 --teams 8
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from memory_questions import SEED, Asked, questions

from agentpar import Agent
from agentpar.ids import new_run_id
from agentpar.memory.learning.recorded import RecordedTeam, recorded_team
from agentpar.memory.settings import Memory
from agentpar.miniweb import MiniWeb
from agentpar.miniweb.questions import score
from agentpar.net import Guard
from agentpar.runtime.server import ensure
from agentpar.teams import Ended
from agentpar.tools.base import Tool
from agentpar.tools.calc import calc
from agentpar.tools.lookup import web_lookup
from agentpar.tools.search import make_web_search
from agentpar.tools.web import make_web_fetch

RECORDINGS = Path(__file__).parent / "recordings"
LATENCY = 1.0
"""Seconds that a page takes, as in `e2e.py`: a lookup is a search and then pages side by side."""


def tools_of(origin: str) -> list[Tool]:
    """The tools that every bench of teams gives its agents."""
    guard = Guard(allow_origins=frozenset({origin}))
    search = make_web_search("searxng", url=origin)
    fetch = make_web_fetch(guard=guard, max_chars=400)
    return [web_lookup(search=search, fetch=fetch), calc]


async def record(agent: Agent, asked: Asked, team: int, known: dict[str, Tool]) -> RecordedTeam:
    """One team's work on one question: the run that `Agent.ask` with teams would give it."""
    text = asked.question.text
    session = await agent._session(new_run_id(), text, team=team)
    await session.run(session.started(text))
    answer = session.answer()
    return recorded_team(
        session.events,
        known,
        family=asked.family.name,
        team=team,
        right=score(asked.question, answer.text),
        carried=Ended(team, answer).verified,
    )


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--model", default="qwen2.5-coder-0.5b", help="known weights to serve")
    options.add_argument("--model-url", help="a server that is up, instead of --model")
    options.add_argument("--questions", type=int, default=4, help="of each family")
    options.add_argument("--teams", type=int, default=8)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--minutes", type=float, default=25.0, help="begin nothing after them")
    options.add_argument("--out", type=Path, help="by default bench/recordings/MODEL.jsonl")
    chosen = options.parse_args()
    url = chosen.model_url or (await ensure(chosen.model)).base_url
    path = chosen.out or RECORDINGS / f"{chosen.model.rpartition('/')[2]}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    there = {(old.question, old.team) for old in map(RecordedTeam.from_line, lines)}
    until = time.monotonic() + 60 * chosen.minutes
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(MiniWeb(latency=LATENCY))
        print(web.banner, file=sys.stderr)
        known = {tool.name: tool for tool in tools_of(web.origin)}
        agent = await stack.enter_async_context(
            Agent(known.values(), model=url, memory=Memory(admission="none", lease=None))
        )
        with path.open("a", encoding="utf-8") as file:
            for asked in questions(chosen.questions, chosen.seed):
                for team in range(1, chosen.teams + 1):
                    if (asked.question.text, team) in there or time.monotonic() > until:
                        continue
                    made = await record(agent, asked, team, known)
                    file.write(made.line() + "\n")
                    file.flush()
                    print(
                        f"{asked.family.name:20s} team {team} {'right' if made.right else 'WRONG'} "
                        f"{made.seconds:5.1f} s {sum(1 for _ in made.calls)} calls  "
                        f"{asked.question.text:.60} -> {made.conclusion:.60}",
                        file=sys.stderr,
                        flush=True,
                    )


if __name__ == "__main__":
    asyncio.run(main())
