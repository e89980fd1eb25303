"""Agent files: what loads, and every mistake with file, line, column and key."""

# ruff: noqa: E501, ASYNC240 (messages are quoted whole; small files are written at once)

from __future__ import annotations

import inspect
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentpar
from agentpar.agent import Agent
from agentpar.config import AgentSpec, json_schema, load
from agentpar.config.fields import AgentFile, Section, section_in
from agentpar.config.source import Node, read_yaml, resolve_plain
from agentpar.config.web import mini_web_options
from agentpar.errors import ConfigError, FetchError, UsageError
from agentpar.memory.settings import Memory
from agentpar.miniweb import MiniWeb
from agentpar.permissions import Rule
from agentpar.plan import Failed, Ok
from agentpar.policy import Price
from agentpar.runtime.scripted import ScriptedRuntime
from agentpar.teams import Teams
from agentpar.tools.base import Tool, ToolSource
from agentpar.tools.mcp import McpServer
from agentpar.workers import Workers

REPOSITORY = Path(agentpar.__file__).parents[1]
EXAMPLES = sorted(REPOSITORY.glob("examples/*/agent.yaml"))
ALLOWED = {"quickstart": ["rivers"]}

CANARY = "sk-canary-4711"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, so that messages begin with ``agent.yaml``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(text: str, *, allow: tuple[str, ...] = (), **env: str) -> AgentSpec:
    Path("agent.yaml").write_text(text, encoding="utf-8")
    return load("agent.yaml", allow_modules=allow, env=env)


def mistakes(text: str | bytes, **env: str) -> list[str]:
    """The lines of the error that ``text`` gives."""
    data = text if isinstance(text, bytes) else text.encode()
    Path("agent.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load("agent.yaml", env=env)
    return str(caught.value).splitlines()


# What loads


def test_every_field_reaches_the_agent(folder: Path) -> None:
    """Each field of a full file becomes the argument it stands for."""
    spec = loaded(
        """
version: 1
name: full
instructions: Be brief.
model:
  id: some/model
  base_url: http://localhost:8000/v1
  api_key: "${KEY}"
  concurrency: 4
  settings: {temperature: 0.5, seed: 7, max_tokens: 2k}
  price: {prompt: 0.1, completion: 0.4}
planner:
  max_tasks: 2k
  max_tokens: 4k
  max_lines: 100
  replans: 0
  replan_on: failure
  extended: true
  grammar: never
  prefill: always
  examples: [{question: What is 1 + 1?, plan: "1. calc(expression=\\"1 + 1\\")\\njoin()"}]
tools: [calc]
policies:
  - {tools: "web_*", retries: 3, cache: 1h, rate: 60/min, on_error: keep}
  - {tools: [calc, web_fetch], hedge: true, lock: one, backoff: 100ms, idempotent: true}
  - {tools: "web_*", concurrency: 4, cost: 0.01, timeout: 5s, max_backoff: 1m, tokens: 2k}
defaults: {timeout: 1m, concurrency: 8, retries: 2, rate: 10/s}
limits:
  max_steps: 60
  max_tokens: 200k
  max_cost_usd: 1
  deadline: 2m
  per_host: 4
  host_rate: 2/s
  max_result_bytes: 1MiB
permissions:
  - {tools: "send_*", action: ask}
  - {tools: [calc, log], data: any, action: allow}
watch: {otel: "${TRACE}", prometheus: {port: 9465}}
secrets: ["${KEY}"]
""",
        KEY=CANARY,
        TRACE="true",
    )
    arguments = spec.arguments()
    (example,) = arguments.pop("examples")
    assert (example.question, example.plan) == (
        "What is 1 + 1?",
        '1. calc(expression="1 + 1")\njoin()',
    )
    (tool,) = arguments.pop("tools")
    assert tool.name == "calc"
    called = {"hedge": True, "lock": "one", "backoff": 0.1, "idempotent": True}
    assert [type(watcher).__name__ for watcher in arguments.pop("watch")] == [
        "OpenTelemetry",
        "Prometheus",
    ]
    assert arguments == {
        "name": "full",
        "instructions": "Be brief.",
        "model": "http://localhost:8000/v1",
        "model_id": "some/model",
        "api_key": CANARY,
        "secrets": (CANARY,),
        "model_concurrency": 4,
        "temperature": 0.5,
        "seed": 7,
        "max_answer_tokens": 2000,
        "grammar": False,
        "prefill": True,
        "max_plan_tokens": 4000,
        "max_plan_lines": 100,
        "max_tasks": 2000,
        "max_replans": 0,
        "replan_early": True,
        "extended_plans": True,
        "concurrency": 8,
        "timeout": 60.0,
        "max_result_bytes": 2**20,
        "max_steps": 60,
        "max_tokens": 200_000,
        "max_cost_usd": 1.0,
        "deadline": 120.0,
        "per_host": 4,
        "host_rate": 2.0,
        "price": Price(0.1, 0.4),
        "policies": {
            "*": {"retries": 2, "rate": 10.0},
            "calc": called,
            "web_fetch": called,
            "web_*": {
                "retries": 3,
                "cache": 3600.0,
                "rate": 1.0,
                "on_error": "keep",
                "concurrency": 4,
                "cost": 0.01,
                "timeout": 5.0,
                "max_backoff": 60.0,
                "tokens": 2000,
            },
        },
        "permissions": (Rule("send_*", "ask"), Rule(["calc", "log"], "allow", data="any")),
    }
    assert list(arguments["policies"]) == ["*", "calc", "web_fetch", "web_*"], "later entries win"
    assert isinstance(Agent(**spec.arguments()), Agent)


def test_what_the_file_leaves_out_is_as_the_agent_has_it(folder: Path) -> None:
    """The defaults of the file are the defaults of `Agent`."""
    arguments = loaded("model: {id: qwen2.5-coder-1.5b}\n").arguments()
    defaults = inspect.signature(Agent).parameters
    for name in set(arguments) - {"tools", "model"}:
        assert arguments[name] == defaults[name].default, name


async def test_tokens_of_a_tool_that_asks_a_model_count_against_the_limit(folder: Path) -> None:
    """They are set aside before it begins: a call that could pass the limit is not made."""
    spec = loaded(
        """
tools: [calc]
policies: [{tools: calc, tokens: 3k}]
limits: {max_tokens: 5k}
"""
    )
    lines = '1. calc(expression="1 + 1")\n2. calc(expression="2 + 2")\njoin()'
    options = {**spec.arguments(), "model": None, "runtime": ScriptedRuntime([lines, "Answer: 2"])}
    async with Agent(**options) as agent:
        answer = await agent.ask("What is 1 + 1?")
    assert answer.outcomes[1] == Ok(2)
    assert isinstance(answer.outcomes[2], Failed)
    assert answer.usage.stopped_by == "max_tokens=5000"


def test_an_id_alone_is_the_model(folder: Path) -> None:
    """Known weights and engines in this process have no address."""
    arguments = loaded("model: {id: 'vllm:some/folder', base_url: '${URL:-}'}\n").arguments()
    assert (arguments["model"], arguments["model_id"]) == ("vllm:some/folder", None)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_examples_load_and_name_their_schema(path: Path) -> None:
    """Each shipped example is right, and an editor finds the schema from its first line."""
    spec = load(path, allow_modules=ALLOWED.get(path.parent.name, ()), env={})
    assert not spec.notes
    Agent(**spec.arguments())
    first = path.read_text().splitlines()[0]
    schema = path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema.read_text()) == json_schema()


