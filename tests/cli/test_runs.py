"""Commands about recorded runs: graph, trace, replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Cli

from agentpar import Agent, ScriptedRuntime, tool

PLAN = 'Thought: both.\n1. size(of="a")\n2. size(of="b")\n3. total(parts=[$1, $2])\njoin()\n'


@tool
async def size(of: str) -> int:
    """Size of a thing."""
    return len(of)


@tool
async def total(parts: list[int]) -> int:
    """Sum of the parts."""
    return sum(parts)


@pytest.fixture
async def recorded(tmp_path: Path) -> Path:
    """Two runs under ``runs``; the folder of the newer one."""
    for name in ("20260101-aaa", "20260102-bbb"):
        runtime = ScriptedRuntime([PLAN, "Both have size 1 [1].\nAnswer: 2"])
        async with Agent(tools=[size, total], runtime=runtime, runs=tmp_path / "runs") as agent:
            await agent.ask("How large are they?", run_id=name)
    return tmp_path / "runs" / "20260102-bbb"


def test_replay_proves_a_run(cli: Cli, recorded: Path) -> None:
    """The newest run is found as 'last', and its counts are told."""
    done = cli("replay", "last")
    assert done.returncode == 0
    assert str(recorded.relative_to(cli.folder)) in done.stdout
    assert "the same" in done.stdout


def test_replay_finds_a_forged_command(cli: Cli, recorded: Path) -> None:
    """A record in which another call was made than decided: exit 1, and the difference."""
    record = recorded / "events.jsonl"
    made, forged = '"command": "Execute", "task_id": 2', '"command": "Execute", "task_id": 7'
    record.write_text(record.read_text().replace(made, forged))
    done = cli("replay", "20260102")
    assert done.returncode == 1
    assert "'task_id': 7" in done.stderr


def test_trace_shows_the_run_again(cli: Cli, recorded: Path) -> None:
    """The timeline comes out of the record alone; --html writes the page anew."""
    done = cli("trace", str(recorded))
    assert "3. total(parts=[$1, $2])" in done.stdout
    assert "Both have size 1 [1]." in done.stdout
    page = Path(cli.folder, cli("trace", "20260102", "--html").stdout.strip())
    assert page == recorded / "timeline.html"
    assert "How large are they?" in page.read_text()


def test_a_record_that_broke_off_is_still_shown(cli: Cli, recorded: Path) -> None:
    """A process killed while it wrote a line leaves a record that trace and graph read."""
    record = recorded / "events.jsonl"
    text = record.read_text()
    record.write_text(text[: text.index('"TaskStarted"') + 30])
    assert cli("trace", "last").returncode == 0
    assert "size" in cli("graph", "last").stdout


def test_graph_draws_a_run_as_mermaid_and_svg(cli: Cli, recorded: Path) -> None:
    """Mermaid goes to stdout, a file's ending says what is drawn."""
    assert cli("graph", "last").stdout.startswith("flowchart LR")
    assert cli("graph", "last", "-o", "plan.svg").stdout == "plan.svg\n"
    assert (cli.folder / "plan.svg").read_text().startswith("<svg")


