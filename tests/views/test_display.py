"""A run in the terminal."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from sample import big_events, events, hostile_events, hostile_teams, teams_events

from agentpar.display import TerminalDisplay, progress_bar
from agentpar.events import (
    Answered,
    EntryUsed,
    Event,
    FromTeam,
    JoinStarted,
    JoinText,
    PlanFailed,
    PlanStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskStarted,
    WorkersEnded,
    WorkersStarted,
    WorkerText,
)
from agentpar.permissions import Permissions
from agentpar.plan import Ok, Task
from agentpar.timeline import render_timeline

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def colourful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a test run must not choose the view."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def console(terminal: bool, width: int = 100, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, force_terminal=terminal, width=width, height=30, highlight=False)


def written(console: Console) -> str:
    """What reached the terminal, byte for byte."""
    assert isinstance(console.file, io.TextIOWrapper)
    console.file.flush()
    raw = console.file.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode(console.file.encoding)


def shown(run: Sequence[Event], console: Console, quiet: bool = False) -> str:
    with TerminalDisplay(console, quiet=quiet) as display:
        for event in run:
            display.handle(event)
    return written(console)


def record(output: str) -> str:
    """What stays in the scrollback, without styles: all that follows the last live frame."""
    return ESCAPES.sub("", output.rsplit("\x1b[2K", 1)[-1])


def test_outside_a_terminal_each_event_is_a_line() -> None:
    """A pipe gets no escape sequences, one line per fact, then answer, sources, summary."""
    text = shown(events(), console(terminal=False))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert '    0.62 s  planned 1. web_search(query="Chile population")' in lines
    assert "    3.20 s  failed 4 in 1.59 s (tool): HTTP 404 for http://atlas.example/peru" in lines
    assert "    3.20 s  skipped 5: task 4 has no value" in lines
    assert (
        "[5] Peru: people http://almanac.example/peru — "
        '"The population of Peru is 34,352,719 people as of 2023."'
    ) in lines
    assert "Most of them live on the coast. (?)" in text
    assert "1.33× faster than one after another" in lines[-1]


def test_where_nothing_ran_side_by_side_nothing_is_called_faster() -> None:
    """One call after another took as long as it took."""
    task, began = Task.of(1, "calc", expression="1"), RunStarted("run", "?")
    ran: list[Event] = [
        began, TaskPlanned(1, task, 0.1), TaskStarted(1, at=0.1), TaskDone(1, Ok(1), 1.1),
        RunFinished("answered", at=1.2),
    ]  # fmt: skip
    last = shown(ran, console(terminal=False)).splitlines()[-1]
    assert "tools: 1.00 s of calls in 1.00 s" in last
    assert "faster" not in last


@pytest.mark.parametrize("terminal", [True, False])
def test_a_page_that_was_not_read_is_told(terminal: bool) -> None:
    """Beside the result of the call that went on without it."""
    task = Task.of(1, "web_lookup", query="Nile")
    page = {"text": "long", "unread": [{"url": "http://b.example/", "error": "HTTP 404"}]}
    ran: list[Event] = [
        RunStarted("run", "?"), TaskPlanned(1, task, 0.1), TaskStarted(1, at=0.1),
        TaskDone(1, Ok(page), 1.1), RunFinished("answered", at=1.2),
    ]  # fmt: skip
    text = ESCAPES.sub("", shown(ran, console(terminal)))
    assert "not read: http://b.example/: HTTP 404" in text


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_get_lines(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Nothing moves where nothing can be moved."""
    monkeypatch.setenv(name, value)
    text = shown(events(), console(terminal=True))
    assert "started 1" in text
    assert "\x1b[2K" not in text
    assert "\x1b[?25l" not in text


def test_a_terminal_keeps_the_record_when_the_run_is_over() -> None:
    """Tasks with states and bars, faults, the answer and its sources stay in the scrollback."""
    text = record(shown(events(), console(terminal=True)))
    rows = {line[:3]: line for line in text.splitlines()}
    assert re.search(r"web_search\(query=\"Chile population\"\) +0\.48 s +━+", rows["✓ 1"])
    assert "HTTP 404" in rows["✗ 4"]
    assert "needs 4" in rows["– 5"]
    assert "replan: the page on Peru is gone" in text
    assert text.count("Peru has more people than Chile.") == 1


