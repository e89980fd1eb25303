"""An agent inside a program of yours: one tool, one question, an answer with checked citations.

    python examples/embed.py --model-url http://localhost:8000/v1

`agentpar serve` starts a model server on this machine and prints its address.
"""

from __future__ import annotations

import argparse
import asyncio

from agentpar import Agent, AgentparError, tool

POPULATIONS = {"Chile": 19_116_201, "Peru": 32_971_854}  # estimates of 2020


@tool
async def population(country: str) -> int:
    """Population of a country. country: English name."""
    return POPULATIONS[country]


async def main(agent: Agent, question: str) -> None:
    """Ask, and print what came of it."""
    answer = await agent.ask(question)
    print(answer.text)
    for citation in answer.citations:
        verdict = f"from {citation.passage!r}" if citation.supported else citation.problem
        print(f"  [{citation.n}] {citation.source}: {verdict}")
    for id, outcome in answer.outcomes.items():
        print(f"  task {id}: {outcome}")
    print(f"  {answer.usage.completion_tokens} tokens written, run {answer.run_id}")


async def ask_server(model_url: str, question: str) -> None:
    """Connect to a model server for one question."""
    async with Agent(tools=[population], model=model_url) as agent:
        await main(agent, question)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask an agent with one tool.")
    parser.add_argument("--model-url", default="http://localhost:8000/v1", metavar="URL")
    parser.add_argument("question", nargs="?", default="Which has more people, Chile or Peru?")
    chosen = parser.parse_args()
    try:
        asyncio.run(ask_server(chosen.model_url, chosen.question))
    except AgentparError as error:  # no server, no answer: the message says what to do
        raise SystemExit(f"embed.py: {error}") from None
