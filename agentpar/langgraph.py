"""An agent as a compiled LangGraph graph.

LangGraph's supersteps wait for the slowest sibling, so our scheduler runs whole inside one
node, ``work``. It leaves that node where a checkpoint is worth having: before another round
of planning, and before a risky call, which ``approve`` turns into an ``interrupt``. The
state is the run's own record, so coming back means telling a fresh machine what has
happened already; no finished call runs again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Protocol, TypedDict

from agentpar.errors import MissingPackage, UsageError
from agentpar.events import ApprovalGiven, Event, RunFinished, RunStarted
from agentpar.executor.machine import Ask, Command, Plan
from agentpar.executor.record import decode, encode
from agentpar.ids import new_run_id
from agentpar.session import Session


def _continued(record: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How LangGraph puts a node's events into the state: a run that starts replaces the last."""
    return more if more and more[0]["event"] == RunStarted.__name__ else record + more


class GraphState(TypedDict, total=False):
    """What LangGraph checkpoints. Give ``question``; read ``answer`` and ``text``.

    Another question on the same thread is another run: the state then holds that one.

    ``events`` is the record so far, one JSON object an event; ``pending`` lists the calls
    that wait for approval: task_id, tool, args.
    """

    question: str
    run_id: str
    events: Annotated[list[dict[str, Any]], _continued]
    pending: list[dict[str, Any]]
    text: str
    answer: dict[str, Any]


class OpenSession(Protocol):
    """Gives the wiring of a run; see `Session` for the keywords."""

    def __call__(
        self,
        run_id: str,
        *,
        history: Iterable[Event] = (),
        hold: Callable[[Command], bool] | None = None,
    ) -> Awaitable[Session]: ...


Work = Callable[[], Coroutine[Any, Any, GraphState]]
Alone = Callable[[Work], GraphState]
"""Does the work in an event loop of its own, and closes the connections that belong to it."""


def build_graph(
    open_session: OpenSession,
    alone: Alone,
    *,
    name: str,
    checkpointer: Any = None,
    hide: Callable[[str], str] = str,
) -> Any:
    """Compile the graph; ``hide`` takes secrets out of a question, as the record has it.

    Works with ``invoke`` (and the sync savers) as with ``ainvoke`` (and the async ones). What
    is invoked at once from several threads, as ``batch`` does, takes turns; ``abatch`` runs
    side by side. Raises `MissingPackage` without langgraph.
    """
    try:
        from langchain_core.runnables import RunnableLambda
        from langgraph.graph import END, START, StateGraph
        from langgraph.types import interrupt
    except ImportError:
        raise MissingPackage("langgraph", extra="langgraph", purpose="as_graph()") from None

    async def work(state: GraphState) -> GraphState:
        return await _work(open_session, hide, state)

    def work_sync(state: GraphState) -> GraphState:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            run = alone
        else:  # as in a notebook
            run = partial(_beside, alone)
        return run(partial(_work, open_session, hide, state))

    def approve(state: GraphState) -> GraphState:
        verdicts = interrupt({"approve": state["pending"]})
        at = state["events"][-1]["at"]
        given = [_approval(call, verdicts, at) for call in state["pending"]]
        return {"events": [encode(event) for event in given], "pending": []}

    def after_work(state: GraphState) -> str:
        if state.get("pending"):
            return "approve"
        return END if state.get("answer") else "work"

    graph = StateGraph(GraphState)
    graph.add_node("work", RunnableLambda(work_sync, afunc=work, name="work"))
    graph.add_node("approve", approve)
    graph.add_edge(START, "work")
    graph.add_conditional_edges("work", after_work, ["approve", "work", END])
    graph.add_edge("approve", "work")
    return graph.compile(checkpointer=checkpointer, name=name)


def _beside(alone: Alone, work: Work) -> GraphState:
    """``alone(work)`` in another thread, as a loop runs in this one; Ctrl-C here cancels it."""
    cancel: list[Callable[[], object]] = []

    async def known() -> GraphState:
        task = asyncio.current_task()
        assert task is not None
        cancel.append(partial(task.get_loop().call_soon_threadsafe, task.cancel))
        return await work()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(alone, known)
        try:
            return done.result()
        except KeyboardInterrupt:
            for stop in cancel:
                stop()
            raise


async def _work(
    open_session: OpenSession, hide: Callable[[str], str], state: GraphState
) -> GraphState:
    """Run until the answer, or until a command that deserves a checkpoint."""
    question = state.get("question", "")
    if not question.strip():
        raise UsageError("the graph's state needs a 'question': graph.invoke({'question': …})")
    past = [decode(event) for event in state.get("events", [])]
    match past:
        case [RunStarted(run_id, asked), *_, last] if asked in (
            question,
            hide(question),
        ) and not isinstance(last, RunFinished):
            session = await open_session(run_id, history=past, hold=_Boundary())
            await session.run()
        case _:
            past = []
            session = await open_session(new_run_id(), hold=_Boundary())
            await session.run(session.started(question))
    asks = [command for command in session.held if isinstance(command, Ask)]
    update: GraphState = {
        "run_id": session.run_id,
        "events": [encode(event) for event in session.events[len(past) :]],
        "pending": [
            {"task_id": ask.task.id, "tool": ask.task.tool, "args": _storable(ask.args)}
            for ask in sorted(asks, key=lambda ask: ask.task.id)
        ],
        "text": "",
        "answer": {},
    }
    if session.machine.finished is not None:
        answer = session.answer()
        update["answer"] = answer.as_dict()
        update["text"] = answer.text
    return update


def _storable(args: Mapping[str, Any]) -> Any:
    """Arguments to look at; an integer that no saver can keep stands there as text."""
    return json.loads(
        json.dumps(args), parse_int=lambda text: int(text) if len(text) < 19 else text
    )


class _Boundary:
    """Holds risky calls, and every plan but the first one that this part of the run sees."""

    def __init__(self) -> None:
        self._acted = False

    def __call__(self, command: Command) -> bool:
        match command:
            case Ask():
                return True
            case Plan():
                hold, self._acted = self._acted, True
                return hold
            case _:
                self._acted = True
                return False


def _approval(call: Mapping[str, Any], verdicts: Any, at: float) -> ApprovalGiven:
    """The caller's verdict on one call: ``True`` or ``False`` for all, or by task id."""
    id = call["task_id"]
    verdict = verdicts
    if isinstance(verdicts, Mapping):  # LangGraph takes no other keys than text
        verdict = verdicts.get(str(id), False)
    if verdict is True:
        return ApprovalGiven(id, allowed=True, at=at)
    reason = verdict if isinstance(verdict, str) else "refused by the user"
    return ApprovalGiven(id, allowed=False, reason=reason, at=at)
