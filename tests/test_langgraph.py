"""The agent as a LangGraph graph, with LangGraph's real savers on real SQLite files."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentpar import Agent, Rule, ScriptedRuntime, UsageError, tool
from agentpar.events import RunFinished

if importlib.util.find_spec("langgraph") is None:
    pytest.skip("langgraph is not installed", allow_module_level=True)

ROOT = Path(__file__).parent.parent
PLAN = '1. population(country="Chile")\n2. population(country="Peru")\njoin()'
ANSWER = "Chile has 19 people [1]. Peru has 33 people [2].\nAnswer: Peru [2]"
RISKY = '1. population(country="Chile")\n2. send(text=$1)\n3. send(text="hello")\njoin()'


@pytest.fixture
def calls() -> list[str]:
    """Every tool call made, in order."""
    return []


def agent_of(
    texts: list[str], calls: list[str], *, sources: Sequence[Any] = (), **options: Any
) -> Agent:
    @tool
    async def population(country: str) -> int:
        """Population of a country."""
        calls.append(country)
        return {"Chile": 19, "Peru": 33}[country]

    @tool(effect="write")
    async def send(text: Any) -> str:
        """Send a text."""
        calls.append(f"send {text}")
        return "sent"

    return Agent([population, send, *sources], runtime=ScriptedRuntime(texts), **options)


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Any]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(str(tmp_path / "graph.sqlite")) as saver:
        yield saver


def waiting(state: Any) -> list[dict[str, Any]]:
    """The calls that wait for approval."""
    calls: list[dict[str, Any]] = json.loads(json.dumps(state["__interrupt__"][0].value["approve"]))
    return calls


def thread(name: str = "one") -> Any:
    return {"configurable": {"thread_id": name}}


def test_invoke_answers(saver: Any, calls: list[str]) -> None:
    """The sync door, with the sync saver: question in, checked answer out."""
    graph = agent_of([PLAN, ANSWER], calls).as_graph(saver)
    state = graph.invoke({"question": "Chile or Peru?"}, thread())
    assert state["text"] == ANSWER
    assert state["answer"]["status"] == "answered"
    assert [c["supported"] for c in state["answer"]["citations"]] == [True, True, True]
    assert sorted(calls) == ["Chile", "Peru"]


async def test_ainvoke_answers(tmp_path: Path, calls: list[str]) -> None:
    """The async door, with the async saver."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "graph.sqlite")) as saver:
        graph = agent_of([PLAN, ANSWER], calls).as_graph(saver)
        state = await graph.ainvoke({"question": "Chile or Peru?"}, thread())
        assert state["text"] == ANSWER
        assert (await graph.aget_state(thread())).values["answer"] == state["answer"]


async def test_sync_invoke_inside_a_running_loop(saver: Any, calls: list[str]) -> None:
    """A notebook has a loop running already, and `invoke` works there all the same."""
    graph = agent_of([PLAN, ANSWER], calls).as_graph(saver)
    assert graph.invoke({"question": "Chile or Peru?"}, thread())["text"] == ANSWER


def test_without_a_checkpointer(calls: list[str]) -> None:
    """No saver, no pause: the graph just runs."""
    graph = agent_of([PLAN, ANSWER], calls).as_graph()
    assert graph.invoke({"question": "Chile or Peru?"})["text"] == ANSWER


def test_question_is_required(calls: list[str]) -> None:
    """An empty state says what it lacks."""
    with pytest.raises(Exception, match="needs a 'question'"):
        agent_of([], calls).as_graph().invoke({"question": " "})


def test_risky_calls_wait_for_approval(saver: Any, calls: list[str]) -> None:
    """The graph pauses before a risky call, once for all that wait: with their arguments, where
    their data come from, why they are asked for, and what a yes is bound to."""
    graph = agent_of([RISKY, "Answer: sent [2]"], calls).as_graph(saver)
    state = graph.invoke({"question": "Send it"}, thread())
    assert calls == ["Chile"]
    fed, own = waiting(state)
    bounds = {fed.pop("bound"), own.pop("bound")}
    assert len(bounds) == 2
    because = "send changes things"
    assert fed == {
        "task_id": 2,
        "tool": "send",
        "args": {"text": 19},
        "label": {"data": [{"task_id": 1, "call": "population(Chile)"}], "plan": []},
        "because": because,
    }
    nothing = {"data": [], "plan": []}
    assert own == {
        "task_id": 3, "tool": "send", "args": {"text": "hello"}, "label": nothing,
        "because": because,
    }  # fmt: skip