def test_the_examples_are_there() -> None:
    """The parametrised test above has something to test."""
    assert {"web_research", "quickstart"} <= {path.parent.name for path in EXAMPLES}


async def test_an_agent_from_a_file_answers(folder: Path) -> None:
    """From the file through a tool beside it to an answer."""
    Path("own_lakes.py").write_text("async def depth(lake: str) -> int:\n    return 1642\n")
    spec = loaded("tools:\n  - python: own_lakes:depth\n", allow=("own_lakes",))
    runtime = ScriptedRuntime(
        ['1. depth(lake="Baikal")\njoin()', "1642 m [1].\nAnswer: 1642 m [1]"]
    )
    async with Agent(**spec.arguments(), runtime=runtime) as agent:
        answer = await agent.ask("How deep is Lake Baikal?")
    assert answer.outcomes[1].value == 1642


async def test_the_bounds_of_a_file_reach_the_model(folder: Path) -> None:
    """Tokens of a plan, lines of its grammar, tokens of an answer."""
    spec = loaded(
        "model: {id: m, settings: {max_tokens: 1000}}\n"
        "planner: {max_tokens: 2000, max_lines: 3}\ntools: [calc]\n"
    )
    runtime = ScriptedRuntime(["join()", "Answer: not found"], capabilities=["grammar"])
    async with Agent(**spec.arguments() | {"model": None}, runtime=runtime) as agent:
        await agent.ask("What is a tenth of 2,850?")
    plan, answer = runtime.requests
    assert (plan.max_tokens, answer.max_tokens) == (2000, 1000)
    assert plan.grammar is not None
    assert ('"3. ' in plan.grammar, '"5. ' in plan.grammar) == (True, False)


def test_a_known_other_word_is_read_with_a_note(folder: Path) -> None:
    """``system_prompt`` is ``instructions``, and the file's author hears of it."""
    spec = loaded("tools: []\nsystem_prompt: Be kind.\nplanner: {max_replans: 1}\n")
    assert spec.arguments()["instructions"] == "Be kind."
    assert spec.arguments()["max_replans"] == 1
    assert spec.notes == (
        "agent.yaml:2:1: system_prompt: read as instructions; write instructions",
        "agent.yaml:3:11: planner.max_replans: read as replans; write replans",
    )


# Mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\nlimits:\n  max_concurency: 3\n",
            "agent.yaml:3:3: limits.max_concurency: unknown field, did you mean defaults.concurrency?",
        ),
        (
            "defaults:\n  max_concurency: 3\n",
            "agent.yaml:2:3: defaults.max_concurency: unknown field, did you mean concurrency?",
        ),
        ("tols: []\n", "agent.yaml:1:1: tols: unknown field, did you mean tools?"),
        (
            "zzz: 1\n",
            "agent.yaml:1:1: zzz: unknown field, known here: version, name, instructions, model, "
            "planner, workers, teams, tools, policies, defaults, limits, permissions, journal, memory, watch, secrets",
        ),
        ("tools:\n  - calcc\n", "agent.yaml:2:5: tools[0]: there is no tool 'calcc', did you mean calc?"),
        (
            "tools:\n  - web_serch: {}\n",
            "agent.yaml:2:5: tools[0].web_serch: unknown field, did you mean web_search?",
        ),
        ("tools: calc\n", "agent.yaml:1:8: tools: must be a list, not 'calc': write [calc]"),
        ("tools: [3]\n", "agent.yaml:1:9: tools[0]: must hold fields, not 3"),
        ("name: 3\n", "agent.yaml:1:7: name: must be a text, not 3"),
        ("name:\n", "agent.yaml:1:1: name: must be a text; nothing is given"),
        ("version: 2\n", "agent.yaml:1:10: version: must be 1, not 2"),
        ("instructions: {fil: x}\n", "agent.yaml:1:15: instructions: must be a text, not a mapping"),
        ("system_prompt: x\ninstructions: y\n",
         "agent.yaml:2:1: instructions: instructions is given already, by another word"),
        ("planner: {grammar: yes}\n",
         "agent.yaml:1:20: planner.grammar: must be 'auto', 'always' or 'never', not 'yes'"),
        ("secrets: [short]\n", "agent.yaml:1:11: secrets[0]: must have at least 8 characters"),
        ("watch: {otel: yes}\n", "agent.yaml:1:15: watch.otel: must be true or false, not 'yes'"),
        ("watch: {prometheus: {port: 0}}\n",
         "agent.yaml:1:28: watch.prometheus.port: must be at least 1, not 0"),
        ("planner: {stream: true}\n",
         "agent.yaml:1:11: planner.stream: the plan is always streamed; leave it out"),
        ("planner: {examples: [{question: q}]}\n",
         "agent.yaml:1:22: planner.examples[0].plan: is needed"),
        ("model: {}\n", "agent.yaml:1:1: model: id or base_url is needed"),
        ("model: 5\n", "agent.yaml:1:8: model: must hold fields, not 5"),
        ("model: {base_url: 'localhost:1'}\n",
         "agent.yaml:1:19: model.base_url: must begin with http:// or https://, such as http://localhost:8000/v1"),
        ("model: {id: x, settings: {temperature: .nan}}\n",
         "agent.yaml:1:40: model.settings.temperature: must be a number such as 0.2, not .nan"),
        ("model: {id: x, settings: {temperature: 3}}\n",
         "agent.yaml:1:40: model.settings.temperature: must be at most 2, not 3"),
        ("defaults: {concurrency: true}\n",
         "agent.yaml:1:25: defaults.concurrency: must be a whole number such as 40 or 200k, not true"),
        ("defaults: {concurrency: 1.5}\n",
         "agent.yaml:1:25: defaults.concurrency: must be a whole number such as 40 or 200k, not 1.5"),
        ("planner: {max_tasks: 0}\n", "agent.yaml:1:22: planner.max_tasks: must be at least 1, not 0"),
        ("defaults: {timeout: 0s}\n",
         "agent.yaml:1:21: defaults.timeout: must be more than 0, not '0s'"),
        (f"defaults: {{timeout: 1{'0' * 400}}}\n",
         "agent.yaml:1:21: defaults.timeout: must be a duration such as 500ms, 20s or 1m, not "
         f"1{'0' * 78}…"),
        (f"planner: {{max_tasks: 1{'0' * 400}}}\n",
         "agent.yaml:1:22: planner.max_tasks: must be a whole number such as 40 or 200k, not "
         f"1{'0' * 78}…"),
        (f"model: {{id: x, settings: {{temperature: 1{'0' * 400}}}}}\n",
         "agent.yaml:1:40: model.settings.temperature: must be a number such as 0.2, not "
         f"1{'0' * 78}…"),
        ("defaults: {rate: .inf}\n",
         "agent.yaml:1:18: defaults.rate: must be a rate such as 10/s, 60/min or 1000/h, not .inf"),
        ("defaults: {timeout: .inf}\n",
         "agent.yaml:1:21: defaults.timeout: must be a duration such as 500ms, 20s or 1m, not .inf"),
        ("tools: [calc, calc]\n",
         "agent.yaml:1:15: tools[1].calc: there is a tool named 'calc' already"),
        ("tools: [{calc: {}, mcp: {}}]\n",
         "agent.yaml:1:9: tools[0]: a tool is a mapping with one key, such as web_search; "
         "put '- ' before each"),
        ("tools: [{web_search: {provider: brave}}]\n",
         "agent.yaml:1:22: tools[0].web_search: provider 'brave' needs api_key"),
        ("tools: [{web_fetch: {allow_domains: ['http://x']}}]\n",
         "agent.yaml:1:21: tools[0].web_fetch: 'http://x' is not a domain: write a name such as "
         "'example.org', '*.example.org' or '*'"),
        ("tools: [{web_search: {url: 'miniweb://?latncy=1s'}}]\n",
         "agent.yaml:1:22: tools[0].web_search: miniweb:// has no switch 'latncy', "
         "did you mean latency?"),
        ("permissions: [{tools: send, action: aks}]\n",
         "agent.yaml:1:37: permissions[0].action: must be 'allow', 'ask' or 'deny', not 'aks'"),
        ("permissions: [{tools: send, action: ask, data: mine}]\n",
         "agent.yaml:1:48: permissions[0].data: must be 'any', 'trusted' or 'untrusted', not 'mine'"),
        ("permissions: [{tools: [''], action: ask}]\n",
         "agent.yaml:1:24: permissions[0].tools[0]: must not be empty, not ''"),
        ("permissions: [{tools: send}]\n", "agent.yaml:1:15: permissions[0].action: is needed"),
        ("tools: [{mcp: {}}]\n",
         "agent.yaml:1:15: tools[0].mcp: an MCP server needs either url=… or command=[…], and not both"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(folder: Path, text: str, message: str) -> None:
    """File, line, column, key, what is wrong, and what to write."""
    assert mistakes(text) == [message]


def test_every_mistake_of_a_file_is_told_at_once(folder: Path) -> None:
    """Keys, values, tools and the environment, in the order of the file."""
    found = mistakes(
        "nme: x\nmodel: {id: 3, base_url: '${NOPE}'}\n"
        "tools: [calcc, {web_fetch: {max_bytes: 2XB}}]\ndefaults: {timeout: soon}\n"
    )
    places = [re.match(r"agent\.yaml:(\d+):\d+: ([^:]+): ", line) for line in found]
    assert [(int(place[1]), place[2]) for place in places if place] == [
        (1, "nme"),
        (2, "model.id"),
        (2, "model.base_url"),
        (3, "tools[0]"),
        (3, "tools[1].web_fetch.max_bytes"),
        (4, "defaults.timeout"),
    ]


@pytest.mark.parametrize(
    ("text", "teams"),
    [
        ("teams: 4", Teams(4)),
        ("teams:", Teams(3, "vote")),
        ("teams: {n: 2, select: first}", Teams(2, "first")),
        ("teams: '${TEAMS:-5}'", Teams(5)),
    ],
)
def test_teams(folder: Path, text: str, teams: Teams) -> None:
    """A number alone, or how many and how one is chosen."""
    assert loaded(text + "\n").arguments()["teams"] == teams
    assert "teams" not in loaded("tools: []\n").arguments()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teams: 17", "agent.yaml:1:8: teams.n: must be at most 16, not 17"),
        ("teams: {n: 0}", "agent.yaml:1:12: teams.n: must be at least 1, not 0"),
        ("teams: {select: luck}",
         "agent.yaml:1:17: teams.select: must be 'vote', 'first', 'judge' or 'best', not 'luck'"),
        ("teams: some",
         "agent.yaml:1:8: teams.n: must be a whole number such as 40 or 200k, not 'some'"),
    ],
)  # fmt: skip
def test_teams_that_cannot_be(folder: Path, text: str, message: str) -> None:
    """Each with its place."""
    assert mistakes(text + "\n") == [message]


NOT_BUILT = [
    *((key, "{}", key) for key in ("output_schema",)),
    ("tools", "[openapi: {spec: ./api.yaml}]", "tools[0].openapi"),
]


@pytest.mark.parametrize(("key", "value", "name"), NOT_BUILT, ids=[row[2] for row in NOT_BUILT])
def test_what_is_not_built_yet_is_refused_by_name(
    folder: Path, key: str, value: str, name: str
) -> None:
    """Neither unknown nor ignored."""
    (message,) = mistakes(f"{key}: {value}\n")
    assert re.fullmatch(
        rf"agent\.yaml:1:\d+: {re.escape(name)}: not available in agentpar 0\.1 yet", message
    )


