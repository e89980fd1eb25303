"""A run in the terminal: live while it goes on, a record in the scrollback when it ends.

It shows the story of a run and decides nothing. Texts of models, tools and pages are
untrusted: they go in as plain text, with control characters made visible, never as markup.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from agentpar.events import (
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    AttemptFailed,
    BankFailed,
    EntryOffered,
    EntryUsed,
    Event,
    FromTeam,
    HostThrottled,
    JoinFailed,
    JoinStarted,
    LeaseAwaited,
    PlanEnded,
    PlanFailed,
    PlanFault,
    PlanStarted,
    ReplanAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskStarted,
    TeamChosen,
    TeamEnded,
    TeamStarted,
    WorkersEnded,
    WorkersStarted,
)
from agentpar.memory.evidence import spans
from agentpar.plaintext import one_line, seconds, visible
from agentpar.plan import Failed, Ok, Skipped
from agentpar.ports import Progress
from agentpar.story import RoundStory, State, Story, TaskStory, TeamStory, arguments, call, finder
from agentpar.tools.page import unread_of

if TYPE_CHECKING:  # rich loads when something is shown, not when this file is read
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

_STYLES: dict[State, str] = {
    "waiting": "dim",
    "asking": "yellow",
    "running": "cyan",
    "ok": "green",
    "failed": "bold red",
    "skipped": "yellow dim",
    "stopped": "dim",
}
_ICONS: dict[State, str] = {
    "waiting": "·", "asking": "?", "running": "▸", "ok": "✓", "failed": "✗", "skipped": "–",
    "stopped": "■",
}  # fmt: skip
_ASCII_ICONS: dict[State, str] = {
    "waiting": ".", "asking": "?", "running": ">", "ok": "+", "failed": "x", "skipped": "-",
    "stopped": "#",
}  # fmt: skip
_ENDS: dict[str, State] = {"answered": "ok", "failed": "failed", "cancelled": "stopped"}
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_REFRESH = 8  # frames a second
_BAR_FROM = 64  # columns of terminal from which the time bars fit
_WORKERS = 8  # lines for workers who write; the view must not outgrow the screen
_RECORDED = 60  # tasks listed when the run is over; failed ones always are


class TerminalDisplay:
    """Shows one run: ``with display: async for event in run: display.handle(event)``.

    On a terminal the view is live; elsewhere (a pipe, CI, ``NO_COLOR``, a dumb terminal)
    each event is a line. ``quiet`` shows the answer and its sources alone. ``folder``,
    once set, is named in the last line.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        from rich.console import Console

        self.folder: Path | None = None
        self._console = console or Console(highlight=False)
        self._quiet = quiet
        self._story = Story()
        self._live: Live | None = None
        # Keeps a frame, drawn by rich's refresh thread, from reading a half-told story.
        self._lock = threading.Lock()
        self._last_event = time.monotonic()
        self._told = ""  # the last failure that has a line of its own

    @property
    def live(self) -> bool:
        """Whether the view moves; False where it is a line per event, or quiet."""
        plain = not self._console.is_terminal or self._console.is_dumb_terminal
        return not (plain or self._quiet or os.environ.get("NO_COLOR"))

    def __enter__(self) -> Self:
        if self.live:
            from rich.live import Live

            self._live = Live(
                console=self._console,
                get_renderable=self._frame,
                refresh_per_second=_REFRESH,
                transient=True,
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            for part in self._record():
                self._console.print(part)
        self._print_end()

    def handle(self, event: Event) -> None:
        """Take in the next fact and show it."""
        with self._lock:
            self._story.add(event)
            self._last_event = time.monotonic()
        if self._live is None and not self._quiet and (line := _event_line(event, self._story)):
            self._print_plain(line)
            if isinstance(event, PlanFailed | JoinFailed):
                self._told = event.error

    # --- live -------------------------------------------------------------------------

    def _frame(self) -> RenderableType:
        from rich.console import Group

        with self._lock:
            # Between events the run's clock goes on; events carry no news of that.
            now = self._story.now
            if self._story.status == "running" and self._story.run_id:
                now += time.monotonic() - self._last_event
            return Group(*self._view(now, rows=max(3, self._console.height - 14), final=False))

    def _record(self) -> Iterator[RenderableType]:
        yield from self._view(self._story.now, rows=_RECORDED, final=True)

    def _view(self, now: float, rows: int, final: bool) -> Iterator[RenderableType]:
        story = self._story
        if story.question:
            yield self._text(("bold", one_line(story.question, 300)))
        for change in story.changes:
            yield self._text(("yellow", f"changed since the run began: {one_line(change, 300)}"))
        if story.note:
            yield self._text(("yellow", one_line(story.note, 500)))
        if not story.teams:
            yield from self._part(story, now, rows, final)
            return
        # The lines of a team besides its tasks: what it is, and what it writes.
        each = max(1, (rows + 8) // len(story.teams) - 2) if not final else rows
        for number in sorted(story.teams):
            team = story.teams[number]
            line = self._team(team)
            line.truncate(self._console.width, overflow=self._cut)
            yield line
            yield from self._part(team.story, now - team.began, each, final)
        if story.choice is not None:
            chosen = f"team {story.choice.team} chosen ({one_line(story.choice.select, 20)})"
            yield self._text(("bold green", chosen), ("", f": {one_line(story.choice.why, 300)}"))

    def _team(self, team: TeamStory) -> Text:
        """What a team is, and what it has come to."""
        end, name = team.end, f"team {team.number}"
        how = ("dim", f" ({one_line(team.how, 120)})" if team.how else "")
        if end is None:
            return self._text(("bold cyan", name), how)
        state = _ENDS[end.status]
        choice = self._story.choice
        taken = choice is not None and choice.team == team.number
        style = "bold green" if taken else _STYLES[state]
        said = one_line(end.conclusion if end.status == "answered" else end.error, 120)
        return self._text(("bold", name), (style, f" {self._icon(state)} {said}"), how)

    def _part(self, story: Story, now: float, rows: int, final: bool) -> Iterator[RenderableType]:
        """What was planned and is done in one run, or in one team's."""
        if story.tasks:
            yield self._tasks(story, now, rows)
        for fault in story.faults[-5:] if not final else story.faults:
            yield self._text(("red", "plan: "), ("", one_line(fault.message, 300)))
        for round_ in story.rounds.values():
            for error in filter(None, (round_.plan_error, round_.join_error)):
                yield self._text(("bold red", f"round {round_.number}: {one_line(error, 500)}"))
            if round_.replan:
                yield self._text(("yellow", f"replan: {one_line(round_.replan, 300)}"))
        if final or not story.rounds:
            return
        last = story.rounds[max(story.rounds)]
        spin = _SPINNER[int(now * _REFRESH) % len(_SPINNER)] if self._unicode() else "*"
        if last.plan_started is not None and last.plan_ended is None:
            writing = one_line(last.writing(), 300)
            line = self._text(("magenta", f"{spin} planning "), ("dim", writing))
            line.truncate(self._console.width, overflow=self._cut)
            yield line
        yield from self._workers(story, last, spin)
        if last.join_started is not None and last.join_ended is None:
            # The end of it, in at most six lines: the view must not outgrow the screen.
            text = visible("".join(last.join_text))[-6 * self._console.width :]
            yield self._text(("cyan", f"{spin} joining "), ("", text))

    def _workers(self, story: Story, last: RoundStory, spin: str) -> Iterator[RenderableType]:
        """A line for each worker that may write: the end of its text, where something happens."""
        width = self._console.width
        groups = [
            (f"{task.task.label}. ", task.group)
            for task in story.tasks.values()
            if task.group is not None and story.state(task) == "running"
        ]
        if last.group is not None and last.join_ended is None and not last.join_text:
            groups.append(("", last.group))
        lanes = [(f"{spin} {for_}{w.worker} ", w) for for_, g in groups for w in g.lanes.values()]
        for begin, lane in lanes[-_WORKERS:]:
            text = one_line(lane.text[-2 * width :])
            line = self._text(("cyan", begin), ("dim", text[-max(1, width - len(begin)) :]))
            line.truncate(width, overflow=self._cut)
            yield line

    def _tasks(self, story: Story, now: float, rows: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        shown, hidden = _chosen(story, rows)
        width = self._console.width
        bars = min(44, width // 3) if width >= _BAR_FROM else 0
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow=self._cut)
        table.add_column(justify="right", no_wrap=True)
        if bars:
            table.add_column(no_wrap=True, width=bars)
        table.expand = True
        if hidden:
            table.add_row("", "", self._text(("dim", hidden)))
        for task in shown:
            state = story.state(task)
            span = task.span(now)
            note = seconds(span[1] - span[0]) if span else "" if state == "waiting" else state
            if isinstance(task.outcome, Skipped):
                note = f"needs {task.outcome.because}"
            if task.used is not None:
                whose = finder(task.used.producer[0], task.used.team, story.run_id)
                note = f"from {one_line(whose, 60)} {note}"
            row: list[RenderableType] = [
                Text(self._icon(state), style=_STYLES[state]),
                task.task.label,
                self._call(task, state),
                Text(note, style=_STYLES[state]),
            ]
            if bars:
                row.append(self._bar(story, task, state, now, bars))
            table.add_row(*row)
        return table

    def _call(self, task: TaskStory, state: State) -> Text:
        name, rest = one_line(task.task.tool, 80), f"({one_line(arguments(task.task), 300)})"
        if isinstance(task.outcome, Failed):
            error = f" {one_line(task.outcome.error, 200)} "
            line = self._text(("bold", name), ("red", error), ("dim", rest))
        elif isinstance(task.outcome, Ok) and (unread := unread_of(task.outcome.value)):
            missing = f" not read: {one_line('; '.join(unread), 200)} "
            line = self._text(("bold", name), ("yellow", missing), ("dim", rest))
        else:
            line = self._text(("dim" if state == "waiting" else "bold", name), ("", rest))
        line.overflow = self._cut
        return line

    def _bar(self, story: Story, task: TaskStory, state: State, now: float, width: int) -> Text:
        """The task on the run's time axis: waiting thin, running thick."""
        from rich.text import Text

        length = max(now - story.began, 1e-3)

        def column(at: float) -> int:
            return max(0, min(width, round((at - story.began) / length * width)))

        thin, thick = ("┈", "━") if self._unicode() else (".", "=")
        planned = column(task.planned)
        started, ended = (column(at) for at in task.span(now) or (task.planned, task.planned))
        if task.started is None:
            until = column(now if task.ended is None else task.ended)
            return Text(" " * planned + thin * (until - planned), style="dim")
        started = min(started, width - 1)
        bar = Text(" " * planned + thin * (started - planned), style="dim")
        return bar.append(thick * max(1, ended - started), style=_STYLES[state])

    # --- plain ------------------------------------------------------------------------

    def _print_plain(self, line: str) -> None:
        self._console.print(self._text(("", line)), soft_wrap=True)

    # --- the end ----------------------------------------------------------------------

    def _print_end(self) -> None:
        story = self._story
        wide = {"soft_wrap": True} if not self._console.is_terminal else {}
        if not self._quiet:
            self._console.print()
        text = story.text()
        if text:
            self._console.print(self._answer(text), **wide)  # type: ignore[arg-type]
        if story.answer is not None and story.answer.citations:
            self._console.print()
            for citation in story.answer.citations:
                line = [("bold cyan", f"[{citation.n}] ")]
                if citation.title not in ("", citation.source):  # a call is both
                    line.append(("", one_line(citation.title, 200) + " "))
                line.append(("blue", one_line(citation.source, 500)))
                if citation.passage:
                    line.append(("dim", f' — "{one_line(citation.passage, 400)}"'))
                if not citation.supported:
                    problem = one_line(citation.problem, 300) or "no passage carries it"
                    line.append(("yellow", f" (not supported: {problem})"))
                self._console.print(self._text(*line), **wide)  # type: ignore[arg-type]
        if story.status != "answered" and story.run_id:
            what = story.status if story.status != "running" else "stopped"
            told = story.error in ("", self._told)
            reason = "" if told else f": {one_line(story.error, 1000)}"
            reason += "" if story.answer else " (no finished answer)"
            self._console.print(self._text(("bold red", what + reason)), **wide)  # type: ignore[arg-type]
        if not self._quiet and story.run_id:
            self._console.print()
            self._console.print(self._text(("dim", self._summary())), **wide)  # type: ignore[arg-type]

    def _answer(self, text: str) -> Text:
        """The answer; sentences that no passage carries are underlined and marked ``(?)``."""
        doubtful = self._story.answer.unsupported if self._story.answer else ()
        parts: list[tuple[str, str]] = []
        at = 0
        for start, end in spans(text, doubtful):
            marked = [("yellow underline", text[start:end]), ("yellow", " (?)")]
            parts += [("", text[at:start]), *marked]
            at = end
        parts.append(("", text[at:]))
        if doubtful:
            parts.append(("yellow", "\n(?) no passage that the run has read carries this"))
        return self._text(*((style, visible(part)) for style, part in parts))

    def _summary(self) -> str:
        story, usage = self._story, self._story.usage()
        parts = [seconds(story.wall())]
        if story.teams:
            parts.append(f"{len(story.teams)} teams")
        if reused := [task.used for _, task in story.all_tasks() if task.used is not None]:
            spared = seconds(sum(used.spared for used in reused))
            parts.append(f"{len(reused)} results of others, {spared} spared")
        if story.stopped_by:
            parts.append(f"stopped by {story.stopped_by}")
        if story.tool_wall() > 0:
            calls, wall = seconds(story.tool_seconds()), seconds(story.tool_wall())
            parts.append(f"tools: {calls} of calls in {wall}")
            if (gain := round(story.speedup(), 2)) > 1:
                parts[-1] += f", {gain:.2f}× faster than one after another"
        if usage.calls:
            about = "about " if usage.estimated else ""
            parts.append(
                f"tokens: {about}{usage.prompt_tokens:,} read, {usage.completion_tokens:,} written"
            )
        if self.folder is not None:
            parts.append(str(self.folder))
        return " · ".join(parts)

    # --- text -------------------------------------------------------------------------

    def _unicode(self) -> bool:
        return self._console.encoding.lower().startswith("utf")

    @property
    def _cut(self) -> Literal["ellipsis", "crop"]:
        """How rich ends what does not fit: its ellipsis is a character of its own."""
        return "ellipsis" if self._unicode() else "crop"

    def _icon(self, state: State) -> str:
        return (_ICONS if self._unicode() else _ASCII_ICONS)[state]

    def _text(self, *parts: tuple[str, str]) -> Text:
        """Styled text in which nothing is markup and everything can be written."""
        from rich.text import Text

        text = Text(overflow="fold")
        for style, part in parts:
            text.append(_writable(part, self._console), style=style)
        return text


def _writable(text: str, console: Console) -> str:
    """``text`` with ``?`` for what the console's encoding lacks, where rich would raise."""
    return text.encode(console.encoding, "replace").decode(console.encoding)


def _chosen(story: Story, rows: int) -> tuple[list[TaskStory], str]:
    """The tasks that fit, in plan order, and a line that counts the others by state.

    What runs and what failed comes first, then the newest.
    """
    tasks = list(story.tasks.values())
    if len(tasks) <= rows:
        return tasks, ""
    rank = {"running": 0, "asking": 0, "failed": 1}
    order = sorted(tasks, key=lambda task: (rank.get(story.state(task), 2), -task.task.id))
    kept = {task.task.id for task in order[: rows - 1]}
    counts: dict[str, int] = {}
    for task in tasks:
        if task.task.id not in kept:
            counts[story.state(task)] = counts.get(story.state(task), 0) + 1
    others = ", ".join(f"{count} {state}" for state, count in counts.items())
    return [task for task in tasks if task.task.id in kept], f"and {others}"


def _event_line(event: Event, story: Story) -> str:
    """What the plain view says of an event; empty for pieces of a stream."""
    match event:
        case FromTeam(_, RunStarted() | RunFinished()):
            what = ""  # told of the team
        case FromTeam(number, told):
            what = _told(told, story.teams[number].story)
            what = f"team {number}: {what}" if what else ""
        case _:
            what = _told(event, story)
    return f"{event.at - story.began:8.2f} s  {what}" if what else ""


def _told(event: Event, story: Story) -> str:
    match event:
        case RunStarted(run_id, question, note):
            what = f"run {one_line(run_id, 80)}: {one_line(question, 500)}"
            what += f" ({one_line(note, 500)})" if note else ""
        case RunResumed(changes):
            told = one_line("; ".join(changes), 2000) or "nothing, in the end"
            what = f"carried on; changed in the agent since the run began: {told}"
        case PlanStarted(number, anew=True):
            what = (
                f"round {number}: planning on from what stands, as the plan reads differently now"
            )
        case PlanStarted(number):
            again = " again, in the same words" if story.rounds[number].plans > 1 else ""
            what = f"round {number}: planning{again}"
        case TaskPlanned(_, task):
            what = f"planned {task.label}. {one_line(call(task), 300)}"
        case PlanFault(_, message):
            what = f"plan fault: {one_line(message, 500)}"
        case PlanEnded(number):
            what = f"round {number}: plan complete"
        case PlanFailed(number, error):
            what = f"round {number}: planning failed: {one_line(error, 500)}"
        case ApprovalAsked(id, _, label, because):
            where = f" ({one_line(str(label), 300)})" if label.untrusted else ""
            what = f"asking {id}: {one_line(because, 300) or 'needs approval'}{where}"
        case ApprovalGiven(id, allowed, reason):
            what = f"{'allowed' if allowed else 'denied'} {id} {one_line(reason, 300)}".rstrip()
        case TaskStarted(id):
            started = story.tasks[id]
            what = f"started {started.task.label}"
            what += " again" if started.attempts > event.attempt else ""
            what += f" (attempt {event.attempt})" if event.attempt > 1 else ""
        case AttemptFailed(id, outcome):
            what = (
                f"attempt {event.attempt} of call {story.tasks[id].task.label} failed: "
                f"{one_line(outcome.error, 500)}"
            )
        case HostThrottled(id, host, wait):
            peace = "" if wait is None else f" for {seconds(wait)}"
            what = f"call {story.tasks[id].task.label}: {one_line(host, 100)} asks for less{peace}"
        case TaskCancelled(id, why):
            what = f"cancelled {id}: {one_line(why, 300)}"
        case TaskDone(id, outcome):
            what = _outcome_line(story.tasks[id], outcome)
        case LeaseAwaited(id, (run, _), number):
            whose = one_line(finder(run, number, story.run_id), 60)
            what = f"call {story.tasks[id].task.label}: {whose} makes an equal call, waiting for it"
        case EntryUsed(id, _, (run, _), number, spared):
            whose = one_line(finder(run, number, story.run_id), 60)
            what = f"call {story.tasks[id].task.label}: its result is there, from {whose}"
            what += f" ({seconds(spared)} spared)"
        case EntryOffered(id, _, admitted, policy, why=why):
            kept = "keeps" if admitted else "does not keep"
            reason = ": ".join(filter(None, (one_line(policy, 20), one_line(why, 200))))
            what = f"call {story.tasks[id].task.label}: the bank {kept} it ({reason})"
        case BankFailed(error):
            what = f"the bank: {one_line(error, 500)}"
        case TeamStarted(number, run_id, how):
            what = f"team {number}: run {one_line(run_id, 80)}"
            what += f" ({one_line(how, 200)})" if how else ""
        case TeamEnded(number, status, conclusion, error):
            said = conclusion if status == "answered" else error
            what = f"team {number}: {status}: {one_line(said, 300)}"
        case TeamChosen(number, select, why):
            what = f"team {number} chosen ({one_line(select, 20)}): {one_line(why, 300)}"
        case WorkersStarted(_, workers, backend, why):
            reason = f" ({one_line(why, 200)})" if why else ""
            how = "in one KV cache" if backend == "rows" else f"in a log{reason}"
            what = f"{_thinking(event, story)}: {', '.join(workers)} think together {how}"
        case WorkersEnded(faults=faults) if faults:
            what = f"{_thinking(event, story)}: {one_line('; '.join(faults), 500)}"
        case JoinStarted(number):
            again = " again" if story.rounds[number].joins > 1 else ""
            what = f"round {number}: joining{again}"
        case ReplanAsked(number, why):
            what = f"round {number}: replan: {one_line(why, 500)}"
        case Answered(number):
            what = f"round {number}: answered"
        case JoinFailed(number, error):
            what = f"round {number}: joining failed: {one_line(error, 500)}"
        case RunFinished(status):
            what = f"run {status}"
            what += f", stopped by {event.stopped_by}" if event.stopped_by else ""
        case _:
            return ""
    return what


def _thinking(event: WorkersStarted | WorkersEnded, story: Story) -> str:
    """What the workers think about."""
    id = event.task_id
    return f"round {event.round}" if id is None else f"call {story.tasks[id].task.label}"


def _outcome_line(task: TaskStory, outcome: Ok | Failed | Skipped) -> str:
    id = task.task.label
    took = f" in {seconds(task.ended - task.started)}" if task.started and task.ended else ""
    if task.via:
        took = f" ({one_line(task.via, 80)})"
    match outcome:
        case Ok(value):
            text = value if isinstance(value, str) else repr(value)
            unread = "".join(f"; not read: {one_line(each, 200)}" for each in unread_of(value))
            return f"ok {id}{took}: {one_line(text, 120)}{unread}"
        case Failed(error, kind):
            return f"failed {id}{took} ({kind}): {one_line(error, 500)}"
        case Skipped(because):
            return f"skipped {id}: task {because} has no value"


@contextmanager
def progress_bar(description: str, console: Console | None = None) -> Iterator[Progress]:
    """A bar for a long wait (weights, a server's start) that says what it waits for.

    Where the output is no terminal, a line is written for each new step and each further
    tenth.
    """
    from rich.console import Console

    console = console or Console(highlight=False, stderr=True)
    if not console.is_terminal or console.is_dumb_terminal or os.environ.get("NO_COLOR"):
        yield _progress_lines(description, console)
        return
    from rich import progress as rich_progress
    from rich.text import Text

    class StepColumn(rich_progress.TextColumn):
        """The step as plain text: `TextColumn` reads square brackets as markup."""

        def render(self, task: object) -> Text:
            return Text(getattr(task, "description", ""), overflow="ellipsis", no_wrap=True)

    columns = (
        StepColumn(""),
        rich_progress.BarColumn(None),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
    )
    bars = rich_progress.Progress(*columns, console=console, expand=True, transient=True)
    with bars:
        bar = bars.add_task(_writable(one_line(description, 60), console), total=None)

        def report(step: str, done: float, total: float) -> None:
            text = one_line(f"{description}: {step}" if step else description, 60)
            text = _writable(text, console)
            bars.update(bar, description=text, completed=done, total=total or None)

        yield report


def _progress_lines(description: str, console: Console) -> Progress:
    from rich.text import Text

    last: tuple[str, int] = ("", -1)

    def report(step: str, done: float, total: float) -> None:
        nonlocal last
        tenths = int(10 * done / total) if total else 0
        if (step, tenths) == last:
            return
        last = (step, tenths)
        share = f" {10 * tenths} %" if total else ""
        line = one_line(f"{description}: {step}" if step else description, 200)
        console.print(Text(_writable(line, console) + share), soft_wrap=True)

    return report
