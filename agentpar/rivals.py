"""Several teams at work on one question: started, heard, stopped, and one answer taken.

It owns every coroutine of them. It must never know how a team's run goes, which is a run like
any other, nor weigh answers, which `teams` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from agentpar.answer import Answer, recorded_answer
from agentpar.errors import BackendError
from agentpar.events import (
    Answered,
    Event,
    FromTeam,
    ModelUsed,
    RunFinished,
    RunStarted,
    TeamChosen,
    TeamEnded,
    TeamStarted,
    Usage,
)
from agentpar.executor.failures import described
from agentpar.executor.journal import Journal, JournaledRun, RunJournal
from agentpar.executor.machine import Machine
from agentpar.executor.record import RecordWriter
from agentpar.ids import team_run
from agentpar.planner.reply import asking
from agentpar.ports import Clock, ModelRequest, Runtime
from agentpar.teams import (
    Choice,
    Ended,
    Teams,
    best,
    decided,
    distinct,
    first,
    judge_grammar,
    judge_messages,
    judge_schema,
    judged,
    together,
    vote,
    woven,
)

Hear = Callable[[Event], None]
Drive = Callable[[int, Hear], Awaitable[Answer]]
"""Does the whole run of a team, given by its number, and tells what happens in it."""
Dismiss = Callable[[int, str], Awaitable[None]]
"""Lets nobody carry on a team that was stopped, and says why it was."""
JUDGE_SECONDS = 60.0
"""The judge is waited for so long at most."""


class Rivals:
    """One run of several ``teams``, or the rest of one.

    ``drive`` does a team's run, ``dismiss`` ends one for good. ``tell`` takes what is about all of
    them, ``keep`` says whether it is for good or for who looks on (the end of a run that broke
    off, which goes on one day); ``hear`` takes what each team does. ``how`` are the
    teams' differences in words, ``history`` what happened in earlier parts. ``deadline`` (seconds)
    is that of every team, and the judge has what they leave of it.
    """

    def __init__(
        self,
        run_id: str,
        question: str,
        teams: Teams,
        *,
        drive: Drive,
        dismiss: Dismiss,
        tell: Callable[[Event, bool], None],
        hear: Hear,
        how: Callable[[int], str],
        runtime: Runtime,
        clock: Clock,
        note: str = "",
        deadline: float | None = None,
        history: Iterable[Event] = (),
    ) -> None:
        self._run_id = run_id
        self._question = question
        self._teams = teams
        self._drive = drive
        self._dismiss = dismiss
        self._tell = tell
        self._hear = hear
        self._how = how
        self._runtime = runtime
        self._clock = clock
        self._note = note
        self._deadline = deadline
        self._latest = 0.0
        self._began = False
        self._starts: dict[int, float] = {}
        self._known: dict[int, TeamEnded] = {}
        self._heard: dict[int, list[Event]] = {}
        self._ended: list[Ended] = []
        self._judge: Usage | None = None
        for event in history:
            self._remember(event)

    async def run(self) -> Answer:
        """All of it. Raises what `tell` raises, and nothing of what goes wrong in a team."""
        if not self._began:
            self._tell(RunStarted(self._run_id, self._question, self._note), True)
        try:
            await self._race()
            choice = await self._choice()
        except asyncio.CancelledError:
            self._tell(RunFinished("cancelled", "cancelled by the caller", self._now()), False)
            raise
        answer = self._answer(choice)
        if choice is not None:
            self._tell(
                TeamChosen(choice.team, self._teams.select, choice.why, choice.votes, self._now()),
                True,
            )
            self._tell(self._answered(choice.team, answer), True)
        answer = replace(answer, seconds=self._now())
        used, at = answer.usage, answer.seconds
        spent = (used.stopped_by, used.steps, used.cost_usd)
        self._tell(RunFinished(answer.status, answer.error, at, *spent), True)
        return answer

    def cancelled(self) -> Answer:
        """What there is of a run that was cancelled."""
        answers = self._by_team()
        whole = together(self._run_id, self._question, answers, None, seconds=self._now())
        return replace(whole, status="cancelled", error="cancelled by the caller")

    # The race

    async def _race(self) -> None:
        """Until every team has ended, or those that have not can change nothing any more."""
        gone = [team for team, event in self._known.items() if event.status == "cancelled"]
        for team in gone:  # stopped in an earlier part of the run, when it was decided
            self._ended.append(Ended(team, self._left(team, self._known[team].error)))
        tasks: dict[asyncio.Future[Answer], int] = {
            asyncio.ensure_future(self._drive(team, partial(self._from, team))): team
            for team in range(1, self._teams.n + 1)
            if team not in gone
        }
        pending: Collection[asyncio.Future[Answer]] = list(tasks)
        stopped = ""
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: self._order(tasks[task])):
                    self._end(tasks[task], task, stopped)
                if not stopped and (stopped := decided(self._ended, self._teams)):
                    for task in pending:
                        task.cancel()
        except asyncio.CancelledError:
            await _over(tasks)
            for task in sorted(tasks, key=lambda task: tasks[task]):
                if all(one.team != tasks[task] for one in self._ended):
                    self._end(tasks[task], task, "cancelled by the caller", keep=False)
            raise
        finally:
            await _over(tasks)
        for one in self._ended if stopped else ():
            if one.answer.status == "cancelled":
                await self._dismiss(one.team, stopped)

    def _order(self, team: int) -> tuple[int, int]:
        """In an earlier part of the run teams ended in an order, which holds."""
        known = list(self._known)
        return (known.index(team) if team in known else len(known)), team

    def _end(
        self, team: int, task: asyncio.Future[Answer], stopped: str, *, keep: bool = True
    ) -> None:
        if task.cancelled():
            answer = self._left(team, stopped or "cancelled")
        elif (error := task.exception()) is not None:
            if not isinstance(error, Exception):
                raise error
            answer = replace(self._left(team, described(error)), status="failed")
        else:
            answer = task.result()
        self._ended.append(Ended(team, answer))
        if team not in self._starts:  # it did not come to begin
            self._start(team, self._now())
        if team not in self._known:
            conclusion, error_text = answer.conclusion, answer.error
            event = TeamEnded(team, answer.status, conclusion, error_text, self._now())
            self._tell(event, keep)

    def _left(self, team: int, error: str) -> Answer:
        """What there is of a team that was stopped, or could not go on."""
        heard = self._heard.get(team, ())
        told = recorded_answer(team_run(self._run_id, team), heard)
        return replace(told, question=self._question, status="cancelled", error=error)

    # What is told

    def _from(self, team: int, event: Event) -> None:
        if team not in self._starts:
            self._start(team, self._now())
        self._heard.setdefault(team, []).append(event)
        at = self._starts[team] + event.at
        self._latest = max(self._latest, at)
        self._hear(FromTeam(team, event, at))

    def _start(self, team: int, at: float) -> None:
        self._starts[team] = at
        started = TeamStarted(team, team_run(self._run_id, team), self._how(team), at)
        self._tell(started, True)

    def _remember(self, event: Event) -> None:
        self._latest = max(self._latest, event.at)
        match event:
            case RunStarted():
                self._began = True
            case TeamStarted(team, at=at):
                self._starts[team] = at
            case TeamEnded(team):
                self._known[team] = event
            case ModelUsed(usage=usage):
                self._judge = (self._judge or Usage()) + usage

    def _now(self) -> float:
        """Never before what a team has told: teams that are carried on have clocks that are
        ahead."""
        return max(self._clock.now(), self._latest)

    # The choice

    async def _choice(self) -> Choice | None:
        ended = self._ended
        match self._teams.select:
            case "vote":
                return vote(ended)
            case "best":
                return best(ended)
            case "first":
                if (found := first(ended)) is not None:
                    return found
                found = best(ended)
                why = "no answer is carried in full by what was read; taken as the best of them: "
                return found and replace(found, why=why + found.why)
            case "judge":
                return await self._judged()

    async def _judged(self) -> Choice | None:
        """What the model takes for the best; the vote where it cannot be asked or understood."""
        answers = distinct(self._ended)
        if len(answers) < 2:
            found = vote(self._ended)
            return found and replace(found, why=f"there is one answer to judge: {found.why}")
        trouble, number = "", None
        left = JUDGE_SECONDS
        if self._deadline is not None:
            left = min(left, self._deadline - self._now())
        try:
            if left <= 0:
                raise TimeoutError
            async with asyncio.timeout(left):
                number = judged(text := await self._ask_judge(answers), len(answers))
            trouble = (
                "" if number else f"the judge wrote {text[:60]!r}, which is no answer's number"
            )
        except TimeoutError:
            trouble = "there was no time left for the judge"
        except BackendError as error:
            trouble = f"the judge could not be asked ({error})"
        if number is None:
            found = vote(self._ended)
            return found and replace(found, why=f"{trouble}, so by vote: {found.why}")
        team = answers[number - 1].team
        return Choice(team, f"the model took it for the best of {len(answers)} different answers")

    async def _ask_judge(self, answers: Sequence[Ended]) -> str:
        able = await self._runtime.capabilities()
        n = len(answers)
        request = ModelRequest(judge_messages(self._question, answers), max_tokens=16)
        if "json_schema" in able:
            request = replace(request, json_schema=judge_schema(n))
        elif "grammar" in able:
            request = replace(request, grammar=judge_grammar(n))
        text = ""
        async with asking(self._runtime, request, self._clock, self._judge_took, "judge") as reply:
            async for piece in reply:
                text += piece
        return text

    def _judge_took(self, used: ModelUsed) -> None:
        self._judge = (self._judge or Usage()) + used.usage
        self._tell(replace(used, at=self._now()), True)

    # What comes of it

    def _by_team(self) -> list[Answer]:
        by_team = {one.team: one.answer for one in self._ended}
        return [
            by_team.get(team) or self._left(team, "cancelled by the caller")
            for team in range(1, self._teams.n + 1)
        ]

    def _answer(self, choice: Choice | None) -> Answer:
        return together(
            self._run_id,
            self._question,
            self._by_team(),
            choice,
            seconds=self._now(),
            judge=self._judge,
        )

    def _answered(self, team: int, answer: Answer) -> Answered:
        """The chosen answer as an event of this run."""
        given = Answered(1, answer.text, answer.citations, answer.unsupported)
        for event in self._heard.get(team, ()):
            if isinstance(event, Answered):
                given = event
        return replace(given, at=self._now())


async def _over(tasks: Collection[asyncio.Future[Answer]]) -> None:
    """Cancel ``tasks`` and wait until the last has ended, however often one is told to hurry."""
    again = False
    for task in tasks:
        task.cancel()
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            again = True
    for task in tasks:  # what went wrong in it is told elsewhere, or another error is under way
        with suppress(asyncio.CancelledError):
            task.exception()
    if again:
        raise asyncio.CancelledError


class TeamsLog:
    """Where what is about all teams goes: the run's record, its ``journal``, who ``hear``s it, and
    ``watch``, which is told what comes and not what an earlier part has told.

    A context manager that holds the journal's run: left without `close`, the run broke off.
    ``machine`` decides nothing here; the record's first line has its terms.
    """

    def __init__(
        self,
        record: Path | None,
        machine: Machine,
        journal: RunJournal | None,
        *,
        hear: Hear,
        watch: Hear,
        redact: Callable[[Event], Event] | None = None,
    ) -> None:
        known = journal is not None and journal.known
        self._writer = None if record is None else RecordWriter(record, machine, known=known)
        self._journal = journal
        self._hear = hear
        self._watch = watch
        self._redact = redact
        self._closed = False

    async def __aenter__(self) -> Self:
        try:
            if self._writer is not None:
                self._writer.__enter__()
            for event in self._journal.history if self._journal is not None else ():
                self._show(event)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, traceback)
        if not self._closed:
            await self._leave()

    def tell(self, event: Event, keep: bool) -> None:
        """The journal first, where it is to ``keep`` it: nobody sees what it could not take."""
        if self._redact is not None:
            event = self._redact(event)
        if keep and self._journal is not None:
            self._journal.append(event)
        self._show(event)
        self._watch(event)

    async def close(self, status: Literal["answered", "failed", "cancelled"]) -> None:
        """The run has ended, and is on disk."""
        self._closed = True
        if self._journal is not None:
            await self._journal.close("interrupted" if status == "cancelled" else status)

    async def _leave(self) -> None:
        if self._journal is not None:
            await self._journal.leave()

    def _show(self, event: Event) -> None:
        if self._writer is not None:
            self._writer.event(event)
        self._hear(event)


def recorded_teams(run_id: str, events: Iterable[Event], answers: Sequence[Answer]) -> Answer:
    """The answer of a run of teams that has ended, from its events and its teams' ``answers``.

    Where nothing is left of the chosen team's run, the run's own events have its answer.
    """
    question, seconds, judge = "", 0.0, None
    choice = given = end = None
    for event in events:
        seconds = event.at
        match event:
            case RunStarted(question=asked):
                question = asked
            case TeamChosen(team, why=why):
                choice = Choice(team, why)
            case ModelUsed(usage=usage):
                judge = usage
            case Answered():
                given = event
            case RunFinished():
                end = event
    whole = together(run_id, question, answers, choice, seconds=seconds, judge=judge)
    if given is not None:
        said = (given.text, given.citations, given.unsupported)
        whole = replace(whole, text=said[0], citations=said[1], unsupported=said[2])
        whole = replace(whole, status="answered", error="")
    if end is not None:
        whole = replace(whole, status=end.status, error=end.error)
    return whole


async def ended_run(journal: Journal, run: JournaledRun) -> tuple[list[Event], Answer]:
    """What happened in a run that has ended, that of its teams included, and its answer: out of
    ``journal`` alone. Of a team that was stopped there is only how it ended."""
    own = (await journal.begin(run.id, run.question, agent=run.agent)).history
    if run.setup is None or run.setup.teams is None:
        return list(own), recorded_answer(run.id, own)
    ends = {event.team: event for event in own if isinstance(event, TeamEnded)}
    known = {each.id: each for each in await journal.runs() if each.ended}
    answers: list[Answer] = []
    teams: dict[int, tuple[Event, ...]] = {}
    for team in range(1, run.setup.teams[0] + 1):
        id, end = team_run(run.id, team), ends.get(team)
        if id in known:
            kept = await journal.begin(id, known[id].question, agent=known[id].agent)
            teams[team] = kept.history
            answers.append(recorded_answer(id, kept.history))
        elif end is not None:
            text = end.conclusion
            answers.append(Answer(id, run.question, text, status=end.status, error=end.error))
        else:
            answers.append(Answer(id, run.question, status="cancelled"))
    return woven(own, teams), recorded_teams(run.id, own, answers)
