"""An agent as a compiled LangGraph graph.

LangGraph's supersteps wait for the slowest sibling, so our scheduler runs whole inside one
node, ``work``. It leaves that node where a checkpoint is worth having: before another round
of planning, unless that begins while calls go on, and before a call that needs approval, which
``approve`` turns into an ``interrupt``. The state is the run's own record, so coming back means
telling a fresh machine what has happened already; no finished call runs again, and an approval
is bound to the very call that was shown. A run has its id before ``work`` begins, so an agent's
journal, which may be ahead of the last checkpoint, is found again by it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Protocol, TypedDict

from agentpar.errors import MissingPackage, UsageError
from agentpar.events import ApprovalGiven, Event, RunFinished, RunStarted
from agentpar.executor.commands import Ask, Command, Plan, Wake
from agentpar.executor.machine import Machine
from agentpar.executor.record import decode, encode
from agentpar.ids import new_run_id
from agentpar.session import Session

_CHECKPOINTER = "__pregel_checkpointer"
"""Where LangGraph tells a node what saves its state: None where nothing does."""


def _continued(record: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How LangGraph puts a node's events into the state: a run that starts replaces the last."""
    return more if more and more[0]["event"] == RunStarted.__name__ else record + more


class GraphState(TypedDict, total=False):
    """What LangGraph checkpoints. Give ``question``; read ``answer`` and ``text``.

    Another question on the same thread is another run: the state then holds that one.

    ``events`` is the record so far, one JSON object an event; ``pending`` lists the calls
    that wait for approval: task_id, tool, args, label (where the data come from), because, and
    what an approval is bound to.
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
        question: str,
        *,
        history: Sequence[Event] = (),
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
        from langgraph.config import get_config
        from langgraph.graph import END, START, StateGraph
        from langgraph.types import interrupt
    except ImportError:
        raise MissingPackage("langgraph", extra="langgraph", purpose="as_graph()") from None

    async def work(state: GraphState) -> GraphState:
        return await _work(open_session, state)

    def work_sync(state: GraphState) -> GraphState:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            run = alone
        else:  # as in a notebook
            run = partial(_beside, alone)
        return run(partial(_work, open_session, state))

    def approve(state: GraphState) -> GraphState:
        pending = state["pending"]
        if get_config()["configurable"].get(_CHECKPOINTER, ...) is None:
            raise UsageError(
                f"task {pending[0]['task_id']} waits for approval ({pending[0]['because']}), and "
                "this graph has no checkpointer to be resumed from: "
                "agent.as_graph(checkpointer=…), or a permissions rule that allows the call"
            )
        answered = interrupt({"approve": pending}, response_schema=_answer_to(pending))
        at = state["events"][-1]["at"]
        given = _approvals(pending, answered, at)
        return {"events": [encode(event) for event in given], "pending": []}

    def after_work(state: GraphState) -> str:
        if state.get("pending"):
            return "approve"
        return END if state.get("answer") else "work"

    graph = StateGraph(GraphState)
    graph.add_node("begin", partial(_begin, hide))
    graph.add_node("work", RunnableLambda(work_sync, afunc=work, name="work"))
    graph.add_node("approve", approve)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "work")
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


def _events(state: GraphState) -> list[Event]:
    return [decode(event) for event in state.get("events", [])]


def _begin(hide: Callable[[str], str], state: GraphState) -> GraphState:
    """Name the run: the one in the state where that asks the same and has not ended."""
    question = state.get("question", "")
    if not question.strip():
        raise UsageError("the graph's state needs a 'question': graph.invoke({'question': …})")
    match _events(state):
        case [RunStarted(run_id, asked), *_, last] if asked in (
            question,
            hide(question),
        ) and not isinstance(last, RunFinished):
            return {"run_id": run_id}
    return {"run_id": new_run_id()}


async def _work(open_session: OpenSession, state: GraphState) -> GraphState:
    """Run until the answer, or until a command that deserves a checkpoint."""
    question, run_id = state["question"], state["run_id"]
    past = _events(state)
    if past and isinstance(past[0], RunStarted) and past[0].run_id != run_id:
        past = []  # of the last run on this thread
    boundary = _Boundary()
    session = await open_session(
        run_id,
        question,
        history=past,
        hold=lambda command: boundary.holds(command, session.machine),
    )
    await session.run(*([] if session.events else [session.started(question)]))
    asks = [command for command in session.held if isinstance(command, Ask)]
    update: GraphState = {
        "run_id": session.run_id,
        "events": [encode(event) for event in session.events[len(past) :]],
        "pending": [
            {
                "task_id": ask.task.id,
                "tool": ask.task.tool,
                "args": _storable(ask.args),
                "label": ask.label.as_data(),
                "because": ask.because,
                "bound": ask.bound,
            }
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
    """Holds calls that need approval, and every plan but the first of this part of the run.

    A plan that is asked for while calls go on (``replan_early``) goes on beside them: held, it
    would come when they have ended.
    """

    def __init__(self) -> None:
        self._acted = False

    def holds(self, command: Command, machine: Machine) -> bool:
        match command:
            case Ask():
                return True
            case Wake():
                return False  # nothing is done by it
            case Plan():
                hold, self._acted = self._acted, True
                return hold and machine.tasks.keys() <= machine.outcomes.keys()
            case _:
                self._acted = True
                return False


Pending = Sequence[Mapping[str, Any]]


def _answer_to(pending: Pending) -> Any:
    """The type of a resume value, for LangGraph: it refuses any other before it saves it, so
    that the question can be answered again."""
    from pydantic import PlainValidator, WithJsonSchema

    def check(answered: Any) -> Any:
        _approvals(pending, answered, 0.0)
        return answered

    verdict = {"type": ["boolean", "string"]}
    schema = {"anyOf": [verdict, {"type": "object", "additionalProperties": verdict}]}
    return Annotated[Any, PlainValidator(check), WithJsonSchema(schema)]


def _approvals(pending: Pending, answered: Any, at: float) -> list[ApprovalGiven]:
    """What the caller said of the calls: one verdict for all, or one each, by task id as text
    or by what the approval is bound to. A call that is not named is asked for again.

    Raises `UsageError` where that is no verdict, or names a call that does not wait.
    """
    if not isinstance(answered, Mapping):
        return [_approval(call, answered, at) for call in pending]
    calls = {name: call for call in pending for name in (str(call["task_id"]), call["bound"])}
    if unknown := [name for name in answered if name not in calls]:
        names = ", ".join(f"{str(call['task_id'])!r} ({call['tool']})" for call in pending)
        raise UsageError(
            f"resume: {unknown[0]!r} is no call that waits for approval; those that do, by task "
            f"id: {names} (or by their 'bound')"
        )
    return [_approval(calls[name], verdict, at) for name, verdict in answered.items()]


def _approval(call: Mapping[str, Any], verdict: Any, at: float) -> ApprovalGiven:
    id, bound = call["task_id"], call["bound"]
    match verdict:
        case True:
            return ApprovalGiven(id, True, bound=bound, at=at)
        case False:
            return ApprovalGiven(id, False, "refused by the user", bound, at)
        case str():
            return ApprovalGiven(id, False, verdict, bound, at)
        case _:
            raise UsageError(
                f"resume: the verdict on task {id} ({call['tool']}) must be True, False, or a text "
                f"that says why not; got {verdict!r}"
            )