@pytest.mark.browser
def test_graph_draws_a_png(cli: Cli, recorded: Path) -> None:
    """The PNG has a PNG's first bytes."""
    assert cli("graph", "last", "-o", "plan.png").returncode == 0
    assert (cli.folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_graph_draws_a_plan_from_a_text_file(cli: Cli) -> None:
    """What cannot be read of it is told, not dropped."""
    (cli.folder / "plan.txt").write_text('1. find("x")\n2. open(url=$1.url)\n3. what(\njoin()\n')
    done = cli("graph", "plan.txt")
    assert "t1 --> t2" in done.stdout
    assert "what(" in done.stderr


def test_graph_shows_what_an_optimizer_would_take_away(cli: Cli) -> None:
    """Equal calls, calls that no goal needs, and calls that can go together; the rest is drawn."""
    lines = ['1. find("x")', '2. find("x")', "3. open($1.url)", "4. open($2.url)", "5. open($2.b)"]
    (cli.folder / "plan.txt").write_text(
        "\n".join([*lines, "6. send($3)", "7. send($3)", "join()"])
    )
    done = cli("graph", "plan.txt", "--optimize", "--write", "send", "--batch", "open=8")
    assert "3, 5 can go together" in done.stderr
    assert {"2 is the same call as 1", "4 is the same call as 3"} <= set(done.stderr.splitlines())
    assert "t3 --> t7" in done.stdout
    assert "t4" not in done.stdout
    done = cli("graph", "plan.txt", "--optimize", "--goal", "4")
    assert "5 is needed by no goal" in done.stderr
    assert "t1 --> t3" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--goal", "3"], "--goal, --write and --batch go with --optimize"),
        (["--optimize", "--goal", "9"], "the plan has no task 9, which is named as a goal"),
        (
            ["--optimize", "--batch", "open"],
            "--batch 'open' is no limit: write a tool and a number",
        ),
    ],
)
def test_a_wrong_option_of_graph_is_told(cli: Cli, options: list[str], message: str) -> None:
    """Exit 2, and nothing is drawn."""
    (cli.folder / "plan.txt").write_text('1. find("x")\njoin()\n')
    done = cli("graph", "plan.txt", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


async def test_writes_of_a_recorded_run_are_never_merged(cli: Cli, tmp_path: Path) -> None:
    """The record says which tools write."""

    @tool(effect="write")
    async def send(to: str) -> str:
        """Send."""
        return to

    plan = '1. send("a")\n2. send("a")\n3. size("a")\n4. size("a")\njoin()'
    runtime = ScriptedRuntime([plan, "Answer: done"])
    async with Agent(
        tools=[send, size], runtime=runtime, runs=cli.folder / "runs", approve=lambda *_: True
    ) as agent:
        await agent.ask("?")
    done = cli("graph", "last", "--optimize")
    assert done.stderr == "4 is the same call as 3\n"
    assert all(f"t{id}[" in done.stdout for id in (1, 2, 3))


def test_a_plan_that_is_no_text_is_the_callers_mistake(cli: Cli) -> None:
    """A picture in the place of a plan: exit 2, its name, and where it stops being text."""
    (cli.folder / "plan.txt").write_bytes(b"1. \x89PNG")
    done = cli("graph", "plan.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "agentpar: plan.txt is no text: byte 3 is not UTF-8\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trace", "2026"), "begins 2 runs"),
        (("replay", "nope"), "the newest are 20260101-aaa, 20260102-bbb"),
        (("graph", "nope.txt"), "no plan at 'nope.txt'"),
        (("graph", "last", "--format", "png"), "-o plan.png"),
        (("graph", "last", "-o", "plan.gif"), "--format"),
    ],
)
def test_a_wrong_name_says_what_there_is(
    cli: Cli, recorded: Path, words: tuple[str, ...], message: str
) -> None:
    """The caller's mistake: exit 2 and one line that helps."""
    done = cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_record_is_named_with_its_line(cli: Cli, recorded: Path) -> None:
    """Damage in the middle is not skipped over."""
    record = recorded / "events.jsonl"
    lines = record.read_text().splitlines()
    lines[2] = json.dumps({"event": "Unknown"})
    record.write_text("\n".join(lines))
    done = cli("replay", "last")
    assert done.returncode == 2
    assert "events.jsonl:3" in done.stderr


MAIL = '''
from agentpar import tool

@tool
async def page(url: str) -> str:
    """Read a page."""
    return "text"

@tool(effect="write")
async def mail(to: str, text: str) -> str:
    """Send a mail."""
    return "sent"
'''
MAIL_YAML = "tools: [{python: mail_tools:page}, {python: mail_tools:mail}, calc]\n"
MAIL_PLAN = (
    '1. page("https://example.org")\n2. mail(to="ann", text=$1)\n3. mali(to="bob")\njoin()\n'
)


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    (tmp_path / "mail_tools.py").write_text(MAIL)
    (tmp_path / "agent.yaml").write_text(MAIL_YAML)
    (tmp_path / "plan.txt").write_text(MAIL_PLAN)
    return tmp_path