def test_resumed_run_repeats_no_call(saver: Any, calls: list[str]) -> None:
    """A fresh agent, as in another process, carries on: what has run does not run again."""
    from langgraph.types import Command

    agent_of([RISKY], calls).as_graph(saver).invoke({"question": "Send it"}, thread())
    again = agent_of(["Answer: sent [2]"], calls).as_graph(saver)
    state = again.invoke(Command(resume=True), thread())
    assert state["answer"]["conclusion"] == "sent [2]"
    assert calls[0] == "Chile"
    assert sorted(calls[1:]) == ["send 19", "send hello"]


def test_nobody_is_asked_for_a_call_that_came_too_late(saver: Any, calls: list[str]) -> None:
    """The deadline ends a run whose other calls still go on: there is an answer, and no pause."""

    @tool
    async def dawdle() -> str:
        """Take too long."""
        await asyncio.sleep(60)
        return "done"

    texts = ['1. dawdle()\n2. send(text="hello")\njoin()', "Answer: nothing was sent"]
    graph = agent_of(texts, calls, sources=[dawdle], deadline=0.5).as_graph(saver)
    state = graph.invoke({"question": "Send it"}, thread())
    assert "__interrupt__" not in state
    assert state["pending"] == []
    assert state["answer"]["usage"]["stopped_by"] == "deadline=0.5 s"


def test_a_deadline_makes_no_checkpoint_of_its_own(calls: list[str]) -> None:
    """The first plan is asked for at once."""
    graph = agent_of([PLAN, ANSWER], calls, deadline=60.0).as_graph()
    parts = graph.stream({"question": "Chile or Peru?"}, stream_mode="updates")
    assert [name for part in parts for name in part] == ["begin", "work"]


def test_verdict_by_task(saver: Any, calls: list[str]) -> None:
    """``resume={"task_id": …}`` allows one call and refuses another, which then is data."""
    from langgraph.types import Command

    graph = agent_of([RISKY, "Answer: sent once"], calls).as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    state = graph.invoke(Command(resume={"2": True, "3": "not today"}), thread())
    assert calls == ["Chile", "send 19"]
    assert state["answer"]["tasks"]["3"]["ok"] is False
    denied = [e for e in state["events"] if e["event"] == "TaskDone" and e["task_id"] == 3]
    assert denied[0]["outcome"]["error"] == "not approved: not today"


def test_verdict_by_what_it_is_bound_to(saver: Any, calls: list[str]) -> None:
    """``resume={bound: …}`` speaks of the very call that was shown."""
    from langgraph.types import Command

    graph = agent_of([RISKY, "Answer: sent once"], calls).as_graph(saver)
    fed, own = waiting(graph.invoke({"question": "Send it"}, thread()))
    graph.invoke(Command(resume={fed["bound"]: False, own["bound"]: True}), thread())
    assert calls == ["Chile", "send hello"]


def test_a_call_without_a_verdict_is_asked_for_again(saver: Any, calls: list[str]) -> None:
    """Neither a yes nor a no; the other call runs meanwhile."""
    from langgraph.types import Command

    graph = agent_of([RISKY, "Answer: sent both"], calls).as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    state = graph.invoke(Command(resume={"2": True}), thread())
    assert calls == ["Chile", "send 19"]
    assert [call["task_id"] for call in waiting(state)] == [3]
    state = graph.invoke(Command(resume=True), thread())
    assert (calls, state["text"]) == (["Chile", "send 19", "send hello"], "Answer: sent both")


def test_a_stale_approval_does_not_pass(saver: Any, calls: list[str]) -> None:
    """A yes to the call of an earlier question says nothing about this one's, and is refused."""
    from langgraph.types import Command

    other = RISKY.replace("hello", "a ransom note")
    graph = agent_of([RISKY, other, "Answer: sent"], calls).as_graph(saver)
    stale = {c["bound"]: True for c in waiting(graph.invoke({"question": "Send it"}, thread()))}
    fresh = waiting(graph.invoke({"question": "Send another"}, thread()))
    with pytest.raises(UsageError, match=r"no call that waits .* '2' \(send\), '3' \(send\)"):
        graph.invoke(Command(resume=stale), thread())
    assert "send" not in " ".join(calls)
    graph.invoke(Command(resume={call["bound"]: True for call in fresh}), thread())
    assert sorted(calls[2:]) == ["send 19", "send a ransom note"]