def test_memory_is_a_bank(folder: Path) -> None:
    """A file's name counts from the folder of the agent's file; an address alone is for good."""
    said = "memory: {bank: 'sqlite:///b.db', admission: learned, scope: project, ttl: 7d, lease: none}\n"
    assert loaded(said).arguments()["memory"] == Memory(
        f"sqlite:///{folder.resolve()}/b.db", "project", "learned", 7 * 86400.0, None
    )
    assert loaded("memory: sqlite:///b.db\n").arguments()["memory"] == Memory(
        f"sqlite:///{folder.resolve()}/b.db", "project"
    )
    assert loaded("memory: {lease: 10s}\n").arguments()["memory"] == Memory(lease=10.0)
    assert "memory" not in loaded("name: x\n").arguments()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{bank: ftp://x}", "1:9: memory: a bank is at sqlite:///FILE or postgresql://…"),
        ("{scope: project}", "memory: with scope 'project' the bank outlives the run"),
        ("{scope: team}", "memory.scope: must be 'run' or 'project', not 'team'"),
        ("{lease: soon}", "memory.lease: "),
        (
            "{admission: learned, controller: no.json}",
            "no.json: the controller cannot be read: No such file",
        ),
        ("{bank: 'sqlite://b.db'}", "got 'sqlite:' without three slashes and the name of a file"),
        ("b.db", "got 'b.db': write 'sqlite:///b.db'"),
        ("{admision: all}", "memory.admision: unknown field, did you mean admission?"),
    ],
)
def test_a_memory_that_cannot_be_is_a_mistake(folder: Path, said: str, message: str) -> None:
    """Told with its place, before anything runs."""
    (found,) = mistakes(f"memory: {said}\n")
    assert message in found


def test_a_bank_that_no_later_run_uses_is_noted(folder: Path) -> None:
    """Unless the file says that it is meant so."""
    (note,) = loaded("memory: {bank: 'sqlite:///b.db'}\n").notes
    assert "1:10: memory: no later run uses this bank; with scope: project they do" in note
    assert not loaded("memory: {bank: 'sqlite:///b.db', scope: run}\n").notes
    assert not loaded("memory: 'sqlite:///b.db'\n").notes


def test_a_banks_password_is_not_shown(folder: Path) -> None:
    """As with a journal."""
    assert "hunter2" not in repr(loaded("memory: postgresql://u:hunter2@h/d\n").fields)


def test_an_example_plan_that_cannot_run_is_a_mistake(folder: Path) -> None:
    """It would teach the model to write the same."""
    assert mistakes(
        'planner:\n  examples:\n    - question: q\n      plan: |\n        1. serach(query="x")\n'
        "        join()\ntools: [calc]\n"
    ) == ["agent.yaml:4:13: planner.examples[0].plan: unknown tool 'serach'; there is 'calc'"]


def test_a_rule_that_names_no_tool_is_noted(folder: Path) -> None:
    """A misspelled rule guards nothing; with an MCP server it may be meant for its tools."""
    rules = "permissions: [{tools: [cal?, clac], action: deny}]\n"
    here = "agent.yaml:2:30: permissions[0].tools: no tool is named like 'clac'; there is calc"
    assert loaded(f"tools: [calc]\n{rules}").notes == (here,)
    assert loaded(f"tools: [calc, {{mcp: {{command: [server]}}}}]\n{rules}").notes == (
        f"{here}, and what an MCP server has, which is known when it runs",
    )


def test_a_policy_that_names_no_tool_is_noted(folder: Path) -> None:
    """It changes how nothing is called."""
    text = "tools: [calc]\npolicies:\n  - {tools: clac, retries: 1}\n  - {tools: [calc, 'web_*'], retries: 1}\n"
    assert loaded(text).notes == (
        "agent.yaml:3:13: policies[0].tools: no tool is named like 'clac'; there is calc",
        "agent.yaml:4:20: policies[1].tools: no tool is named like 'web_*'; there is calc",
    )
    assert loaded(text.replace("clac", "calc").replace("'web_*'", "'*'")).notes == ()


@pytest.mark.parametrize(
    ("rules", "first"),
    [
        ("{tools: '*', action: ask}, {tools: calc, action: deny}", 0),
        ("{tools: calc, action: allow}, {tools: 'c*', action: deny}", 0),
        ("{tools: calc, data: untrusted, action: ask}, {tools: calc, data: untrusted, action: deny}", 0),
        ("{tools: calc, data: untrusted, action: ask}, {tools: calc, data: trusted, action: ask}, {tools: calc, action: deny}", 2),
    ],
)  # fmt: skip
def test_a_rule_behind_one_that_covers_its_calls_is_noted(
    folder: Path, rules: str, first: int
) -> None:
    """It never decides; the note names those that do."""
    (note,) = loaded(f"tools: [calc]\npermissions: [{rules}]\n").notes
    place = rules.count("{") - 1
    assert (
        f"permissions[{place}]: decides nothing: for each of its calls permissions[0] (line 2)"
        in note
    )
    assert note.endswith("comes first")
    assert ("or permissions[1] (line 2)" in note) == bool(first)
    column = len("permissions: [") + rules.rindex("{") + 1
    assert note.startswith(f"agent.yaml:2:{column}: ")


@pytest.mark.parametrize(
    "rules",
    [
        "{tools: calc, data: untrusted, action: ask}, {tools: calc, action: deny}",
        "{tools: calc, action: ask}, {tools: '*', action: deny}",
        "{tools: web_fetch, action: deny}, {tools: ['web_*', calc], action: ask}",
    ],
)
def test_a_rule_that_decides_some_call_is_not_noted(folder: Path, rules: str) -> None:
    """One sort of data, or one tool, is enough."""
    assert not loaded(f"tools: [calc, web_fetch]\npermissions: [{rules}]\n").notes


def test_an_allow_that_leaves_a_sink_to_later_rules_shadows_none_of_them(folder: Path) -> None:
    """A call that writes is covered by an allow for trusted data only: a deny behind it decides."""
    Path("mail.py").write_text(
        "from agentpar import tool\n\n"
        "@tool(effect='write')\ndef send(to: str) -> str:\n    'Send. to: whom.'\n    return to\n"
    )
    text = "tools: [{python: 'mail:send'}]\npermissions: [{tools: '*', action: allow}, {tools: send, action: deny}]\n"
    assert not loaded(text, allow=("mail",)).notes


