"""``agentpar fuzz``: a recorded run again in other orders, and what it says of the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cli, ModelServer

from agentpar import Agent, ScriptedRuntime, UsageError, tool

STEADY = '1. size(of="a")\n2. size(of="bb")\n3. total(parts=[$1, $2])\njoin()\n'
# Two equal calls, whose order depends on which of two others ends first.
RACE = '1. size(of="a")\n2. size(of="b")\n3. tick(n=$1)\n4. tick(n=$2)\njoin()\n'
QUESTION = "How large are they?"
YAML = """\
version: 1
name: sizes
model: {id: scripted, base_url: "http://127.0.0.1:9/v1"}
tools:
  - python: tools:size
  - python: tools:total
"""
TOOLS = '''\
from agentpar import tool


@tool
async def size(of: str) -> int:
    """Size of a thing."""
    return len(of)


@tool
async def total(parts: list[int]) -> int:
    """Sum of the parts."""
    return sum(parts)
'''


def record(folder: Path, plan: str, answer: str = "The size is 1 [1].\nAnswer: 3") -> Path:
    """A run under ``folder``/runs; its record."""
    ticks = iter(range(41, 100))

    @tool
    async def size(of: str) -> int:
        """Size of a thing."""
        await asyncio.sleep(0.02 if of == "a" else 0.005)
        return len(of)

    @tool(idempotent=False)
    async def tick(n: int) -> int:
        """Counts its calls."""
        await asyncio.sleep(0.001)
        return next(ticks)

    @tool
    async def total(parts: list[int]) -> int:
        """Sum of the parts."""
        return sum(parts)

    runtime = ScriptedRuntime([plan, answer])
    agent = Agent([size, tick, total], runtime=runtime, runs=folder / "runs")
    asyncio.run(agent.ask(QUESTION, run_id="20260101-one"))
    return folder / "runs" / "20260101-one" / "events.jsonl"


@pytest.fixture
def project(cli: Cli) -> Cli:
    """The command in a folder with an agent."""
    (cli.folder / "agent.yaml").write_text(YAML)
    (cli.folder / "tools.py").write_text(TOOLS)
    return cli


def test_a_run_whose_order_does_not_matter(cli: Cli) -> None:
    """Exit 0, with how much was tried and found."""
    record(cli.folder, STEADY)
    done = cli("fuzz", "last", "--schedules", "100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "runs/20260101-one/events.jsonl"
    assert lines[1].startswith(f"100 schedules of '{QUESTION}'")
    assert "without faults: 50 schedules, 1 outcome" in lines
    assert "with faults: 50 schedules in 5 sets of faults" in done.stdout
    assert lines[-1] == "the answer does not depend on the order of events"


def test_a_run_whose_order_matters(cli: Cli) -> None:
    """Exit 1, a seed of each group, and the first thing that differs."""
    record(cli.folder, RACE)
    done = cli("fuzz", "last", "--schedules", "100")
    assert done.returncode == 1, done.stderr
    assert "; differs in the results and the joiner's prompt:" in done.stdout
    assert "as seed 0, where tasks end in the order 2, 4, 1, 3" in done.stdout
    assert "task 3 ends as 41 with seed" in done.stdout
    assert "tick(n=1) was called 2 times, with different results" in done.stdout
    last = "what the answer is written from depends on the order of events"
    assert done.stdout.splitlines()[-1] == last


def test_an_answer_whose_citation_holds_in_one_order_only(cli: Cli) -> None:
    """The recorded answer is checked anew: what it cites must carry it in every order."""
    record(cli.folder, RACE, "The count was 41 [4].\nAnswer: 41")
    done = cli("fuzz", "last", "--schedules", "40")
    assert done.returncode == 1, done.stderr
    assert "; differs in the results, the joiner's prompt and the answer:" in done.stdout
    assert done.stdout.splitlines()[-1] == "the answer depends on the order of events"


def test_a_seed_shows_its_schedule_again(cli: Cli) -> None:
    """The number from a report gives the same difference, beside what it is compared with."""
    record(cli.folder, RACE)
    told = cli("fuzz", "last", "--schedules", "100").stdout
    seed = told.partition(" with seed ")[2].partition(",")[0]
    again = cli("fuzz", "last", "--seed", seed)
    assert again.returncode == 1
    (difference,) = (line for line in again.stdout.splitlines() if "task 3 ends as" in line)
    assert difference in told
    order = told.partition(f" as seed {seed}, ")[2].partition(";")[0]
    assert f"1 schedule as seed {seed}, {order};" in again.stdout


def test_an_agent_file_brings_its_limits(project: Cli) -> None:
    """With too few steps for the plan, what is called depends on what ends first."""
    chains = '1. size(of="a")\n2. size(of="bb")\n3. total(parts=[$1])\n4. total(parts=[$2])\njoin()'
    record(project.folder, chains)
    words = ("agent.yaml", QUESTION, "--allow-module", "tools", "--schedules", "40")
    assert project("fuzz", *words).returncode == 0
    (project.folder / "agent.yaml").write_text(YAML + "limits: {max_steps: 3}\n")
    done = project("fuzz", *words)
    assert done.returncode == 1, done.stderr
    assert "calls total(parts=[1]), seed 0 does not" in done.stdout
    assert "differs, not by order but by a limit (max_steps=3), in " in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "what the answer is written from depends on what is done before a limit is reached: "
        "max_steps=3",
        "without limits it would not depend on the order of events",
    ]
    assert "on the recorded order task 3 ends as" in done.stdout


def test_an_agent_is_asked_where_no_run_is_recorded(
    project: Cli, model_server: Callable[..., ModelServer]
) -> None:
    """The question is answered first, with the real tools and the model; then it is fuzzed."""
    server = model_server(STEADY, "The size is 1 [1].\nAnswer: 3")
    words = ("agent.yaml", "Anything?", "--allow-module", "tools", "--model-url", server.url)
    done = project("fuzz", *words, "--schedules", "40")
    assert done.returncode == 0, done.stderr
    assert "40 schedules of 'Anything?'" in done.stdout
    assert server.texts == []
    again = project("fuzz", *words, "--schedules", "40")
    assert again.returncode == 0, "the record is there now, and no model is asked"


def test_a_missing_result_is_a_finding(cli: Cli) -> None:
    """A call that the record does not know fails, and the report says so; nothing crashes."""
    path = record(cli.folder, STEADY)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if not is_end_of(json.loads(line), task=2)]
    path.write_text("\n".join(kept) + "\n")
    done = cli("fuzz", "last", "--schedules", "20")
    assert done.returncode == 0, done.stderr
    assert 'no result is recorded for size(of="bb")' in done.stdout


def is_end_of(line: dict[str, object], task: int) -> bool:
    return line.get("event") == "TaskDone" and line.get("task_id") == task


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope",), "there is no run 'nope'"),
        (("last", "How?"), "'last' is a run, which has its question"),
        (("nope.yaml", "How?"), "nope.yaml"),
        (("last", "--schedules", "0"), "--schedules"),
    ],
)
def test_a_wrong_word_says_what_is_meant(cli: Cli, words: tuple[str, ...], message: str) -> None:
    """The caller's mistake: exit 2."""
    record(cli.folder, STEADY)
    done = cli("fuzz", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_python_has_the_same(tmp_path: Path) -> None:
    """`Agent.fuzz` in a test of one's own; not where an event loop is running."""
    path = record(tmp_path, STEADY)
    agent = Agent(runtime=ScriptedRuntime([]))
    assert not agent.fuzz(path, schedules=60).order_matters
    path = record(tmp_path / "other", RACE)
    assert agent.fuzz(path, schedules=60).order_matters

    async def inside() -> None:
        agent.fuzz(path)

    with pytest.raises(UsageError, match="an event loop is running here already"):
        asyncio.run(inside())