def test_a_saved_approval_of_other_arguments_does_not_pass(saver: Any, calls: list[str]) -> None:
    """Should a state be edited between question and answer, the machine asks again."""
    from langgraph.types import Command

    graph = agent_of([RISKY, "Answer: sent"], calls).as_graph(saver)
    state = graph.invoke({"question": "Send it"}, thread())
    forged = [{**call, "bound": "0" * 64} for call in waiting(state)]
    graph.update_state(thread(), {"pending": forged}, as_node="work")
    graph.invoke(None, thread())
    state = graph.invoke(Command(resume=True), thread())
    assert calls == ["Chile"]
    assert {call["bound"] for call in waiting(state)}.isdisjoint({"0" * 64})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1, "the verdict on task 2 .send. must be True, False, or a text"),
        ([True], "the verdict on task 2 .* got .True."),
        ({"3": "no", "2": 1}, "the verdict on task 2 .* got 1"),
        ({"7": True}, "'7' is no call that waits for approval"),
    ],
)
def test_a_resume_value_of_a_wrong_type_is_refused(
    saver: Any, calls: list[str], value: Any, message: str
) -> None:
    """It is no verdict at all; the question stands, and can be answered."""
    from langgraph.types import Command

    graph = agent_of([RISKY, "Answer: sent"], calls).as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    with pytest.raises(UsageError, match=message):
        graph.invoke(Command(resume=value), thread())
    assert calls == ["Chile"]
    assert graph.invoke(Command(resume=True), thread())["text"] == "Answer: sent"


def test_without_a_checkpointer_nothing_can_wait(calls: list[str]) -> None:
    """The graph could never be resumed, and says what to give it."""
    graph = agent_of([RISKY], calls).as_graph()
    with pytest.raises(UsageError, match=r"task 2 waits .* no checkpointer .*checkpointer=…"):
        graph.invoke({"question": "Send it"})


def test_a_subgraph_waits_with_its_parents_checkpointer(saver: Any, calls: list[str]) -> None:
    """It needs none of its own."""
    from langgraph.graph import START, StateGraph
    from langgraph.types import Command

    from agentpar.langgraph import GraphState

    parent = StateGraph(GraphState)
    parent.add_node("agent", agent_of([RISKY, "Answer: sent"], calls).as_graph())
    parent.add_edge(START, "agent")
    graph = parent.compile(checkpointer=saver)
    graph.invoke({"question": "Send it"}, thread())
    assert graph.invoke(Command(resume=True), thread())["text"] == "Answer: sent"


def test_rules_hold_in_the_graph(saver: Any, calls: list[str]) -> None:
    """An allow lets the call with trusted data through; the one fed by a tool waits."""
    rules = [Rule("send", "allow")]
    graph = agent_of([RISKY, "x"], calls, permissions=rules).as_graph(saver)
    [call] = waiting(graph.invoke({"question": "Send it"}, thread()))
    assert call["task_id"] == 2
    assert "for trusted data only" in call["because"]
    assert sorted(calls) == ["Chile", "send hello"]


def test_refusal_reaches_the_joiner(saver: Any, calls: list[str]) -> None:
    """No risky call runs after a refusal, and the joiner reads why."""
    from langgraph.types import Command

    agent = agent_of([RISKY, "Answer: nothing was sent"], calls)
    graph = agent.as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    graph.invoke(Command(resume=False), thread())
    assert calls == ["Chile"]
    assert isinstance(agent._runtime, ScriptedRuntime)
    assert "not approved: refused by the user" in agent._runtime.requests[1].messages[-1].content


RESUME = """
import json, sys
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from tests.test_langgraph import agent_of, thread

calls = []
with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    graph = agent_of(["Answer: sent [2]"], calls).as_graph(saver)
    state = graph.invoke(Command(resume=True), thread())
print(json.dumps([calls, state["text"]]))
"""