def test_beside_an_mcp_server_only_what_is_certain_of_its_tools_is_noted(folder: Path) -> None:
    """An allow may leave a tool that writes to the next rule, a deny leaves nothing."""
    tools = "tools: [calc, {mcp: {command: [server]}}]\n"
    loose = "permissions: [{tools: '*', action: allow}, {tools: 'c*', action: deny}]\n"
    assert not loaded(tools + loose).notes
    (note,) = loaded(tools + loose.replace("allow", "ask")).notes
    assert "permissions[1]: decides nothing" in note
    narrow = "permissions: [{tools: 'ca*', action: ask}, {tools: 'c*', action: deny}]\n"
    assert not loaded(tools + narrow).notes
    (note,) = loaded(tools + narrow.replace("'c*'", "'cal[cd]'")).notes
    assert "permissions[1]: decides nothing" in note


def test_a_journal_outside_the_folder_is_noted(folder: Path) -> None:
    """A name counts from the file's folder, so one with .. in it leaves that; a full one is meant."""
    note = "agent.yaml:1:10: journal: lies outside the folder of agent.yaml, from which its name counts"
    assert loaded("journal: sqlite:///../runs.db\n").notes == (note,)
    assert loaded("journal: sqlite:///a/../../runs.db\n").notes == (note,)
    assert loaded("journal: sqlite:///${WHERE}/runs.db\n", WHERE="..").notes == (note,)
    for fine in ("runs.db", "a/../runs.db", "..runs.db", "/var/lib/runs.db"):
        assert not loaded(f"journal: sqlite:///{fine}\n").notes


def test_examples_beside_an_mcp_server_are_not_checked_and_that_is_said(folder: Path) -> None:
    """Its tools are known only when it runs."""
    spec = loaded(
        "planner: {examples: [{question: q, plan: '1. find(x=1)'}]}\n"
        "tools: [{mcp: {command: [server]}}]\n"
    )
    assert spec.notes == (
        "agent.yaml:1:11: planner.examples: not checked, as an MCP server's tools are known "
        "when it runs",
    )


# YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "agent.yaml:1:1: the file is empty"),
        (b"# nothing\n", "agent.yaml:1:1: the file is empty"),
        (b"- calc\n", "agent.yaml:1:1: an agent is a mapping with fields such as tools:"),
        (b"name: a\nname: b\n", "agent.yaml:2:1: 'name' stands here twice (first in line 1)"),
        (b"tools:\n\t- calc\n", "agent.yaml:2:1: not YAML: a tab: YAML is indented with spaces"),
        (b"name: \xff\n", "agent.yaml:1:7: byte 0xff is not UTF-8"),
        ("name: ä\nx: ".encode("utf-16"), "agent.yaml:1:1: byte 0xff is not UTF-8"),
        (b"name: a\n---\nname: b\n", "agent.yaml:2:1: a second document; one file holds one agent"),
        (b"name: a\x00\n", "agent.yaml:1:8: a control character cannot stand here"),
        (b"name: !!python/object:os.system {}\n",
         "agent.yaml:1:7: tags such as 'tag:yaml.org,2002:python/object:os.system' are not read"),
        (b'name: "\\ud800"\n', "agent.yaml:1:7: half of a pair of \\u escapes, which is no character"),
        (b"name: *a\n", "agent.yaml:1:7: '*a' has no finished anchor '&a' before it"),
        (b"name: &a [*a]\n", "agent.yaml:1:11: '*a' has no finished anchor '&a' before it"),
        (b"name: x\n<<: {a: 1}\n",
         "agent.yaml:2:1: YAML 1.2 has no merge key '<<'; write the fields out"),
        (b"? [a]\n: b\n", "agent.yaml:1:3: a key must be a plain name"),
        (b"%YAML 1.1\n---\nname: x\n",
         "agent.yaml:2:1: the file is read as YAML 1.2; drop the directive"),
        (b"tools: [calc\n",
         "agent.yaml:2:1: not YAML: ',' or ']' is missing ('[' stands in line 1)"),
        (b"name: 'x\ntools: [calc]\n", "agent.yaml:1:7: not YAML: this quote is never closed"),
        (b"name: x\ntools\nversion: 1\n", "agent.yaml:2:1: not YAML: a field without ':'"),
        (b"name: a: b\n",
         "agent.yaml:1:8: not YAML: ':' cannot stand here: a text with ': ' needs quotes, fields of one level need one indentation"),
        (b"model:\n  id: x\n base_url: y\n",
         "agent.yaml:3:2: not YAML: this line is indented unlike those it belongs to"),
        (b"name: 'it's'\n",
         "agent.yaml:1:11: not YAML: something follows after the end of a value: does the text need quotes?"),
        (b"name: @x\n", "agent.yaml:1:7: not YAML: a text that begins with '@' needs quotes"),
        (b"name: " + b"9" * 5000, "agent.yaml:1:7: a number with too many digits"),
        (b"name: x\n" + b"#" * 1_000_000, "agent.yaml:1:1: the file is larger than 1,000,000 bytes"),
    ],
    ids=range(25),
)  # fmt: skip
def test_what_is_not_safe_yaml_is_refused(folder: Path, text: bytes, message: str) -> None:
    """With its place, and before any field is looked at."""
    assert mistakes(text) == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tools: calc", "1:8: tools: must be a list, not 'calc': write [calc]"),
        ("tools:\n  -calc", "2:3: tools: must be a list, not '-calc': put a space after each '-'"),
        ("tools:\n  calc: {}", "2:3: tools: must be a list, not a mapping: put '- ' before each entry"),
        ("tools: [mcp: {command: npx -y mail}]",
         "1:24: tools[0].mcp.command: must be a list, not 'npx -y mail': write [npx, -y, mail]"),
        ("policies: {'*': {retries: 1}}",
         "1:11: policies: must be a list, not a mapping: each entry is such as - {tools: web_*, retries: 3}"),
        ("secrets: a-long-password", "1:10: secrets: must be a list"),
        ("planner: {extended: yes}", "1:21: planner.extended: must be true or false, not 'yes'"),
        ("policies: [{tools: '*', hedge: on}]", "1:32: policies[0].hedge: must be true or false, not 'on'"),
        ("instructions: $TASK", "1:15: instructions: '$TASK' stands for itself: write ${TASK}"),
        ("model: {base_url: 'localhost:8000'}",
         "1:19: model.base_url: must begin with http:// or https://, such as http://localhost:8000/v1"),
        ("tools: [web_search: {url: 'localhost:8888'}]",
         "1:21: tools[0].web_search: url must begin with http:// or https://, such as http://localhost:8888"),
        ("journal: runs.db",
         "1:10: journal: a journal is at sqlite:///FILE or postgresql://…, got 'runs.db': write 'sqlite:///runs.db'"),
    ],
)  # fmt: skip
def test_a_message_says_what_to_write(folder: Path, text: str, message: str) -> None:
    """What a newcomer writes first is answered with what is meant; a credential is not shown."""
    assert mistakes(text + "\n") == [f"agent.yaml:{message}"]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("model: qwen2.5-coder-0.5b", {"model": "qwen2.5-coder-0.5b"}),
        (
            "model: http://localhost:8000/v1",
            {"model": "http://localhost:8000/v1", "model_id": None},
        ),
        ("model: '${MODEL}'", {"model": "some/model"}),
        ("workers: 3", {"workers": Workers(3)}),
        ("teams: 2", {"teams": Teams(2, "vote")}),
    ],
)
def test_a_value_alone_stands_for_its_section(
    folder: Path, text: str, arguments: dict[str, Any]
) -> None:
    """As in Python, where ``Agent(model=…)`` takes a name or an address."""
    made = loaded(text + "\n", MODEL="some/model").arguments()
    assert {name: made[name] for name in arguments} == arguments


