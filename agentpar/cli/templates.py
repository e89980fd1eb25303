"""The files that ``agentpar init`` writes, and the agent that ``agentpar demo`` asks."""

QUESTION = "How many people live in Lima, Bogotá and Quito together?"
FIRST_QUESTION = "Which has more people, Chile or Peru?"
"""What the tools of a project that was just begun can answer."""
DEFAULT_MODEL = "qwen2.5-coder-1.5b"

# The same as examples/web_research/agent.yaml, which an installed package does not have.
DEMO = """\
version: 1
name: web-research
model:
  id: "${AGENTPAR_MODEL:-qwen2.5-coder-1.5b}"
tools:
  - web_lookup:
      search: {url: "${SEARX_URL:-miniweb://?latency=1s}"}
      fetch: {max_chars: 400}
  - calc
"""

_AGENT = """\
version: 1
name: my-agent
instructions: Answer in one sentence.
model: {id: qwen2.5-coder-1.5b}  # or {id: NAME, base_url: "http://localhost:8000/v1"}
tools:
  - python: tools:population     # allowed by: agentpar run --allow-module tools
  - calc
planner:
  examples:                      # small models copy what they see: show plans with your own tools
    - question: Which has more people, Brazil or Bolivia?
      plan: |
        1. population(country="Brazil")
        2. population(country="Bolivia")
        3. calc(expression="'Brazil' if a > b else 'Bolivia'", a=$1, b=$2)
        join()
"""

_TOOLS = '''\
"""The agent's own tools: typed functions with a docstring for the planner to read."""

from agentpar import tool

MILLIONS = {"Chile": 19.6, "Peru": 34.0}


@tool
async def population(country: str) -> float:
    """Population of a country, in millions.

    country: English name.
    """
    if country not in MILLIONS:
        raise LookupError(f"no country {country!r}; known: {', '.join(MILLIONS)}")
    return MILLIONS[country]
'''

_TEST = '''\
"""The agent's plan runs with its real tools and a scripted model: no weights, no GPU."""

from tools import population

from agentpar import Agent, Ok, ScriptedRuntime

PLAN = """\\
1. population(country="Chile")
2. population(country="Peru")
join()
"""


def test_both_countries_are_looked_up():
    runtime = ScriptedRuntime([PLAN, "Answer: Peru has more people [2]."])
    agent = Agent(tools=[population], runtime=runtime)
    answer = agent.ask_sync("Which has more people, Chile or Peru?")
    assert answer.outcomes == {1: Ok(19.6), 2: Ok(34.0)}
    assert "Peru" in answer.text
'''

FILES = {"agent.yaml": _AGENT, "tools.py": _TOOLS, "test_agent.py": _TEST}