def test_resume_in_another_process(tmp_path: Path, calls: list[str]) -> None:
    """The SQLite file is all that a new process needs."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    path = str(tmp_path / "graph.sqlite")
    with SqliteSaver.from_conn_string(path) as saver:
        agent_of([RISKY], calls).as_graph(saver).invoke({"question": "Send it"}, thread())
    done = subprocess.run(
        [sys.executable, "-c", RESUME, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    later, text = json.loads(done.stdout)
    assert text == "Answer: sent [2]"
    assert calls == ["Chile"]
    assert sorted(later) == ["send 19", "send hello"]


def test_replan_makes_a_checkpoint(saver: Any, calls: list[str]) -> None:
    """Before another round of planning LangGraph has the first one safe."""
    first = '1. population(country="Chile")\njoin()'
    second = '2. population(country="Peru")\njoin()'
    texts = [first, "Replan: Peru is missing", second, ANSWER]
    graph = agent_of(texts, calls).as_graph(saver)
    state = graph.invoke({"question": "Chile or Peru?"}, thread())
    assert state["text"] == ANSWER
    assert calls == ["Chile", "Peru"]
    saved = [s.values.get("events", []) for s in graph.get_state_history(thread())]
    between = [events for events in saved if events and events[-1]["event"] == "ReplanAsked"]
    assert len(between) == 1
    assert [e["task_id"] for e in between[0] if e["event"] == "TaskDone"] == [1]


async def test_an_early_replan_goes_on_beside_the_calls(calls: list[str]) -> None:
    """What runs when a call fails ends only once a call of the next plan has run."""
    mended = asyncio.Event()

    @tool(timeout=20.0)
    async def slow() -> str:
        """Wait for what the next plan brings."""
        await mended.wait()
        return "slow"

    @tool
    async def mend() -> str:
        """Do what was wanted in another way."""
        mended.set()
        return "mended"

    first, second = '1. slow()\n2. population(country="Atlantis")\njoin()', "3. mend()\njoin()"
    answer = "It was mended [3], slowly [1]."
    agent = agent_of([first, second, answer], calls, sources=[slow, mend], replan_early=True)
    state = await agent.as_graph().ainvoke({"question": "Mend it?"})
    assert state["text"] == answer
    ended = [e["task_id"] for e in state["events"] if e["event"] == "TaskDone"]
    assert ended == [2, 3, 1]


def test_next_question_on_a_thread_is_a_new_run(saver: Any, calls: list[str]) -> None:
    """A thread holds its last run: neither the old answer nor the old events come back."""
    one, two = '1. population(country="Chile")', '1. population(country="Peru")'
    texts = [one, "Chile has 19 people [1].", two, "Replan: more", "join()", "Peru has 33 [1]."]
    graph = agent_of(texts, calls).as_graph(saver)
    first = graph.invoke({"question": "Chile?"}, thread())
    second = graph.invoke({"question": "Peru?"}, thread())
    assert (first["text"], second["text"]) == ("Chile has 19 people [1].", "Peru has 33 [1].")
    assert second["run_id"] != first["run_id"]
    assert [e["event"] for e in second["events"]].count("RunStarted") == 1


def test_question_instead_of_a_verdict_drops_the_paused_run(saver: Any, calls: list[str]) -> None:
    """Who asks something else while a call waits for approval gets that answered."""
    graph = agent_of([RISKY, PLAN, ANSWER], calls).as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    assert graph.invoke({"question": "Chile or Peru?"}, thread())["text"] == ANSWER
    assert not [call for call in calls if call.startswith("send")]


def test_record_of_a_resumed_run_replays(tmp_path: Path, saver: Any, calls: list[str]) -> None:
    """The record holds both parts of the run, and replays as one."""
    from langgraph.types import Command

    from agentpar.executor.record import read_record, replay

    runs = tmp_path / "runs"
    agent_of([RISKY], calls, runs=runs).as_graph(saver).invoke({"question": "Send it"}, thread())
    graph = agent_of(["Answer: sent [2]"], calls, runs=runs).as_graph(saver)
    state = graph.invoke(Command(resume=True), thread())
    replayed = replay(read_record(runs / state["run_id"] / "events.jsonl"))
    assert replayed.difference == ""
    assert replayed.events == len(state["events"])


def test_failed_run_is_data(saver: Any, calls: list[str]) -> None:
    """A model server that is gone ends the graph with a failed answer, not in a loop."""
    from agentpar import ModelServerError

    texts: list[Any] = [ModelServerError("the server is gone")]
    state = agent_of(texts, calls).as_graph(saver).invoke({"question": "Chile?"}, thread())
    assert (state["answer"]["status"], state["answer"]["error"]) == ("failed", "the server is gone")


def test_odd_values_are_checkpointed(saver: Any) -> None:
    """Large integers and a tool's own "$ref" key survive a pause."""
    from langgraph.types import Command

    odd = {"$ref": [1], "big": 2**90, "list": [None, True, 0.5]}
    seen: list[Any] = []

    @tool
    async def odd_value() -> Any:
        """Something odd."""
        return odd

    @tool(effect="write")
    async def keep(value: Any) -> str:
        """Keep a value."""
        seen.append(value)
        return "kept"

    runtime = ScriptedRuntime(["1. odd_value()\n2. keep(value=$1)\njoin()", "Answer: kept"])
    graph = Agent([odd_value, keep], runtime=runtime).as_graph(saver)
    graph.invoke({"question": "Keep it"}, thread())
    graph.invoke(Command(resume=True), thread())
    assert seen == [odd]