def test_switches_may_come_from_the_environment(folder: Path) -> None:
    """Every true or false may be written as a reference, those of policies and planner too."""
    text = "planner: {extended: '${ON}'}\npolicies: [{tools: calc, hedge: '${ON}', idempotent: '${ON}'}]\n"
    fields = loaded(text, ON="true").fields
    assert fields.planner.extended is True
    assert (fields.policies[0].hedge, fields.policies[0].idempotent) == (True, True)


def test_bombs_are_refused_before_they_grow(folder: Path) -> None:
    """Aliases of aliases and deep nests cost next to nothing."""
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    began = time.process_time()
    (aliases,) = mistakes(f"l0: &l0 [x, x]\n{levels}\n")
    (deep,) = mistakes("tools: " + "[" * 50_000)
    (chained,) = mistakes(
        "a: &a [[[[[[[[[[[[1]]]]]]]]]]]]\nb: &b [[[[[[[[[[[[*a]]]]]]]]]]]]\nc: [[[[[[[[[[[[*b]]]]]]]]]]]]\n"
    )
    assert time.process_time() - began < 2.0
    assert "more than 20,000 values, aliases included" in aliases
    assert "nested deeper than 32 levels" in deep
    assert chained == "agent.yaml:3:16: nested deeper than 32 levels"