def test_the_live_view_shows_the_line_being_written() -> None:
    """The planner's unfinished line is on screen before its task exists."""
    screen = console(terminal=True)
    with TerminalDisplay(screen) as display:
        for event in events()[:4]:
            display.handle(event)
        screen.print(display._frame())
    assert "planning" in ESCAPES.sub("", written(screen))


@pytest.mark.parametrize("width", [12, 40, 63, 64, 200])
@pytest.mark.parametrize("run", [events(), hostile_events(), big_events(100)])
def test_no_line_is_wider_than_the_terminal(width: int, run: list[Event]) -> None:
    """Narrow terminals lose the bars, then the ends of calls; nothing breaks."""
    text = ESCAPES.sub("", shown(run, console(terminal=True, width=width)))
    assert max(cell_len(line) for line in text.split("\n")) <= width


@pytest.mark.parametrize("terminal", [True, False])
def test_escape_sequences_and_markup_of_a_page_are_shown_not_obeyed(terminal: bool) -> None:
    """The only escapes that reach the terminal are the display's own."""
    text = shown(hostile_events(), console(terminal, width=200))
    assert not re.search(r"\x1b\]|\x07|\x1b\[2J|\x00|\u202e", text)
    plain = ESCAPES.sub("", text)
    assert "\x1b" not in plain
    assert "[bold red]" in plain
    assert "␛]0;pwned" in plain


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_without_unicode_gets_ascii(terminal: bool) -> None:
    """What cannot be written is replaced, never raised."""
    text = shown(hostile_events(), console(terminal, encoding="ascii"))
    assert text.isascii()
    assert shown(events(), console(terminal, encoding="ascii")).isascii()
    screen = console(terminal, encoding="ascii")
    with progress_bar("Gewichte für \x1b das Modell", screen) as report:
        report("größer " * 20, 1, 2)
    assert written(screen).isascii()


def test_quiet_is_the_answer_and_its_sources() -> None:
    """No progress, no summary."""
    text = shown(events(), console(terminal=True), quiet=True)
    assert ESCAPES.sub("", text).startswith("Peru has more people than Chile.")
    assert "[3] Chile" in ESCAPES.sub("", text)
    assert "faster" not in text


