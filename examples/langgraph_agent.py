"""An agent that LangGraph Studio can open: `langgraph dev` reads it through langgraph.json.

The model's address comes from AGENTPAR_MODEL_URL; nothing is reached before a question is asked.
"""

from __future__ import annotations

import os

from agentpar import Agent, tool

POPULATIONS = {"Chile": 19_116_201, "Peru": 32_971_854}  # estimates of 2020
AREAS = {"Chile": 756_102, "Peru": 1_285_216}  # square kilometres


@tool
async def population(country: str) -> int:
    """Population of a country. country: English name, such as "Chile"."""
    return POPULATIONS[country]


@tool
async def area(country: str) -> int:
    """Area of a country in square kilometres. country: English name, such as "Chile"."""
    return AREAS[country]


agent = Agent(
    [population, area],
    model=os.environ.get("AGENTPAR_MODEL_URL", "http://localhost:8000/v1"),
    name="countries",
)
graph = agent.as_graph()
