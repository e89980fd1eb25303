"""The agent: wires planner, executor, memory and runtime, and walks one question through them.

The only place where the rooms meet. What happens when is the machine's decision, how it
is done the driver's; here stands who is asked.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from agentpar.answer import Answer
from agentpar.errors import UsageError
from agentpar.events import Event, RunFinished
from agentpar.executor.approval import Approve
from agentpar.executor.commands import Command
from agentpar.executor.driver import RunClock, running
from agentpar.executor.journal import Journal, JournaledRun, RunJournal, open_journal
from agentpar.executor.results import JournalResults, MemoryResults
from agentpar.executor.setup import Setup, changes
from agentpar.ids import new_run_id, team_run
from agentpar.memory.banks import Sharing
from agentpar.memory.evidence import check, sources
from agentpar.memory.settings import Memory, memory_of
from agentpar.permissions import Rule
from agentpar.planner.joiner import Joiner
from agentpar.planner.planner import Planner
from agentpar.planner.prompts import Example
from agentpar.planner.warmer import Warmer
from agentpar.policy import Limits, Policy, PolicyFields, PolicyRule, Price, with_rules
from agentpar.ports import Message, ModelRequest, Named, Results, RunInfo, Runtime, Watch
from agentpar.redact import SHORTEST, Redactor, database_secrets, url_credentials
from agentpar.rivals import Rivals, TeamsLog, ended_run
from agentpar.run import Run
from agentpar.runtime import open_runtime
from agentpar.runtime.hogwild.opening import open_group
from agentpar.runtime.redacted import RedactedRuntime
from agentpar.session import Session, Settings, terms_of
from agentpar.teams import Teams, teams_of, variation
from agentpar.thinking import think_tool
from agentpar.tools.base import Tool, ToolSource
from agentpar.tools.function import toolbox
from agentpar.watchers import Watchers
from agentpar.workers import Group, Workers, workers_of

if TYPE_CHECKING:  # langgraph costs two seconds of import; fuzzing loads when it is asked for
    from langgraph.graph.state import CompiledStateGraph

    from agentpar.executor.fuzz import Report

T = TypeVar("T")

_TWO_THINK = "the tool 'think' has the name of what workers bring: give yours another name"


class Agent:
    """Answers questions with tools, in parallel.

    ``tools``: typed functions, `Tool`, LangChain tools, or sources of tools (an MCP
    server). ``model``: the URL of an OpenAI-compatible server
    (``"http://localhost:8000/v1"``), ``"vllm:PATH"`` for an engine in this process, or the
    name of weights that agentpar knows (a local vLLM is then found or started).
    ``model_id`` picks one of several models that a server offers, which gets at most
    ``model_concurrency`` requests at once, those of all runs together. Give ``runtime`` instead
    to bring your own.

    A plan has at most ``max_plan_tokens`` tokens and, under a grammar, ``max_plan_lines``
    calls; an answer has at most ``max_answer_tokens`` tokens. One that is cut off says so.

    ``extended_plans`` tells the model of more that a plan may say: a call for each element of a
    list (``$1[*].url``), and the first good ones of several (``any($1, $2)``). With
    ``replan_early`` a failed call asks for the next plan at once, while others go on; that plan
    may add, replace and cancel calls, and ``extended_plans`` tells the model of the latter two.
    Small models take up what ``examples`` show, and hardly what they are told: for the built-in
    tools two come with it.

    With ``teams`` (a number, or `Teams`), several of it work on each question side by side, each a
    run of its own (``RUN.1``, ``RUN.2``, …) with all that a run may spend; one of their answers is
    taken. Team 1 is the agent as it is, the others plan with a seed, an outline and an order of
    tools of their own. Tools that write or send have no place there: each team would call them.

    With ``workers`` (a number, or `Workers`), several think about what was found, each reading
    what the others write as they write it, before the answer is written; and plans may call
    ``think(question, given)``, which has them think about a question of its own.

    ``prefill``: while tools still run, the model reads the results that are there, so that
    the answer begins sooner. None: where the runtime is known to keep what it has read (vLLM);
    True: always; False: never. The prompts are the same.

    A run may spend ``max_steps`` attempts of tool calls, ``max_tokens`` of the model,
    ``max_cost_usd`` (calls as their tools say, tokens at ``price``), and ``deadline`` seconds: what
    would go beyond is not begun, and the answer is made of what is there
    (``answer.usage.stopped_by``). ``concurrency`` calls run at once. At one host there are at most
    ``per_host`` requests of the web tools at once, of which ``host_rate`` begin in a second.
    ``policies`` change how tools are called, by a pattern of their names: ``{"web_*": {"retries":
    3, "cache": 3600}}``; the fields are those of `Policy`.

    ``timeout`` (seconds) holds for tools without one of their own. ``permissions`` are rules,
    the first that covers a call decides; where none does, a call of a tool that writes or
    sends needs approval. ``approve`` is then asked (``approve(task, args)``, or with a third
    parameter ``label`` that says where the data come from; sync or async: True, or False, or
    why not); without it such calls fail. ``runs`` is a
    folder that gets one folder with ``events.jsonl`` per run; the id of a run that is in it
    cannot be used again. ``watch`` are watchers of every run, such as
    `agentpar.watch.OpenTelemetry`; one that raises is told of in a log and left out.

    No event of a run shows the credentials that the agent, its tools and its model were given,
    nor ``secrets``, further values of at least 8 characters: they become ``***`` before model,
    record and watchers see what a tool or a server said.

    ``journal`` (``"sqlite:///j.db"``, ``"postgresql://…"`` or `open_journal`'s) keeps every
    run as it goes: `ask` with the ``run_id`` of a run that ended gives the recorded answer
    and asks nobody, one that broke off is carried on; no call that has a result is made
    again.

    ``memory`` is a bank of what calls have brought, which serves equal calls: see `Memory`. An
    address alone (``"sqlite:///bank.db"``) keeps it for the runs to come. Without it the teams of
    one question still share what they find, until it is answered.

    Use as ``async with Agent(…) as agent`` or call `aclose` to release connections.
    """

    def __init__(
        self,
        tools: Iterable[Any] = (),
        *,
        model: str | None = None,
        runtime: Runtime | None = None,
        model_id: str | None = None,
        api_key: str | None = None,
        model_concurrency: int = 64,
        name: str = "agent",
        instructions: str = "",
        examples: Sequence[Example] | None = None,
        grammar: bool | None = None,
        prefill: bool | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        workers: Workers | int | None = None,
        teams: Teams | int | None = None,
        max_plan_tokens: int = 768,
        max_plan_lines: int = 24,
        max_answer_tokens: int = 512,
        max_tasks: int = 1000,
        max_replans: int = 2,
        replan_early: bool = False,
        extended_plans: bool = False,
        concurrency: int = 64,
        max_steps: int | None = None,
        max_tokens: int | None = None,
        max_cost_usd: float | None = None,
        price: Price | None = None,
        deadline: float | None = None,
        per_host: int | None = None,
        host_rate: float | None = None,
        policies: Mapping[str, PolicyFields] | None = None,
        timeout: float | None = 60.0,
        max_result_bytes: int = 2_000_000,
        permissions: Sequence[Rule] = (),
        approve: Approve | None = None,
        runs: str | Path | None = None,
        journal: str | Journal | None = None,
        memory: Memory | str | None = None,
        watch: Iterable[Watch] = (),
        secrets: Iterable[str] = (),
    ) -> None:
        if (model is None) == (runtime is None):
            raise UsageError(
                "give the agent either model= (a server's URL, 'vllm:PATH', or a known name "
                "such as 'qwen2.5-coder-1.5b') or runtime="
            )
        if approve is not None and not callable(approve):
            raise UsageError(f"approve must be a function (task, args) -> bool, got {approve!r}")
        for rule in permissions:
            if not isinstance(rule, Rule):
                raise UsageError(
                    f"permissions must be rules such as Rule('send_*', 'ask'), got {rule!r}"
                )
        self._own_secrets = tuple(secrets)
        if any(len(secret) < SHORTEST for secret in self._own_secrets):
            raise UsageError(
                f"secrets must have at least {SHORTEST} characters: a shorter one is found in "
                "ordinary words"
            )
        self._watch = tuple(watch)
        for watcher in self._watch:
            if not callable(watcher):
                raise UsageError(
                    f"watch takes watchers such as OpenTelemetry(), got {watcher!r}: a watcher is "
                    "called with a RunInfo and gives a context manager"
                )
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout must be more than 0 seconds, or None, got {timeout!r}")
        for label, number, least in (
            ("model_concurrency", model_concurrency, 1),
            ("max_plan_tokens", max_plan_tokens, 1),
            ("max_plan_lines", max_plan_lines, 1),
            ("max_answer_tokens", max_answer_tokens, 1),
            ("max_result_bytes", max_result_bytes, 1),
        ):
            if number < least:
                raise UsageError(f"{label} must be at least {least}, got {number!r}")
        self.name = name
        self._given = tuple(tools)
        self._tools: dict[str, Tool] | None = None
        given = toolbox(thing for thing in self._given if not isinstance(thing, ToolSource))
        workers = workers_of(workers)
        if workers is not None and "think" in given:
            raise UsageError(_TWO_THINK)
        self._model = model
        self._model_id = model_id
        self._api_key = api_key
        self._model_concurrency = model_concurrency
        self._runtime = runtime
        self._instructions = instructions
        self._examples = examples
        self._grammar = grammar
        self._prefill = prefill
        self._temperature = temperature
        self._seed = seed
        self._workers = workers
        self._teams = teams_of(teams)
        self._max_plan_tokens = max_plan_tokens
        self._max_plan_lines = max_plan_lines
        self._extended_plans = extended_plans
        self._max_answer_tokens = max_answer_tokens
        limits = Limits(
            max_tasks=max_tasks,
            max_replans=max_replans,
            replan_early=replan_early,
            concurrency=concurrency,
            max_steps=max_steps,
            max_tokens=max_tokens,
            max_cost_usd=max_cost_usd,
            deadline=deadline,
            per_host=per_host,
            host_rate=host_rate,
            plan_tokens=max_plan_tokens,
            answer_tokens=max_answer_tokens + (workers.n * workers.max_tokens if workers else 0),
            price=price or Price(),
        )
        self._settings = Settings(
            limits,
            timeout,
            max_result_bytes,
            approve,
            tuple(permissions),
        )
        if policies is not None and not isinstance(policies, Mapping):
            raise UsageError(
                f"policies are fields by pattern, such as {{'web_*': {{'retries': 3}}}}, got "
                f"{policies!r}"
            )
        self._policies = tuple(
            PolicyRule((pattern,), changes) for pattern, changes in (policies or {}).items()
        )
        self._latencies: dict[str, list[float]] = {}
        self._runs = None if runs is None else Path(runs)
        self._journal = open_journal(journal) if isinstance(journal, str) else journal
        self._results: Results = (
            MemoryResults() if self._journal is None else JournalResults(self._journal)
        )
        banked = memory_of(memory)
        urls = (journal, None if banked is None else banked.bank)
        self._database_secrets = tuple(
            secret for url in urls if isinstance(url, str) for secret in database_secrets(url)
        )
        self._sharing = Sharing(banked, agent=name, seed=seed or 0, judge=self._judge)
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()  # protects the one-time opening from concurrent asks
        self._one_loop = threading.Lock()  # held by the thread whose loop has the connections

    @classmethod
    def from_yaml(
        cls, path: str | Path, *, allow_modules: Collection[str] = (), **changes: Any
    ) -> Self:
        """The agent that a YAML file describes; ``changes`` replace what it says.

        ``allow_modules`` names the Python modules that the file may take tools from.
        Another ``model`` or a ``runtime`` replaces all that the file says of where its model
        is: the file's key goes to no other server.

        Raises `ConfigError` with file:line:column, the key and a suggestion.
        """
        from agentpar.config import load

        arguments = load(path, allow_modules=allow_modules).arguments()
        if "model" in changes or "runtime" in changes:
            for name in ("model", "model_id", "api_key"):
                arguments.pop(name, None)
        return cls(**(arguments | changes))

    async def ask(
        self,
        question: str,
        *,
        run_id: str | None = None,
        deadline: float | None = None,
        teams: Teams | int | None = None,
    ) -> Answer:
        """Answer ``question``; within ``deadline`` seconds, if given, from what is known then.

        ``teams`` is how many work on it, if not as many as the agent has: see `Agent`; what each
        came to, which was taken and why, is in ``answer.teams``, ``chosen`` and ``why``. With a
        journal, ``run_id`` names a run of any time: see `Agent`. Raises `RunFailed` where the run
        ends without an answer, and `UsageError` where ``run_id`` is another question's, or is at
        work elsewhere.
        """
        run = self._new_run(question, run_id, deadline, teams=teams)
        await self._drive(run)
        return run.answer

    async def resume(
        self, run_id: str, *, deadline: float | None = None, strict: bool = False
    ) -> Answer:
        """Carry on the run that broke off, or give the answer that it has already.

        It goes on by the limits and policies with which it began. What has changed in the agent
        since is told in a `RunResumed` event and in ``answer.changes``: its tools are today's,
        and of the permissions, those of then and of today, the stricter hold. With ``strict`` a
        run whose agent has changed is refused (`UsageError` with the changes), and left as it is.

        Needs the agent's ``journal``; raises as `ask` does, and `UsageError` where there is
        no such run.
        """
        journal = await self._kept()
        question = (await journal.find(run_id)).question
        run = self._new_run(question, run_id, deadline, strict, teams=1)
        await self._drive(run)
        return run.answer

    async def resume_orphan(self) -> Answer | None:
        """Take over the oldest run of an agent of this name whose process is gone, and carry
        it on. None where there is none."""
        found = await (await self._kept()).claim_orphan(self.name)
        if found is None:
            return None
        known, journal = found
        run = Run(known.id, known.question)
        await self._drive(run, journal)
        return run.answer

    def ask_sync(
        self,
        question: str,
        *,
        run_id: str | None = None,
        deadline: float | None = None,
        teams: Teams | int | None = None,
    ) -> Answer:
        """`ask` for callers without an event loop; connections are closed before it returns.

        Threads that ask one agent take turns: many questions at once are `ask`'s.
        Raises `UsageError` where a loop is running already (a notebook): await `ask` there.
        """
        if _loop_is_running():
            raise UsageError("an event loop is running here already: use `await agent.ask(…)`")
        return self._alone(
            lambda: self.ask(question, run_id=run_id, deadline=deadline, teams=teams)
        )

    @asynccontextmanager
    async def run(
        self,
        question: str,
        *,
        run_id: str | None = None,
        deadline: float | None = None,
        strict: bool = False,
        teams: Teams | int | None = None,
    ) -> AsyncIterator[Run]:
        """Answer ``question`` while you watch; leaving the block early cancels the run. The
        keywords are those of `ask`, and for a run that is carried on ``strict`` of `resume`.

        >>> async with agent.run("…") as run:
        ...     async for event in run: ...
        ... run.answer.text
        """
        run = self._new_run(question, run_id, deadline, strict, teams=teams)
        async with running(self._drive(run)):
            yield run

    def as_graph(self, checkpointer: Any = None) -> CompiledStateGraph:
        """This agent as a compiled LangGraph graph: state in ``question``, out ``answer``.

        The graph pauses (``interrupt``) before the calls that need approval; resume it with
        ``Command(resume=True)``, or with a verdict for each call, by task id as text or by
        what the approval is bound to: ``Command(resume={"2": True, "3": "not today"})``.
        Needs the ``langgraph`` extra, and a checkpointer to be resumed from. A graph is one run,
        and its state is that run's record: an agent with ``teams`` is refused (`UsageError`).
        """
        if self._teams is not None:
            raise UsageError(
                f"as_graph() runs one team and the agent has {self._teams.n}: make it without "
                "teams, or call `await agent.ask(…)` in a node of your own"
            )
        from agentpar.langgraph import build_graph

        return build_graph(
            self._session,
            self._alone,
            name=self.name,
            checkpointer=checkpointer,
            hide=lambda text: self._redactor().text(text),
        )

    def fuzz(
        self, record: str | Path, *, schedules: int = 1000, seeds: Iterable[int] | None = None
    ) -> Report:
        """Run a recorded run again in other orders and with faults: does its answer depend on them?

        ``record`` is the run's ``events.jsonl``. Tools give what they gave then, plan and answer
        are read from the record, and time is virtual: no model, no network, no waiting. This
        agent's limits, policies and instructions hold. ``seeds`` picks schedules by number
        instead of the first so many. See `Report.differs` and `Report.lines`.
        """
        from agentpar.fuzzing import fuzz_run

        given = toolbox(thing for thing in self._given if not isinstance(thing, ToolSource))
        return fuzz_run(
            Path(record),
            range(schedules) if seeds is None else seeds,
            settings=self._settings,
            tools={name: replace(tool, policy=self._policy(tool)) for name, tool in given.items()},
            instructions=self._instructions,
            max_answer_tokens=self._max_answer_tokens,
        )

    async def tools(self) -> Mapping[str, Tool]:
        """The agent's tools by name; opens sources such as MCP servers where needed."""
        await self._open()
        assert self._tools is not None
        return self._tools

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections, tool sources and an engine in this process; the agent opens
        them again when it is next asked. A server that was started stays up for reuse."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._opening = asyncio.Lock()  # the next ask may be in another event loop
        self._tools = None
        if self._model is not None:
            self._runtime = None
        await stack.aclose()

    # Wiring

    def _new_run(
        self,
        question: str,
        run_id: str | None,
        deadline: float | None,
        strict: bool = False,
        *,
        teams: Teams | int | None = None,
    ) -> Run:
        if not question.strip():
            raise UsageError("the question is empty")
        if run_id is not None and not re.fullmatch(r"[\w][\w.-]{0,127}", run_id):
            raise UsageError(
                f"run_id {run_id!r} cannot name a folder: use letters, digits, '_', '-' and '.'"
            )
        several = self._teams if teams is None else teams_of(teams)
        return Run(
            run_id or new_run_id(), question, deadline=deadline, strict=strict, teams=several
        )

    async def _open(self) -> None:
        """Open what lives as long as the agent: runtime, tool sources, tools' connections."""
        async with self._opening:
            if self._tools is not None:
                return
            async with AsyncExitStack() as stack:  # what opens is closed if the next does not
                if self._journal is not None:
                    await self._journal.start()
                    stack.push_async_callback(self._journal.stop)
                    self._latencies = {**await self._journal.latencies(), **self._latencies}
                stack.push_async_callback(self._sharing.aclose)
                runtime = self._runtime
                if runtime is None:
                    assert self._model is not None
                    runtime = await self._open_model(self._model)
                    stack.push_async_callback(runtime.aclose)
                things: list[Any] = []
                for thing in self._given:
                    if isinstance(thing, ToolSource):
                        stack.push_async_callback(thing.stop)
                        things += await thing.start()
                    else:
                        things.append(thing)
                if self._workers is not None:
                    if "think" in toolbox(things):
                        raise UsageError(_TWO_THINK)
                    things.append(think_tool(self._open_group, self._workers))
                tools = {
                    name: replace(tool, policy=self._policy(tool))
                    for name, tool in toolbox(things).items()
                }
                for tool in tools.values():
                    if tool.close is not None:
                        stack.push_async_callback(tool.close)
                self._runtime, self._tools = runtime, tools
                self._stack = stack.pop_all()

    def _open_group(
        self, messages: Sequence[Message], workers: Workers
    ) -> AbstractAsyncContextManager[Group]:
        assert self._runtime is not None
        runtime = RedactedRuntime(self._runtime, self._redactor())
        return open_group(runtime, messages, workers.names, workers)

    def _policy(self, tool: Tool) -> Policy:
        try:
            return with_rules(tool.name, tool.policy, self._policies)
        except UsageError as error:
            raise UsageError(f"policies: tool {tool.name!r}: {error}") from None

    async def _open_model(self, model: str) -> Runtime:
        """A runtime for ``model``; the name of known weights means a vLLM on this machine."""
        by_rows = self._workers is not None and self._workers.backend != "log"
        sharing = None if by_rows else False
        if not model.startswith(("http://", "https://", "vllm:", "torch:")):
            from agentpar.runtime.server import ensure

            model = (await ensure(model, sharing=sharing)).base_url
        return open_runtime(
            model,
            model_id=self._model_id,
            api_key=self._api_key,
            max_connections=self._model_concurrency,
            sharing=sharing,
        )

    def _alone(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` in an event loop of its own; connections, which belong to that loop, are
        closed in it. One thread at a time."""

        async def closing() -> T:
            async with self:
                return await work()

        with self._one_loop:
            return asyncio.run(closing())

    async def _kept(self) -> Journal:
        """The journal, started."""
        if self._journal is None:
            raise UsageError("the agent keeps no journal to resume from: Agent(…, journal=…)")
        await self._open()
        return self._journal

    async def _session(
        self,
        run_id: str,
        question: str,
        *,
        deadline: float | None = None,
        strict: bool = False,
        history: Sequence[Event] = (),
        hold: Callable[[Command], bool] | None = None,
        observers: Sequence[Callable[[Event], None]] = (),
        journal: RunJournal | None = None,
        team: int = 0,
        wait: bool = False,
    ) -> Session:
        """The wiring of one run; see `Session` for the keywords. The run is held in the
        agent's journal, unless the caller holds it. ``team`` is its number among several on one
        question; 0: it is alone. With ``wait`` a run that is at work elsewhere is waited for."""
        await self._open()
        assert self._tools is not None
        assert self._runtime is not None
        redactor = self._redactor()
        runtime = RedactedRuntime(self._runtime, redactor) if redactor else self._runtime
        differs = variation(team, temperature=self._temperature, seed=self._seed)
        planner = Planner(
            runtime,
            differs.ordered(self._tools),
            examples=self._examples,
            instructions=differs.instructed(self._instructions),
            grammar=self._grammar,
            max_lines=self._max_plan_lines,
            extended=self._extended_plans,
            surgery=self._extended_plans,
            max_tokens=self._max_plan_tokens,
            temperature=differs.temperature,
            seed=differs.seed,
        )
        joiner = Joiner(
            runtime,
            check,
            instructions=self._instructions,
            max_tokens=self._max_answer_tokens,
            temperature=self._temperature,
            seed=differs.seed,
            workers=self._workers,
            open_group=self._open_group,
        )
        warmer = None
        if self._prefill is not False:
            always = self._prefill is True
            warmer = Warmer(runtime, sources, instructions=self._instructions, always=always)
        settings = self._settings_of(run_id, deadline)
        setup = self._setup(run_id, settings, team=team)
        if journal is None and self._journal is not None:
            if strict:
                await _refuse_changed(self._journal, run_id, setup)
            asked = redactor.text(question)
            journal = await self._journal.begin(
                run_id, asked, agent=self.name, setup=setup, history=history, wait=wait
            )
        past = tuple(history) if journal is None else journal.history
        named = self._runtime if isinstance(self._runtime, Named) else None
        return Session(
            run_id,
            planner,
            joiner,
            self._tools,
            settings,
            history=past,
            hold=hold,
            observers=observers,
            journal=journal,
            warmer=warmer,
            watch=self._watch,
            info=RunInfo(run_id, self.name, named, past, team),
            redactor=redactor,
            seat=self._sharing.seat(run_id, team),
            setup=setup,
            deadline=deadline,
        )

    async def _judge(self, prompt: str) -> str:
        """What the model says of a finding: a word or two."""
        assert self._runtime is not None
        runtime = RedactedRuntime(self._runtime, self._redactor())
        request = ModelRequest((Message("user", prompt),), max_tokens=8)
        async with aclosing(runtime.stream(request)) as pieces:
            return "".join([piece async for piece in pieces if isinstance(piece, str)])

    def _settings_of(self, run_id: str, deadline: float | None) -> Settings:
        """How the run is executed."""
        limits = self._settings.limits
        if deadline is not None:
            limits = replace(limits, deadline=deadline)
        return replace(
            self._settings,
            limits=limits,
            record=None if self._runs is None else self._runs / run_id / "events.jsonl",
            note=self._note(),
            latencies=self._latencies,
            results=self._results,
        )

    def _setup(
        self, run_id: str, settings: Settings, *, team: int = 0, teams: Teams | None = None
    ) -> Setup:
        """The agent as it is now, opened."""
        assert self._tools is not None
        return Setup.of(
            terms_of(run_id, self._tools, settings),
            self._tools,
            model=self._redactor().text(self._model_name()),
            instructions=self._instructions,
            team=team,
            teams=None if teams is None else (teams.n, teams.select),
        )

    def _model_name(self) -> str:
        """The model as far as it is known before it is asked; empty where it is not."""
        if self._model is not None:
            return self._model_id or self._model
        return self._runtime.model_name if isinstance(self._runtime, Named) else ""

    async def _learn(self, latencies: Mapping[str, list[float]]) -> None:
        """Keep how long calls take, for the runs that come."""
        for tool, samples in latencies.items():
            if samples != self._latencies.get(tool):
                self._latencies[tool] = samples
                if self._journal is not None:
                    await self._journal.keep_latencies(tool, samples)

    def _redactor(self) -> Redactor:
        """Of all that is secret, as far as what holds it has been opened by now."""
        tools = () if self._tools is None else self._tools.values()
        holders = (self._runtime, *self._given, *tools)
        held = (secret for holder in holders for secret in getattr(holder, "secrets", ()))
        key = () if self._api_key is None else (self._api_key,)
        given = (*self._own_secrets, *self._database_secrets, *key)
        return Redactor([*given, *url_credentials(self._model or ""), *held])

    def _note(self) -> str:
        """What the sources of the tools say of themselves: that their web is simulated, say."""
        sources = (thing for thing in self._given if isinstance(thing, ToolSource))
        return "; ".join(filter(None, (getattr(source, "banner", "") for source in sources)))

    async def _drive(self, run: Run, journal: RunJournal | None = None) -> None:
        """One whole run, or the rest of it; what came of it, an error included, is in ``run``."""
        try:
            await self._open()
            await self._as_begun(run, journal)
            if run.teams is None:
                await self._drive_one(run, journal)
            else:
                await self._drive_teams(run, run.teams, journal)
        except Exception as error:
            run.end(error=error)
        finally:
            if not run.ended:  # cancelled while it opened
                error_text = "cancelled by the caller"
                run.end(Answer(run.id, run.question, status="cancelled", error=error_text))

    async def _as_begun(self, run: Run, journal: RunJournal | None) -> None:
        """A run that the journal knows is carried on as the team, or by the teams, it began as."""
        setup = None if journal is None else journal.setup
        if journal is None and self._journal is not None:
            setup = await _setup_in(self._journal, run.id)
        if setup is not None:
            teams = setup.teams
            run.teams = None if teams is None else Teams(teams[0], teams[1])  # type: ignore[arg-type]
            run.team = setup.team

    async def _drive_one(self, run: Run, journal: RunJournal | None) -> None:
        session = await self._session(
            run.id,
            run.question,
            deadline=run.deadline,
            strict=run.strict,
            observers=[run.hear],
            journal=journal,
            team=run.team,
        )
        try:
            await self._run_session(session, run.question, run.hear)
        finally:
            run.end(session.answer())

    async def _run_session(
        self, session: Session, question: str, hear: Callable[[Event], None]
    ) -> None:
        for event in session.events:
            hear(event)
        await session.run(*([] if session.events else [session.started(question)]))
        await self._learn(session.machine.latency.samples())

    async def _drive_teams(self, run: Run, teams: Teams, journal: RunJournal | None) -> None:
        """Several teams on the question, each a run of its own, and one of their answers."""
        assert self._tools is not None
        assert self._runtime is not None
        _refuse_sinks(self._tools, teams)
        redactor = self._redactor()
        runtime = RedactedRuntime(self._runtime, redactor) if redactor else self._runtime
        settings = self._settings_of(run.id, run.deadline)
        setup = self._setup(run.id, settings, teams=teams)
        question = redactor.text(run.question)
        if journal is None and self._journal is not None:
            if run.strict:
                await _refuse_changed(self._journal, run.id, setup)
            journal = await self._journal.begin(run.id, question, agent=self.name, setup=setup)
        past = () if journal is None else journal.history
        if past and isinstance(past[-1], RunFinished):
            assert self._journal is not None
            assert journal is not None
            if journal.held:  # its process died before it could say so
                status = past[-1].status
                await journal.close("failed" if status == "cancelled" else status)
            told, answer = await ended_run(self._journal, await self._journal.find(run.id))
            for event in told:
                run.hear(event)
            run.end(answer)
            return

        async def drive(team: int, hear: Callable[[Event], None]) -> Answer:
            id = team_run(run.id, team)
            strict = run.strict
            if strict and self._journal is not None:  # what never began cannot have changed
                strict = await _known(self._journal, id) is not None
            session = await self._session(
                id,
                run.question,
                deadline=run.deadline,
                strict=strict,
                observers=[hear],
                team=team,
                wait=True,  # who has the run has its teams, once their last holder is gone
            )
            await self._run_session(session, run.question, hear)
            return session.answer()

        async def dismiss(team: int, why: str) -> None:
            """Nobody carries on a team that was stopped as another was first."""
            known = await _known(self._journal, team_run(run.id, team)) if self._journal else None
            if self._journal is None or known is None or known.ended:
                return
            left = await self._journal.begin(known.id, known.question, agent=self.name, wait=True)
            if not left.held:  # it has ended elsewhere meanwhile
                return
            at = left.history[-1].at if left.history else 0.0
            left.append(RunFinished("cancelled", why, at))
            await left.close("failed")

        def how(team: int) -> str:
            return variation(team, temperature=self._temperature, seed=self._seed).how

        named = self._runtime if isinstance(self._runtime, Named) else None
        info = RunInfo(run.id, self.name, named, past, teams=teams.n)
        watchers = Watchers(self._watch, info, redactor.text)
        log = TeamsLog(
            settings.record,
            setup.terms.machine(),
            journal,
            hear=run.hear,
            watch=watchers,
            redact=redactor.data if redactor else None,
        )
        async with log, self._sharing.holding(run.id):
            rivals = Rivals(
                run.id,
                question,
                teams,
                drive=drive,
                dismiss=dismiss,
                tell=log.tell,
                hear=run.hear,
                how=how,
                runtime=runtime,
                clock=RunClock(past[-1].at if past else 0.0),
                note=settings.note,
                deadline=settings.limits.deadline,
                history=past,
            )
            try:
                with watchers:
                    answer = await rivals.run()
            except asyncio.CancelledError:
                run.end(rivals.cancelled())
                raise
            await log.close(answer.status)
        run.end(answer)


def _refuse_sinks(tools: Mapping[str, Tool], teams: Teams) -> None:
    """`UsageError` where something would be written or sent once by each team."""
    if sinks := [name for name, tool in tools.items() if tool.sink]:
        raise UsageError(
            f"teams: the tool {sinks[0]!r} writes or sends, and each of {teams.n} teams would call "
            "it: leave it out, or ask with teams=1; one that only reads says effect='read'"
        )


async def _known(journal: Journal, run_id: str) -> JournaledRun | None:
    """The run, where the journal has it."""
    try:
        return await journal.find(run_id)
    except UsageError:
        return None


async def _setup_in(journal: Journal, run_id: str) -> Setup | None:
    """What the agent was when the run began; None where that is not known."""
    known = await _known(journal, run_id)
    return None if known is None else known.setup


async def _refuse_changed(journal: Journal, run_id: str, now: Setup) -> None:
    """`UsageError` where the run is to be carried on by another agent than began it."""
    run = await journal.find(run_id)
    if not run.ended and (changed := list(changes(run.setup, now))):
        raise UsageError(
            f"run {run_id!r} is not carried on, as the agent has changed since it began: "
            f"{'; '.join(changed)}. Undo that, or resume without strict"
        )


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