async def test_cancelled_graph_leaves_nothing() -> None:
    """Cancelling `ainvoke` cancels the tools; the graph can be asked again."""
    started = asyncio.Event()

    @tool
    async def wait() -> str:
        """Wait."""
        started.set()
        await asyncio.sleep(60)
        return ""

    graph = Agent([wait], runtime=ScriptedRuntime(["1. wait()\njoin()", "x"])).as_graph()
    before = asyncio.all_tasks()
    running = asyncio.create_task(graph.ainvoke({"question": "Wait"}))
    await asyncio.wait_for(started.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def test_batch_takes_turns(calls: list[str]) -> None:
    """Three threads at once: never two event loops with the agent's connections."""

    class Held:
        """A source of tools that belongs to the loop that started it."""

        def __init__(self) -> None:
            self.loops: list[Any] = []

        async def start(self) -> list[Any]:
            assert self.loops == []
            self.loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0.05)
            return []

        async def stop(self) -> None:
            assert self.loops.pop() is asyncio.get_running_loop()

    agent = agent_of([PLAN, ANSWER] * 3, calls, sources=[Held()])
    states = agent.as_graph().batch([{"question": f"Chile or Peru? {n}"} for n in range(3)])
    assert [state["text"] for state in states] == [ANSWER] * 3


INTERRUPTED = """
import asyncio, sys
from agentpar import Agent, Rule, ScriptedRuntime, UsageError, tool

@tool
async def hang() -> str:
    print("hanging", flush=True)
    await asyncio.sleep(60)
    return ""

script = ScriptedRuntime(["1. hang()"])
graph = Agent([hang], runtime=script, runs=sys.argv[1]).as_graph()

async def cell():
    graph.invoke({"question": "Hang"})

try:
    if sys.argv[2] == "notebook":
        asyncio.new_event_loop().run_until_complete(cell())
    else:
        graph.invoke({"question": "Hang"})
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("where", ["script", "notebook"])
def test_ctrl_c_cancels_a_sync_invoke(tmp_path: Path, where: str) -> None:
    """At once, and the record says so; with a running loop in the caller's thread and without."""
    from agentpar.executor.record import read_record

    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=20)[0] == "interrupted\n"
        finally:
            process.kill()
    [record] = tmp_path.glob("*/events.jsonl")
    *_, last = read_record(record).events
    assert isinstance(last, RunFinished)
    assert last.status == "cancelled"


# Beside a journal


def test_checkpoints_and_journal_agree(tmp_path: Path, saver: Any, calls: list[str]) -> None:
    """The same events under the same id, before and after a pause, in another process too."""
    from langgraph.types import Command

    url = f"sqlite:///{tmp_path / 'j.db'}"
    graph = agent_of([RISKY], calls, journal=url).as_graph(saver)
    paused = graph.invoke({"question": "Send it"}, thread())
    assert journaled(url, paused["run_id"]) == ("waiting", paused["events"])
    again = agent_of(["Answer: sent [2]"], calls, journal=url).as_graph(saver)
    state = again.invoke(Command(resume=True), thread())
    assert journaled(url, state["run_id"]) == ("answered", state["events"])
    assert state["run_id"] == paused["run_id"]


def journaled(url: str, run_id: str) -> tuple[str, list[dict[str, Any]]]:
    """How the run stands in the journal, and its events as the graph's state would have them."""
    from agentpar.executor.journal import open_journal
    from agentpar.executor.record import encode

    async def read() -> tuple[str, list[dict[str, Any]]]:
        async with open_journal(url) as journal:
            known = await journal.find(run_id)
            run = await journal.begin(run_id, known.question)
            if run.held:
                await run.close(known.status)
            return known.status, [encode(event) for event in run.history]

    return asyncio.run(read())


