"""The record: what is written is read back equal, damage is named, a replay decides alike."""

from __future__ import annotations

import asyncio
import json
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar import Agent, Answer, RunFailed, ScriptedRuntime, tool
from agentpar.errors import UsageError
from agentpar.events import (
    Citation,
    Event,
    FromTeam,
    JoinStarted,
    PlanEnded,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    Usage,
)
from agentpar.executor.machine import Machine
from agentpar.executor.record import RecordWriter, Terms, decode, encode, read_record, replay
from agentpar.labels import Label, Origin
from agentpar.permissions import Flow, Permissions, Rule
from agentpar.plan import EACH, Failed, Ok, Pick, Ref, Skipped, Task
from agentpar.policy import Limits, Policy, Price

text = st.text(st.characters(codec=None), max_size=12)  # lone surrogates too
keys = st.one_of(text, st.sampled_from(["$ref", "$pick", "$literal", "$int", "outcome", "task"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=8
)
ids = st.integers(1, 10**9)
steps = st.one_of(text, st.integers(0, 99), st.sampled_from([EACH, "*"]))
refs = st.builds(Ref, ids, st.lists(steps, max_size=3).map(tuple))
picked = st.builds(Pick, st.lists(refs, min_size=1, max_size=3).map(tuple), st.none() | ids)
arguments = st.dictionaries(
    text, st.one_of(values, refs, picked, st.lists(refs | picked, max_size=2)), max_size=3
)
tasks = st.builds(Task, ids, text, arguments, st.lists(ids, max_size=3).map(tuple), text)
outcomes = st.one_of(st.builds(Ok, values), st.builds(Failed, text, text), st.builds(Skipped, ids))
citations = st.lists(st.builds(Citation, ids, text, text, text, text), max_size=2).map(tuple)
PERMISSIONS = Permissions(
    (Rule("send_*", "ask"), Rule(["log", "note"], "allow", data="any")),
    {"send": Flow("write", sends=True), "calc": Flow(pure=True)},
)
origins = st.lists(st.builds(Origin, ids, text), max_size=2).map(tuple)
FIELDS = {
    "label": st.builds(Label, origins, origins),
    "args": st.dictionaries(text, values, max_size=3),
    "task": tasks,
    "outcome": outcomes,
    "citations": citations,
    "unsupported": st.lists(text, max_size=2).map(tuple),
    "usage": st.builds(Usage, ids, ids, ids, ids),
    "allowed": st.booleans(),
    "anew": st.booleans(),
    **dict.fromkeys(("changes", "workers", "faults"), st.lists(text, max_size=2).map(tuple)),
    "permissions": st.sampled_from(
        [PERMISSIONS, replace(PERMISSIONS, besides=(Rule("*", "ask"),))]
    ),
    **dict.fromkeys(("holder", "producer"), st.tuples(text, ids)),
    "votes": st.dictionaries(text, st.lists(ids, max_size=3).map(tuple), max_size=3),
    "features": st.lists(st.floats(0, 1e6), max_size=3).map(tuple),
    "admitted": st.booleans(),
    **dict.fromkeys(("spared", "probability"), st.floats(0, 1e6)),
    "round": ids,
    "team": ids,
    "task_id": ids,
    **dict.fromkeys(("at", "first_token", "seconds"), st.floats(0, 1e6)),
}


def events_of(kind: type) -> st.SearchStrategy[Any]:
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return st.builds(kind, **{name: FIELDS.get(name, text) for name in names})


KINDS = [kind for kind in typing.get_args(Event) if kind is not FromTeam]
events = st.one_of([events_of(kind) for kind in KINDS])
from_teams = st.builds(FromTeam, ids, events, FIELDS["at"])
events |= from_teams


@given(st.lists(events, max_size=4))
def test_every_event_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, told: list[Event]
) -> None:
    """Encode, write, read, decode: equal, whatever the strings, keys and numbers are."""
    path = tmp_path_factory.mktemp("record") / "events.jsonl"
    machine = Machine(
        Limits(7, 1, 3, max_cost_usd=0.5, price=Price(0.1, 0.2)),
        PERMISSIONS,
        policies={"get": Policy(retries=2, cache=60.0), "send": Policy()},
        latencies={"get": (0.25, 0.5)},
        seed="s",
    )
    with RecordWriter(path, machine) as writer:
        for event in told:
            writer.event(event)
    record = read_record(path)
    assert list(record.events) == told
    assert record.terms == Terms.of(machine)
    assert Terms.of(record.terms.machine()) == record.terms


@given(events)
def test_decode_gives_back_what_encode_took(event: Event) -> None:
    """In memory too, where LangGraph keeps it."""
    assert decode(encode(event)) == event


def test_a_tools_own_ref_key_stays_data() -> None:
    """``{"$ref": …}`` from a tool is a dict again, not a reference."""
    done = TaskDone(1, Ok({"$ref": [2], "in": [{"$literal": {"$ref": [1]}}, {"$int": "ff"}]}))
    assert decode(json.loads(json.dumps(encode(done)))) == done


def test_a_number_of_any_size_is_recorded() -> None:
    """10,000 digits are more than Python turns into text."""
    done = TaskDone(1, Ok([10**10_000, -(2**70)]))
    assert decode(json.loads(json.dumps(encode(done)))) == done


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"event": "TaskVanished"},
        {"event": "RunStarted"},
        {"event": "RunStarted", "run_id": "a", "question": "b", "more": 1},
        {"event": "TaskDone", "task_id": 1, "outcome": {"outcome": "odd"}},
        {"event": "TaskDone", "task_id": 1, "outcome": "ok"},
        {"event": "TaskPlanned", "round": 1, "task": {"id": 1}},
        {"event": "TaskStarted", "task_id": 1, "args": {"$ref": []}},
        {"event": "Answered", "round": 1, "text": "", "citations": [1]},
    ],
)
def test_what_is_no_event_is_refused(data: dict[str, Any]) -> None:
    """With the one error that says it is the file's fault."""
    with pytest.raises(UsageError, match="event"):
        decode(data)