def test_a_large_run_counts_what_it_does_not_list() -> None:
    """A thousand tasks do not flood the scrollback, and none goes unmentioned."""
    text = record(shown(big_events(1000), console(terminal=True)))
    assert len(text.splitlines()) < 100
    assert "and 941 ok" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_an_interrupt_leaves_the_terminal_whole(terminal: bool) -> None:
    """Ctrl-C ends the live view: cursor back, no thread left, the tasks as they stood."""
    screen = console(terminal)
    run = [
        RunStarted("r", "q"),
        PlanStarted(1),
        TaskPlanned(1, Task.of(1, "a"), 0.1),
        TaskStarted(1, {}, 0.2),
    ]
    before = set(threading.enumerate())

    def interrupted() -> None:
        with TerminalDisplay(screen) as display:
            for event in run:
                display.handle(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for thread in set(threading.enumerate()) - before:
        thread.join(2)  # rich's refresher sees the stop at its next tick
    assert set(threading.enumerate()) <= before
    text = written(screen)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")
    assert "stopped (no finished answer)" in ESCAPES.sub("", text)


def test_a_failed_run_says_why() -> None:
    """The run's error stands at the end, also when quiet."""
    run = [RunStarted("r", "q"), RunFinished("failed", "the server went away", 1.0)]
    for quiet in (True, False):
        text = shown(run, console(terminal=False), quiet)
        assert "failed: the server went away (no finished answer)" in text


def test_a_failure_that_has_its_line_is_not_told_again() -> None:
    """A line for each event says it; where no such lines are shown, the end does."""
    gone = PlanFailed(1, "no server answers", 1.0)
    run = [RunStarted("r", "q"), PlanStarted(1), gone, RunFinished("failed", gone.error, 1.0)]
    for quiet in (True, False):
        text = shown(run, console(terminal=False), quiet)
        assert text.count("no server answers") == 1
        assert ("planning failed: no server" in text) is not quiet
    assert shown(run, console(terminal=True), False).count("failed: no server answers") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_the_view_begins_with_what_is_simulated(terminal: bool) -> None:
    """On screen as in a log, of a live run as of one told again; but --quiet is the answer."""
    run = [RunStarted("r", "q", "mini-web: each reply delayed 80 ms"), RunFinished("failed")]
    assert "each reply delayed 80 ms" in record(shown(run, console(terminal)))
    assert "80 ms" not in shown(run, console(terminal), quiet=True)


def test_only_the_sentence_that_is_doubtful_is_marked() -> None:
    """Not one that ends in the same words, and each time it was written."""
    text = "Only Peru is large. Peru is large. Lima is old. Peru is large."
    answered = Answered(1, text, unsupported=("Peru is large.", "Peru is large."))
    output = shown([RunStarted("r", "q"), answered], console(terminal=False), quiet=True)
    assert output.startswith(
        "Only Peru is large. Peru is large. (?) Lima is old. Peru is large. (?)\n"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_says_what_it_waits_for(terminal: bool) -> None:
    """Description and step are on screen as plain text; an unknown total is fine."""
    screen = console(terminal)
    with progress_bar("Starting vLLM", screen) as report:
        report("reading [bold]weights\x1b[2J", 1, 4)
        report("reading [bold]weights\x1b[2J", 2, 4)
        report("compiling", 0, 0)
    text = written(screen)
    assert "\x1b[2J" not in text
    if not terminal:
        assert text.splitlines() == [
            "Starting vLLM: reading [bold]weights␛[2J 20 %",
            "Starting vLLM: reading [bold]weights␛[2J 50 %",
            "Starting vLLM: compiling",
        ]
    else:
        assert "Starting vLLM: compiling" in ESCAPES.sub("", text)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_was_carried_on_says_so(terminal: bool) -> None:
    """What has changed in its agent is told, and what is begun again is told as that."""
    run: list[Event] = [
        RunStarted("run", "Chile?"),
        PlanStarted(1),
        TaskPlanned(1, Task.of(1, "search")),
        TaskStarted(1),
        RunResumed(("the instructions are others", "tool 'pay' is new"), Permissions()),
        PlanStarted(1),
        TaskStarted(1),
        PlanStarted(1, anew=True),
        JoinStarted(1),
        JoinStarted(1),
        Answered(1, "yes"),
        RunFinished("answered"),
    ]
    text = shown(run, console(terminal))
    for change in ("the instructions are others", "tool 'pay' is new"):
        assert change in text
    if not terminal:
        lines = [line.partition(" s  ")[2] for line in text.splitlines() if " s  " in line]
        assert len(set(lines)) == len(lines)
        assert lines[5:10] == [
            "round 1: planning again, in the same words",
            "started 1 again",
            "round 1: planning on from what stands, as the plan reads differently now",
            "round 1: joining",
            "round 1: joining again",
        ]


THINKING = [
    RunStarted("r", "Why?"),
    PlanStarted(1),
    TaskPlanned(1, Task.of(1, "think", question="Why?"), at=0.5),
    TaskStarted(1, at=0.5),
    WorkersStarted(1, ("Alice", "Bob"), "rows", task_id=1, at=0.6),
    WorkerText(1, "Alice", "I begin.\n" * 100 + "The end\x1b[31m of it.", task_id=1, at=0.7),
    WorkerText(1, "Bob", "I check [bold]that", task_id=1, at=0.8),
]


def last_frame(run: Sequence[Event], width: int = 100) -> str:
    """What stands on a live terminal when the last of ``run`` was told."""
    view = console(terminal=True, width=width)
    with TerminalDisplay(view) as display:
        for event in run:
            display.handle(event)
        assert display._live is not None
        with view.capture() as captured:
            view.print(display._frame())
    return ESCAPES.sub("", captured.get())


def test_the_live_view_has_a_line_for_each_worker_while_it_writes() -> None:
    """The end of its text, as text; none once the call is over, or the answer has begun."""
    frame = last_frame(THINKING)
    (alice,) = (line for line in frame.splitlines() if "1. Alice" in line)
    assert alice.rstrip().endswith("I begin. The end␛[31m of it.")
    assert "1. Bob I check [bold]that" in frame
    assert "Alice" not in last_frame([*THINKING, TaskDone(1, Ok("So."), at=1.0)])
    joining = [
        *THINKING[:2],
        JoinStarted(1, at=1.0),
        WorkersStarted(1, ("Carol",), "log", at=1.0),
        WorkerText(1, "Carol", "Well.", at=2.0),
    ]
    assert "Carol Well." in last_frame(joining)
    assert "Carol" not in last_frame([*joining, JoinText(1, "So.", at=3.0)])


@pytest.mark.parametrize("width", [20, 60])
def test_a_workers_line_is_no_wider_than_the_terminal(width: int) -> None:
    """And no higher than one row."""
    lines = last_frame(THINKING, width).splitlines()
    assert sum("Alice" in line for line in lines) == 1
    assert all(cell_len(line) <= width for line in lines)


def test_outside_a_terminal_workers_are_told_of_when_they_begin_and_where_they_fail() -> None:
    """Who, how, why not better, and what went wrong; not each piece."""
    run = [
        *THINKING,
        WorkersEnded(1, ("Bob broke off: HTTP 400",), task_id=1, at=1.0),
        WorkersStarted(1, ("Carol",), "log", "the server runs without the plugin", at=2.0),
        WorkersEnded(1, at=3.0),
    ]
    output = shown(run, console(terminal=False))
    assert "call 1: Alice, Bob think together in one KV cache" in output
    assert "call 1: Bob broke off: HTTP 400" in output
    assert "round 1: Carol think together in a log (the server runs without" in output
    assert "I check" not in output


# Several teams


def test_outside_a_terminal_each_line_names_its_team() -> None:
    """With the time of the whole run; what is about all teams stands alone."""
    lines = shown(teams_events(), console(terminal=False)).splitlines()
    assert (
        "    0.02 s  team 2: run run.2 (Take the parts from the last to the first; seed 8)" in lines
    )
    assert "    0.43 s  team 2: call 1: team 1 makes an equal call, waiting for it" in lines
    assert "    1.42 s  team 2: call 1: its result is there, from team 1 (0.90 s spared)" in lines
    assert "    3.00 s  team 3: failed: the server is gone" in lines
    assert "    3.60 s  team 1 chosen (vote): 2 of 2 came to it" in lines
    assert lines[-1].startswith("3.60 s · 3 teams · 2 results of others, 1.80 s spared · tools: 6.")


def test_what_a_team_of_an_earlier_run_found_is_told_by_that_run() -> None:
    """Its number would name a team of this one."""
    told = [
        replace(event, told=replace(event.told, producer=("earlier.1", 2)))
        if isinstance(event, FromTeam) and isinstance(event.told, EntryUsed)
        else event
        for event in teams_events()
    ]
    text = shown(told, console(terminal=False))
    assert "team 2: call 1: its result is there, from run earlier.1 (0.90 s spared)" in text
    assert "from team" not in text
    assert "s, from run earlier.1</text>" in render_timeline(told)


def test_in_a_terminal_each_team_is_a_block() -> None:
    """One below the other, on one time axis; then whose answer it is."""
    text = record(shown(teams_events(), console(terminal=True)))
    heads = [line for line in text.splitlines() if line.startswith("team ")]
    assert [line.split("(")[0].strip() for line in heads] == [
        "team 1 ✓ Peru [2]",
        "team 2 ✓ Peru",
        "team 3 ✗ the server is gone",
        "team 1 chosen",
    ]
    assert text.count("people(country=") == 6
    assert text.count("from team 1") == 2


def test_a_live_view_of_many_teams_fits_the_screen() -> None:
    """Each has fewer rows."""
    terminal = console(terminal=True)
    display = TerminalDisplay(terminal)
    for event in teams_events()[:40]:
        display.handle(event)
    with terminal.capture() as capture:
        terminal.print(display._frame())
    assert len(capture.get().splitlines()) <= terminal.height


def test_what_teams_say_is_no_markup() -> None:
    """In both views, as of a single run."""
    for terminal in (False, True):
        text = shown(hostile_teams(), console(terminal=terminal))
        assert "pwned\x07" not in text
        assert "\u202e" not in text