CRASH = """
import os, signal, sys
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
import agentpar.langgraph
from tests.test_langgraph import PLAN, ANSWER, RISKY, agent_of, thread

class Loud(list):
    def append(self, call):
        print(call, flush=True)

# The run ends, and the process before LangGraph has saved that.
work = agentpar.langgraph._work
async def deadly(*args):
    state = await work(*args)
    if sys.argv[3] == "ask" or state["answer"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return state
agentpar.langgraph._work = deadly

with SqliteSaver.from_conn_string(sys.argv[1]) as saver:
    texts = [PLAN, ANSWER] if sys.argv[3] == "ask" else [RISKY, "Answer: sent [2]"]
    graph = agent_of(texts, Loud(), journal=sys.argv[2]).as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    graph.invoke(Command(resume=True), thread())
"""


@pytest.mark.parametrize(
    ("which", "made"),
    [("ask", ["Chile", "Peru"]), ("approve", ["Chile", "send 19", "send hello"])],
)
def test_what_langgraph_has_not_saved_the_journal_has(
    tmp_path: Path, saver: Any, calls: list[str], which: str, made: list[str]
) -> None:
    """Killed after the work, before its checkpoint: coming back asks no model and makes no
    call again, as the journal is ahead."""
    url = f"sqlite:///{tmp_path / 'j.db'}"
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path / "graph.sqlite"), url, which],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(done.stdout.splitlines()) == made
    state = agent_of([], calls, journal=url).as_graph(saver).invoke(None, thread())
    assert state["answer"]["status"] == "answered"
    assert calls == []
    assert journaled(url, state["run_id"]) == ("answered", state["events"])


def test_another_verdict_on_an_older_checkpoint_repeats_no_call(
    tmp_path: Path, saver: Any, calls: list[str]
) -> None:
    """Back to the question of approval, and now one call is refused: the run takes the other
    branch, and what was sent already is not sent again."""
    from langgraph.types import Command

    from agentpar.events import ApprovalGiven
    from agentpar.executor.record import encode

    url = f"sqlite:///{tmp_path / 'j.db'}"
    texts = [RISKY, "Answer: sent [2]", "Answer: one was sent"]
    graph = agent_of(texts, calls, journal=url).as_graph(saver)
    graph.invoke({"question": "Send it"}, thread())
    paused = graph.get_state(thread())
    asked, bound = (
        paused.config,
        {call["task_id"]: call["bound"] for call in paused.values["pending"]},
    )
    graph.invoke(Command(resume=True), thread())
    assert sorted(calls) == ["Chile", "send 19", "send hello"]
    verdicts = [ApprovalGiven(2, True, "", bound[2]), ApprovalGiven(3, False, "no", bound[3])]
    update = {"events": [encode(verdict) for verdict in verdicts], "pending": []}
    state = graph.invoke(None, graph.update_state(asked, update, as_node="approve"))
    assert state["text"] == "Answer: one was sent"
    assert state["answer"]["tasks"]["2"]["ok"]
    assert not state["answer"]["tasks"]["3"]["ok"]
    assert sorted(calls) == ["Chile", "send 19", "send hello"]
    assert journaled(url, state["run_id"]) == ("answered", state["events"])


def test_langgraph_json_names_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Studio opens is there, and imports without a model server."""
    monkeypatch.delenv("AGENTPAR_MODEL_URL", raising=False)
    config = json.loads((ROOT / "langgraph.json").read_text())
    for spec in config["graphs"].values():
        path, _, name = spec.partition(":")
        found = importlib.util.spec_from_file_location("studio_agent", ROOT / path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        assert {"work", "approve"} <= set(getattr(module, name).get_graph().nodes)


def test_the_page_about_langgraph_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Python block of docs/langgraph.md, in order, with the model's texts scripted."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "langgraph.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    plan = '1. population(country="Chile")\n2. send_report(text=$1)\njoin()'
    script = ScriptedRuntime([plan, "The report was sent [2]."])
    monkeypatch.setattr("agentpar.agent.open_runtime", lambda *_, **__: script)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/langgraph.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "send_report" in printed
    assert "The report was sent [2]." in printed


def test_a_graph_is_one_team() -> None:
    """An agent with several is refused, and the message says what to do."""
    agent = Agent([], runtime=ScriptedRuntime([]), teams=3)
    with pytest.raises(UsageError, match=r"as_graph\(\) runs one team and the agent has 3"):
        agent.as_graph()