# A real run


@tool
async def population(country: str) -> int | str:
    """Population of a country."""
    return {"Chile": 19, "Peru": 33}[country]


PLAN = '1. population(country="Chile")\n2. population(country="Atlantis")\n3. population($2)\n'


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The record of a run with a result, a failure, a fault and a replan."""
    texts = [PLAN, "Replan: Peru", '4. population(country="Peru")', "Peru has 33 [4]."]
    agent = Agent([population], runtime=ScriptedRuntime(texts), runs=tmp_path)
    agent.ask_sync("Chile or Peru?", run_id="one")
    return tmp_path / "one" / "events.jsonl"


def test_replay_comes_out_equal(recorded: Path) -> None:
    """Every command of the run, decided again from its facts."""
    record = read_record(recorded)
    again = replay(record)
    assert again.difference == ""
    assert again.events == len(list(record.events))
    assert again.commands == len(record.lines) - again.events > 6


def test_replay_finds_every_changed_fact_that_matters(recorded: Path) -> None:
    """Drop or change one line of what decided something: the replay says where it differs."""
    lines = recorded.read_text().splitlines(keepends=True)
    deciding = ("RunStarted", "TaskPlanned", "TaskDone", "PlanEnded", "ReplanAsked", "Answered")
    checked = 0
    for number, line in enumerate(lines):
        if json.loads(line).get("event") in deciding:
            recorded.write_text("".join(lines[:number] + lines[number + 1 :]))
            assert replay(read_record(recorded)).difference, f"without {line}"
            checked += 1
    assert checked > 8


def test_replay_finds_a_changed_value(recorded: Path) -> None:
    """A result edited by hand no longer leads to the recorded skip."""
    rows = recorded.read_text().split("\n")
    at = next(n for n, row in enumerate(rows) if '"outcome": "failed"' in row)
    done = {**json.loads(rows[at]), "outcome": {"outcome": "ok", "value": "Peru"}}
    recorded.write_text("\n".join([*rows[:at], json.dumps(done), *rows[at + 1 :]]))
    assert "recorded {'command': 'Settle'" in replay(read_record(recorded)).difference


def test_replay_finds_a_changed_command(recorded: Path) -> None:
    """The fingerprint of a call's inputs is compared too."""
    row = next(row for row in recorded.read_text().split("\n") if '"command": "Execute"' in row)
    inputs = json.loads(row)["inputs"]
    recorded.write_text(recorded.read_text().replace(inputs, "0" * 64))
    assert "now wanted" in replay(read_record(recorded)).difference


def test_replay_survives_a_doubled_line(recorded: Path) -> None:
    """A task planned twice is a difference, not a crash."""
    lines = recorded.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"TaskPlanned"' in line)
    recorded.write_text("".join([*lines[: at + 2], lines[at], *lines[at + 2 :]]))
    assert "planned twice" in replay(read_record(recorded)).difference


def test_a_torn_last_line_is_left_out(recorded: Path) -> None:
    """Cut at every byte of the last line, the rest is read: killed while writing is normal."""
    whole = recorded.read_bytes()
    count = len(read_record(recorded).lines)
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole)):
        recorded.write_bytes(whole[:cut])
        assert len(read_record(recorded).lines) == count - 1


def test_a_torn_character_is_left_out(tmp_path: Path) -> None:
    """The cut may go through a letter that takes several bytes."""
    path = tmp_path / "events.jsonl"
    with RecordWriter(path, Machine()) as writer:
        writer.event(RunStarted("one", "Größe?"))
    path.write_bytes(path.read_bytes().partition("ß".encode())[0] + b"\xc3")
    assert list(read_record(path).events) == []


@pytest.mark.parametrize(
    "row", [b"{", b"[]", b"3", b'"text"', b"", b"\xff\xfe", b'{"event": "Odd"}', b'{"event": 1}']
)
def test_damage_in_the_middle_is_named(recorded: Path, row: bytes) -> None:
    """File and line number, as an editor takes them."""
    lines = recorded.read_bytes().split(b"\n")
    lines[4] = row
    recorded.write_bytes(b"\n".join(lines))
    with pytest.raises(UsageError, match=r"events\.jsonl:5: "):
        read_record(recorded)