def test_a_path_that_is_no_file_is_refused(folder: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(ConfigError, match=r"^nope\.yaml:1:1: there is no such file$"):
        load("nope.yaml")
    with pytest.raises(ConfigError, match=r":1:1: this is a folder, where a file is needed$"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("on", "on"), ("1_000", "1_000"), ("2001-01-01", "2001-01-01"),
        ("017", 17), ("0o17", 15), ("0xff", 255), ("1e3", 1000.0), ("-1.5", -1.5), (".5", 0.5),
        ("true", True), ("False", False), ("~", None), ("", None), ("12:30", "12:30"), ("nan", "nan"),
    ],
)  # fmt: skip
def test_plain_values_follow_yaml_1_2(text: str, value: object) -> None:
    """The core schema, not the guesses of YAML 1.1."""
    assert resolve_plain(text) == value
    assert type(resolve_plain(text)) is type(value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.text(max_size=60).filter(lambda key: key != "<<"), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_every_json_document_reads_as_itself(value: Any) -> None:
    """JSON is YAML 1.2: read with our reader it gives the same values, each at a real place."""
    text = json.dumps(value)
    node = read_yaml(text, "x")
    assert node.plain() == value
    assert all(text[n.mark.column - 1 :] for n in nodes(node))


def nodes(node: Node) -> Iterator[Node]:
    yield node
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, dict | list):
        for child in children:
            yield from nodes(child)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@` \n\t$?,1.~", max_size=60))
def test_any_text_loads_or_is_refused_with_a_place(text: str) -> None:
    """Nothing but `ConfigError` comes out of the reader, and it starts with a position."""
    try:
        read_yaml(text, "x")
    except ConfigError as error:
        place = re.match(r"x:\d+:\d+: ", str(error))
    else:
        return
    assert place


# The environment


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("${A}", "one"), ("a${A}b${A}", "aonebone"), ("${B:-two}", "two"), ("${E:-two}", "two"),
        ("${A:-two}", "one"), ("${A:?no}", "one"), ("$${A}", "${A}"), ("$A $5", "$A $5"),
        ("x${E}", "x"),
    ],
)  # fmt: skip
def test_references_are_filled_in(folder: Path, written: str, name: str) -> None:
    """As in a shell, for the three forms there are."""
    assert loaded(f"name: '{written}'\n", A="one", E="").name == name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${B}", "B is not set: set it in the environment, or write ${B:-default}"),
        ("${B:?get one at example.org}", "B is not set: get one at example.org"),
        ("${E:?empty too}", "E is not set: empty too"),
        ("${B", "'${' begins no reference: write ${NAME}, ${NAME:-default} or ${NAME:?message}, "
         "and $${ for the characters themselves"),
    ],
)  # fmt: skip
def test_what_is_not_set_is_a_mistake(folder: Path, written: str, message: str) -> None:
    """Told once, at the value."""
    assert mistakes(f"model:\n  id: '{written}'\n", E="") == [
        f"agent.yaml:2:7: model.id: {message}"
    ]


def test_a_value_cannot_add_structure(folder: Path) -> None:
    """References are filled in after the YAML is read."""
    assert loaded("name: ${A}\n", A="x\ntools: [calc]").fields.tools == []


def test_numbers_may_come_from_the_environment(folder: Path) -> None:
    """What a variable holds is text, and is read as the field needs it."""
    spec = loaded(
        "defaults: {timeout: '${T}', concurrency: '${N}'}\nplanner: {max_tasks: '${M}'}\n"
        "model: {id: x, settings: {temperature: '${H}', seed: '${S}'}}\n",
        T="500ms", N="4", M="1.5k", H="0.25", S="3",
    )  # fmt: skip
    arguments = spec.arguments()
    assert [
        arguments[k] for k in ("timeout", "concurrency", "max_tasks", "temperature", "seed")
    ] == [
        0.5,
        4,
        1500,
        0.25,
        3,
    ]


def test_no_credential_is_shown(folder: Path) -> None:
    """Neither in the spec, nor in an error, nor where a wrong field got it."""
    spec = loaded(
        "model: {base_url: 'http://h/v1', api_key: '${K}'}\n"
        "tools: [{web_search: {provider: brave, api_key: '${K}'}},"
        " {mcp: {url: 'http://h', headers: {X-Key: '${K}'}}}]\n",
        K=CANARY,
    )
    assert CANARY not in repr(spec) + str(spec.fields) + spec.fields.model_dump_json()
    assert spec.arguments()["api_key"] == CANARY
    told = mistakes(
        f"name: '${{K}}{'x' * 100}'\nmodel: {{id: x, api_key: [{CANARY}], "
        "settings: {temperature: '${K}', seed: '${K}'}}\n"
        f"tools: [{{mcp: {{url: u, headers: {{k: [{CANARY}]}}}}}}, {{web_search: {{timeout: '${{K}}',"
        " provider: '${K}'}}]\n",
        K=CANARY,
    )
    assert len(told) == 7
    assert CANARY not in "\n".join(told)


# Files that the file names


def test_instructions_and_examples_come_from_files(folder: Path) -> None:
    """Text is taken as it is; examples are YAML with positions of their own."""
    Path("prompts").mkdir()
    Path("prompts/main.md").write_text("Use ${braces} and $${these}.\n")
    Path("prompts/plans.yaml").write_text(
        "- question: '${Q}'\n  plan: '1. calc(expression=\"1\")'\n"
    )
    text = (
        "instructions: {file: prompts/main.md}\ntools: [calc]\n"
        "planner: {examples: {file: prompts/plans.yaml}}\n"
    )
    arguments = loaded(text, Q="One?").arguments()
    assert arguments["instructions"] == "Use ${braces} and $${these}."
    assert arguments["examples"][0].question == "One?"
    Path("prompts/plans.yaml").write_text("- question: q\n  plan: 3\n- qestion: q\n  plan: x\n")
    assert mistakes(text) == [
        "prompts/plans.yaml:2:9: planner.examples[0].plan: must be a text, not 3",
        "prompts/plans.yaml:3:3: planner.examples[1].qestion: unknown field, did you mean question?",
        "prompts/plans.yaml:3:3: planner.examples[1].question: is needed",
    ]


def test_no_file_outside_the_folder_is_read(folder: Path) -> None:
    """Neither by '..', nor by an absolute path, nor through a link."""
    inner = folder / "inner"
    inner.mkdir()
    secret = folder / "secret.md"
    secret.write_text(CANARY)
    (inner / "link.md").symlink_to(secret)
    for name in ("../secret.md", str(secret), "link.md"):
        (inner / "agent.yaml").write_text(f"instructions: {{file: {name}}}\n")
        with pytest.raises(ConfigError, match="lies outside the folder of") as caught:
            load(inner / "agent.yaml")
        assert CANARY not in str(caught.value)


def test_an_included_file_that_is_absent_is_a_mistake(folder: Path) -> None:
    """At the place that names it."""
    assert mistakes("instructions: {file: no.md}\n") == [
        "agent.yaml:1:22: instructions.file: no.md:1:1: there is no such file"
    ]


# Tools


def test_python_runs_only_where_allowed(folder: Path) -> None:
    """The message names the flag, and nothing was imported."""
    Path("own_evil.py").write_text("open('ran', 'w').close()\ndef f(x: int) -> int: return x\n")
    text = "tools:\n  - python: own_evil:f\n"
    assert mistakes(text) == [
        "agent.yaml:2:13: tools[0].python: a file may only run code that you allow: to run "
        "'own_evil', use --allow-module own_evil (in Python: Agent.from_yaml(path, "
        "allow_modules=['own_evil']))"
    ]
    assert not Path("ran").exists()
    (tool,) = loaded(text, allow=("own_evil",)).arguments()["tools"]
    assert tool.name == "f"
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_other:nope", "module 'own_other' has no 'nope'"),
        ("own_other:lokup", "module 'own_other' has no 'lokup', did you mean lookup?"),
        ("own_absent:f", "module 'own_absent' cannot be imported: ModuleNotFoundError: "),
        ("own_broken:f", "module 'own_broken' cannot be imported: ZeroDivisionError: "),
        ("own_other", "'own_other' must be module:name, such as mypackage.tools:lookup"),
        ("own_other:lookup.__globals__", "must be module:name"),
        ("own_other:NUMBER", "3 is not a tool"),
        ("json:dumps", "not json.py beside this file"),
    ],
)
def test_a_python_reference_that_leads_nowhere(folder: Path, reference: str, message: str) -> None:
    """Each says what is wrong with it."""
    Path("own_other.py").write_text("NUMBER = 3\ndef lookup(x: int) -> int: return x\n")
    Path("own_broken.py").write_text("1 / 0\n")
    Path("json.py").write_text("def dumps(x: int) -> int: return x\n")
    allow = ("own_other", "own_absent", "own_broken", "json")
    with pytest.raises(ConfigError) as caught:
        loaded(f"tools: [{{python: '{reference}'}}]\n", allow=allow)
    assert message in str(caught.value)
    sys.modules.pop("own_other", None)


def test_tools_keep_the_order_of_the_file(folder: Path) -> None:
    """The model sees them in the order in which they are written."""
    text = (
        "tools: [{mcp: {command: [server], allowed_tools: [find], effect: read}}, calc, web_fetch,"
        " {web_search: {url: 'http://127.0.0.1:8888'}}]\n"
    )
    spec = loaded(text)
    first, *others = spec.arguments()["tools"]
    assert isinstance(first, McpServer)
    assert isinstance(first, ToolSource)
    assert [tool.name for tool in others] == ["calc", "web_fetch", "web_search"]
    again, *_ = spec.arguments()["tools"]
    assert again is not first


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("miniweb://", {}),
        ("miniweb://?latency=80ms&jitter=1s", {"latency": 0.08, "jitter": 1.0}),
    ],
)
def test_the_mini_web_has_switches(address: str, options: dict[str, float]) -> None:
    """In the query of its address."""
    read = mini_web_options(address)
    read.pop("faults")
    assert read == options


def test_the_mini_web_fails_as_asked() -> None:
    """Shares, seeds and injections reach `Faults`; what cannot be read is refused."""
    faults = mini_web_options("miniweb://?broken=0.5&injections=on&seed=3")["faults"]
    assert (faults.broken, faults.injections, faults.seed) == (0.5, True, 3)
    for bad in ("latency=x", "broken=2", "injections=maybe", "seed=1&seed=2", "nope=1"):
        with pytest.raises(UsageError):
            mini_web_options(f"miniweb://?{bad}")
    with pytest.raises(UsageError, match="write miniweb://"):
        mini_web_options("miniweb://host/path")


async def test_web_tools_live_on_the_mini_web(folder: Path) -> None:
    """Search and fetch work on its origin, nothing else there, and nothing is left after."""
    spec = loaded(
        "tools: [{web_search: {url: 'miniweb://?latency=0ms'}}, {web_fetch: {max_chars: 300}}, calc]\n"
    )
    source, calc = spec.arguments()["tools"]
    assert calc.name == "calc"
    assert "simulated" in source.banner
    async with Agent([source, calc], runtime=ScriptedRuntime([])) as agent:
        tools = await agent.tools()
        assert list(tools) == ["web_search", "web_fetch", "calc"]
        hits = await tools["web_search"].call(query="Chile population")
        page = await tools["web_fetch"].call(url=hits[0]["url"], find="population")
        assert "Chile" in page["title"]
        assert len(page["text"]) <= 300
        origin = httpx.URL(hits[0]["url"])
        assert f"{origin.host}:{origin.port}" in source.banner
        with pytest.raises(FetchError, match="refused"):
            await tools["web_fetch"].call(url=f"http://{origin.host}:1/")
    with socket.socket() as probe:
        assert probe.connect_ex((origin.host, origin.port)) != 0


async def test_an_engine_at_a_private_address_is_granted_to_search_alone(folder: Path) -> None:
    """Your own SearXNG answers; pages on its origin stay out of reach."""
    async with MiniWeb(latency=0) as engine:
        spec = loaded(f"tools: [{{web_search: {{url: '{engine.origin}'}}}}, web_fetch]\n")
        async with Agent(**spec.arguments(), runtime=ScriptedRuntime([])) as agent:
            tools = await agent.tools()
            hits = await tools["web_search"].call(query="Chile")
            with pytest.raises(FetchError, match="loopback"):
                await tools["web_fetch"].call(url=hits[0]["url"])


async def test_an_mcp_server_from_a_file_runs_while_the_agent_is_open(folder: Path) -> None:
    """Its chosen tools come in their place, with the effect that the file names."""
    pytest.importorskip("mcp")
    server = REPOSITORY / "tests/tools/mcp_server.py"
    spec = loaded(
        f"tools: [calc, {{mcp: {{command: ['{sys.executable}', '{server}'], allowed_tools: [add],"
        " effect: write, timeout: 1m}}]\n"
    )
    async with Agent(**spec.arguments(), runtime=ScriptedRuntime([])) as agent:
        tools = await agent.tools()
        assert {name: tool.effect for name, tool in tools.items()} == {
            "calc": "read",
            "add": "write",
        }
        assert await tools["add"].call(a=2, b=3) == 5


async def test_web_lookup_works_on_the_mini_web_too(folder: Path) -> None:
    """One call searches and reads."""
    spec = loaded("tools: [{web_lookup: {search: {url: 'miniweb://?latency=0ms'}}}]\n")
    async with Agent(**spec.arguments(), runtime=ScriptedRuntime([])) as agent:
        found = await (await agent.tools())["web_lookup"].call(query="Chile", find="capital")
    assert found["value"] == "Santiago"


def test_only_one_mini_web(folder: Path) -> None:
    """Two searches with different switches would be two."""
    text = (
        "tools: [{web_search: {url: 'miniweb://'}},"
        " {web_lookup: {search: {url: 'miniweb://?latency=1s'}}}]\n"
    )
    assert "one agent has one mini-web" in mistakes(text)[0]


# The schema


def test_the_committed_schema_is_true() -> None:
    """`python -m agentpar.config > agentpar/agentpar.schema.json` writes it anew."""
    committed = Path(agentpar.__file__).with_name("agentpar.schema.json").read_text()
    printed = subprocess.run(
        [sys.executable, "-m", "agentpar.config"], capture_output=True, text=True, timeout=30
    )
    assert printed.stdout == committed
    assert json.loads(committed) == json_schema()


def sections(section: type[Section] = AgentFile) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        if (inner := section_in(field.annotation)) is not None:
            yield from sections(inner)


def test_every_field_is_explained() -> None:
    """In the schema, so that editors show it, and in the documentation."""
    documentation = (REPOSITORY / "docs/yaml.md").read_text()
    for section in sections():
        for name, field in section.model_fields.items():
            assert (field.description or "").strip(), f"{section.__name__}.{name}"
            assert f"`{name}`" in documentation, f"{section.__name__}.{name}"
        for word in (*section.also, *section.later):
            assert f"`{word}`" in documentation, word


def test_the_documentation_is_true(folder: Path) -> None:
    """Every whole example in docs/yaml.md loads."""
    documentation = (REPOSITORY / "docs/yaml.md").read_text()
    examples = re.findall(r"```yaml\n(# agent\.yaml\n.*?)```", documentation, re.DOTALL)
    assert examples
    for example in examples:
        loaded(example, allow=("mypackage",), VLLM_KEY="k")


def test_importing_the_agent_loads_no_yaml() -> None:
    """ruamel.yaml loads with the first file."""
    script = "import sys, agentpar.agent; print('ruamel' in ' '.join(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert printed.stdout.strip() == "False"


def test_known_tools_are_tools(folder: Path) -> None:
    """What `arguments` hands over is what the agent takes."""
    things = loaded("tools: [calc, web_fetch, {web_search: {provider: ddgs}}]\n").arguments()[
        "tools"
    ]
    assert all(isinstance(thing, Tool) for thing in things)


@pytest.mark.usefixtures("folder")
def test_an_example_may_think_where_workers_are_there_to_think() -> None:
    """``think`` is a tool of such an agent, though it stands in no list."""
    text = (
        "planner: {examples: [{question: q, plan: \"1. think(question='x')\\njoin()\"}]}\n"
        "tools: [calc]\npolicies: [{tools: think, timeout: 1m}]\n"
    )
    assert "unknown tool 'think'" in mistakes(text)[0]
    assert loaded(text + "workers: {n: 2}\n").notes == ()


@pytest.mark.usefixtures("folder")
def test_every_switch_may_come_out_of_the_environment() -> None:
    """What ``${V}`` stands for is text, and true is true."""
    spec = loaded(
        "planner: {extended: '${ON}'}\n"
        "policies:\n  - {tools: calc, hedge: '${ON}', idempotent: '${OFF:-false}'}\n"
        "tools: [calc]\n",
        ON="true",
    )
    assert spec.fields.planner.extended is True
    assert (spec.fields.policies[0].hedge, spec.fields.policies[0].idempotent) == (True, False)