PROOF = ("graph", "plan.txt", "--agent", "agent.yaml", "--allow-module", "mail_tools", "--proof")


def test_a_plan_is_proved_before_anything_runs(cli: Cli, mail: Path) -> None:
    """The path is shown with the verdict; a line that could not run is told."""
    done = cli(*PROOF)
    assert done.returncode == 0
    assert "untrusted: 1 page → 2 mail\n  ask: mail changes things" in done.stdout
    assert "proved: 2 calls, 1 of them sinks" in done.stdout
    assert "left out, as it would not run: unknown tool 'mali': did you mean 'mail'?" in done.stderr


def test_a_plan_with_an_open_path_is_no_proof(cli: Cli, mail: Path) -> None:
    """Exit 1, so that a build can stop on it."""
    rules = "permissions: [{tools: mail, data: any, action: allow}]\n"
    (mail / "agent.yaml").write_text(MAIL_YAML + rules)
    done = cli(*PROOF)
    assert done.returncode == 1
    assert "NOT PROVED" in done.stdout
    assert "allow: rule 1: {tools: mail, data: any, action: allow}" in done.stdout


def test_what_workers_think_is_part_of_the_path(cli: Cli, mail: Path) -> None:
    """``think`` comes with ``workers:`` and is in no list of tools; a page gets through it."""
    rules = "permissions: [{tools: mail, data: any, action: allow}]\n"
    (mail / "agent.yaml").write_text(MAIL_YAML + rules + "workers: {n: 2}\n")
    plan = '1. page("https://example.org")\n2. think("?", $1)\n3. mail(to="ann", text=$2)\njoin()\n'
    (mail / "plan.txt").write_text(plan)
    done = cli(*PROOF)
    assert (done.returncode, done.stderr) == (1, "")
    assert "untrusted: 1 page → 2 think → 3 mail" in done.stdout


def test_a_plan_alone_cannot_be_proved(cli: Cli, mail: Path) -> None:
    """Text names tools, and does not say what they do."""
    done = cli("graph", "plan.txt", "--proof")
    assert done.returncode == 2
    assert "add --agent agent.yaml" in done.stderr


async def test_a_run_brings_its_own_rules_to_the_proof(cli: Cli, tmp_path: Path) -> None:
    """From the record alone: both plans, and what the second one's planner had read."""

    @tool
    async def page(url: str) -> str:
        """Read a page."""
        return "Replan!"

    @tool(effect="write")
    async def mail(text: str) -> str:
        """Send a mail."""
        return "sent"

    texts = ['1. page(url="a")', "Replan: mail it", '2. mail(text="x")\njoin()', "Done."]
    runtime = ScriptedRuntime(texts)
    async with Agent([page, mail], runtime=runtime, runs=tmp_path / "runs") as agent:
        await agent.ask("What is new?")
    done = cli("graph", "last", "--proof")
    assert done.returncode == 0
    assert "2 mail(): changes things\n  untrusted: planned after reading 1 page\n" in done.stdout


async def test_a_plan_is_drawn_as_it_was_written(cli: Cli) -> None:
    """A call over a list is one call."""
    plan = "1. names()\n2. size(of=$1[*])\njoin()"
    runtime = ScriptedRuntime([plan, "Answer: two"])
    async with Agent([names, size], runtime=runtime, runs=cli.folder / "runs") as agent:
        await agent.ask("How large?", run_id="list")
    drawn = cli("graph", "list").stdout
    assert "t2[" in drawn
    assert "2000001" not in drawn


@tool
async def names() -> list[str]:
    """Names of things."""
    return ["a", "bb"]