@pytest.mark.parametrize(
    "head",
    ["{", "[]", "{}", '{"record": 99}', '{"record": 2}', '{"record": 2, "limits": {"a": 1}}'],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, head: str) -> None:
    """Line 1 must be the header, and whole."""
    (path := tmp_path / "events.jsonl").write_text(head + "\n")
    with pytest.raises(UsageError, match=r"events\.jsonl:1: not a run record of format 2"):
        read_record(path)


def test_no_file_and_an_empty_file(tmp_path: Path) -> None:
    """Each says what it is."""
    with pytest.raises(UsageError, match="there is no record at"):
        read_record(tmp_path / "none.jsonl")
    (path := tmp_path / "events.jsonl").touch()
    with pytest.raises(UsageError, match="the record is empty"):
        read_record(path)


async def test_lines_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    """Whoever looks in the middle of a run finds every fact so far, in whole lines."""
    path = tmp_path / "one" / "events.jsonl"
    seen: list[str] = []

    @tool
    async def look() -> str:
        """Look at the record."""
        seen.append(path.read_text())
        return "looked"

    runtime = ScriptedRuntime(["1. look()\njoin()", "looked [1]."])
    await Agent([look], runtime=runtime, runs=tmp_path).ask("Look", run_id="one")
    assert seen[0].endswith("\n")
    rows = [json.loads(row) for row in seen[0].splitlines()]
    assert rows[-1]["event"] == "TaskStarted"


async def test_a_cancelled_run_has_a_readable_record(tmp_path: Path) -> None:
    """The last line says that it was cancelled, and the record replays."""

    @tool
    async def hang() -> str:
        """Hang."""
        await asyncio.sleep(60)
        return ""

    agent = Agent([hang], runtime=ScriptedRuntime(["1. hang()"]), runs=tmp_path)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent.ask("Hang", run_id="one"), 0.05)
    record = read_record(tmp_path / "one" / "events.jsonl")
    assert isinstance(list(record.events)[-1], RunFinished)
    assert replay(record).difference == ""


async def test_a_run_that_cannot_be_recorded_ends(tmp_path: Path) -> None:
    """A folder that is a file: before a model is asked, and with what to do."""
    (tmp_path / "runs").write_text("not a folder")
    runtime = ScriptedRuntime(["join()", "x"])
    agent = Agent([population], runtime=runtime, runs=tmp_path / "runs")
    with pytest.raises(UsageError, match=r"cannot be recorded in .*runs.* give another folder"):
        await agent.ask("Chile?")
    assert runtime.requests == []


async def test_a_record_is_never_written_over(tmp_path: Path) -> None:
    """The id of an earlier run is refused, whether that one has ended or not."""
    agent = Agent([population], runtime=ScriptedRuntime(["join()", "first"]), runs=tmp_path)
    asked = (agent.ask("Chile?", run_id="one") for _ in range(2))
    first, second = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, Answer)
    assert isinstance(second, UsageError)
    with pytest.raises(UsageError, match=r"a run 'one' already .*another run_id"):
        await agent.ask("Chile?", run_id="one")
    record = read_record(tmp_path / "one" / "events.jsonl")
    assert replay(record).difference == ""
    assert [type(event) for event in record.events].count(RunStarted) == 1


async def test_a_disk_that_fails_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner cannot mistake it for an error of its own."""

    def full(self: RecordWriter, event: Event) -> None:
        if not isinstance(event, RunStarted):
            raise OSError("no space left on device")

    monkeypatch.setattr(RecordWriter, "event", full)
    agent = Agent([population], runtime=ScriptedRuntime(["join()", "x"]), runs=tmp_path)
    with pytest.raises(OSError, match="no space left"):
        await agent.ask("Chile?")


async def test_a_failed_run_is_recorded(tmp_path: Path) -> None:
    """With the status and the error as its last line."""
    runtime = ScriptedRuntime(["join()", RuntimeError("model gone")])
    with pytest.raises(RunFailed, match="model gone"):
        await Agent([population], runtime=runtime, runs=tmp_path).ask("Chile?", run_id="one")
    last = list(read_record(tmp_path / "one" / "events.jsonl").events)[-1]
    assert isinstance(last, RunFinished)
    assert (last.status, last.error) == ("failed", "RuntimeError: model gone")


def test_an_earlier_part_is_written_again(tmp_path: Path) -> None:
    """A resumed run's record starts at the run's beginning, commands included."""
    past: list[Event] = [
        RunStarted("one", "Chile?"),
        TaskPlanned(1, Task.of(1, "population", country="Chile")),
        PlanEnded(1),
        TaskDone(1, Ok(19)),
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("the earlier part")
    with RecordWriter(path, Machine(), history=past) as writer:
        writer.event(JoinStarted(1))
    record = read_record(path)
    assert list(record.events) == [*past, JoinStarted(1)]
    assert replay(record).difference == ""
    assert replay(record).commands == 3  # Plan, Execute, Join
