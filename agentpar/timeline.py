"""A run as one HTML page that opens offline and can be sent to a colleague.

It reads the story of a run and nothing else: no clock, no network, no files of the run.
Everything in it that a model or a page wrote is escaped, the script reads it as data,
and a content security policy lets no other script, style, image or request through.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from agentpar.drawing import svg
from agentpar.events import Answered, Citation, EntryUsed, Event, HostThrottled
from agentpar.memory.evidence import MARK, sentence_spans, spans, unmarked
from agentpar.plaintext import one_line, seconds, visible
from agentpar.plan import Failed, Ok, Skipped
from agentpar.story import (
    GroupStory,
    RoundStory,
    Span,
    Story,
    TaskStory,
    TeamStory,
    arguments,
    call,
    finder,
)
from agentpar.tools.page import pages_of

_SHOWN = 4_000  # characters of a result or an argument; the record of the run has the rest
_AROUND = 160  # characters of the page shown before and after a cited passage
_DRAWN = 200  # tasks up to which the plan's graph is drawn
_SLOT = re.compile(r"\{\{(\w+)\}\}")

_LEGEND = """<ul class="legend">
<li><svg><rect class="plan-bar" width="20" height="10" rx="3"/><rect class="plan-tick" x="9" width="2" height="10"/></svg>planning, a tick per task</li>
<li><svg><rect class="wait" y="4" width="9" height="2"/><rect class="bar" x="9" width="11" height="10" rx="3"/></svg>waiting, running</li>
<li class="failed"><svg><rect class="bar" width="20" height="10" rx="3"/></svg>failed</li>
<li class="skipped"><svg><rect class="bar" x="1" y="1" width="18" height="8" rx="3"/></svg>skipped</li>
<li class="critical"><svg><rect class="bar" x="1" y="1" width="18" height="8" rx="3"/></svg>critical path</li>
<li><svg><rect class="join-wait" width="7" height="10" rx="3"/><rect class="join-bar" x="7" width="13" height="10" rx="3"/></svg>joining</li>
</ul>"""  # noqa: E501 - markup reads better unbroken


_REUSED = """<li class="reused"><svg><rect class="bar" width="20" height="10" rx="3"/></svg>found by another</li>
<li class="reuse"><svg><path d="M0 5H14"/><path class="head" d="M13 1L20 5L13 9Z"/></svg>reuse</li>
"""  # noqa: E501 - markup reads better unbroken
_THROTTLED = """<li><svg><rect class="throttled" width="2" height="10"/><rect class="peace" x="2" y="7" width="18" height="2"/></svg>a host asks for less, for so long</li>
"""  # noqa: E501 - markup reads better unbroken
_RESUMED = """<li><svg><line class="resumed" x1="10" x2="10" y1="0" y2="10"/></svg>carried on</li>
"""


def _legend(story: Story) -> str:
    """What the marks mean that this page may have."""
    more = ""
    if any(task.used is not None for _, task in story.all_tasks()):
        more += _REUSED
    if any(task.throttled for _, task in story.all_tasks()):
        more += _THROTTLED
    if any(part.resumed for _, part in _told(story)):
        more += _RESUMED
    return _LEGEND.replace("</ul>", f"{more}</ul>")


def _told(story: Story) -> Iterator[tuple[int, Story]]:
    """The run's own story, and that of each team with its number."""
    if story.teams:
        yield 0, story
    yield from story.parts()


def render_timeline(events: Iterable[Event]) -> str:
    """The run as a self-contained HTML page, in light and dark.

    Any prefix of a run, and any record of a run that broke off, gives a page.
    Results and arguments are cut to 4,000 characters, and say so where they are.
    """
    story = Story.of(events)
    css, js = _asset("timeline.css"), _asset("timeline.js")
    slots = {
        "css": css,
        "css_hash": _hash(css),
        "js": js,
        "js_hash": _hash(js),
        "title": escape(one_line(story.question, 80) or "agentpar run"),
        "header": _header(story),
        "answer": _answer(story),
        "legend": _legend(story),
        "gantt": _gantt(story),
        "faults": _faults(story),
        "plan": _plan(story),
        "teams": _teams(story),
        "workers": _workers(story),
        "data": _data(story),
    }
    # One pass over the template alone: what is filled in is never read for slots again.
    return _SLOT.sub(lambda slot: slots[slot[1]], _asset("timeline.html"))


@cache
def _asset(name: str) -> str:
    return resources.files("agentpar").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _safe(text: str) -> str:
    return escape(visible(text))


# --- head -------------------------------------------------------------------------------


def _header(story: Story) -> str:
    note = f'<p class="note">{_safe(story.note)}</p>' if story.note else ""
    error = f'<p class="error">{_safe(story.error)}</p>' if story.error else ""
    totals = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in _totals(story)
    )
    return (
        f'<header><div class="over"><span class="status {story.status}">{story.status}</span>'
        f"<code>{_safe(story.run_id)}</code></div>"
        f"<h1>{_safe(story.question)}</h1>{note}{error}"
        f'<dl class="totals">{totals}</dl></header>'
    )


def _totals(story: Story) -> Iterator[tuple[str, str, str]]:
    yield "Wall time", seconds(story.wall()), "question to end"
    if story.teams:
        choice = story.choice
        taken = f"team {choice.team} by {_safe(choice.select)}" if choice else "none"
        yield "Teams", f"{len(story.teams)}", f"chosen: {taken}"
    if reused := [task.used for _, task in story.all_tasks() if task.used is not None]:
        spared = seconds(sum(used.spared for used in reused))
        yield "Reused", f"{len(reused)}", f"results of others, {spared} spared"
    first = story.first_answer_text()
    if first is not None:
        yield "First words", seconds(first - story.began), "of the answer"
    if story.tool_wall() > 0:
        work, wall = seconds(story.tool_seconds()), seconds(story.tool_wall())
        yield "Tools in parallel", f"{story.speedup():.2f}×", f"{work} of calls in {wall}"
        if not story.teams:
            yield "Planning overlap", seconds(story.overlap()), "tools ran while planning"
    usage = story.usage()
    if usage.calls:
        cached = f", {usage.cached_tokens:,} cached" if usage.cached_tokens else ""
        note = f"{usage.prompt_tokens:,} read{cached}, {usage.completion_tokens:,} written"
        note += ", estimated in part" if usage.estimated else ""
        yield "Tokens", f"{usage.prompt_tokens + usage.completion_tokens:,}", note
    counts: dict[str, int] = {}
    for part, task in story.all_tasks():
        state = part.state(task)
        counts[state] = counts.get(state, 0) + 1
    if counts:
        note = ", ".join(f"{count} {state}" for state, count in counts.items())
        yield "Tasks", f"{sum(counts.values()):,}", note


# --- answer -----------------------------------------------------------------------------


def _answer(story: Story) -> str:
    answer = story.answer
    if answer is None:
        text = story.text()
        if not text:
            return ""
        return (
            '<section aria-labelledby="answer-title"><h2 id="answer-title">Unfinished answer'
            f'</h2><p class="answer">{_safe(text)}</p></section>'
        )
    marked = {answer.text[start:end] for start, end in spans(answer.text, answer.unsupported)}
    absent = [sentence for sentence in answer.unsupported if sentence not in marked]
    note = ""
    if answer.unsupported:
        note = "Underlined: no passage that the run has read carries this."
        if absent:
            items = "".join(f"<li>{_safe(sentence)}</li>" for sentence in absent)
            note = f"No passage that the run has read carries this:<ul>{items}</ul>"
        note = f'<div class="unsupported-note">{note}</div>'
    evidence = "".join(
        _evidence(number, citation, story) for number, citation in enumerate(answer.citations, 1)
    )
    return (
        '<section aria-labelledby="answer-title"><h2 id="answer-title">Answer</h2>'
        f'<p class="answer">{_marked(answer)}</p>{note}'
        + (f'<ol class="evidence" aria-label="Evidence">{evidence}</ol>' if evidence else "")
        + "</section>"
    )


def _marked(answer: Answered) -> str:
    """The answer with its citation marks as links and its unsupported sentences underlined."""
    text = answer.text
    doubtful = set(spans(text, answer.unsupported))
    evidence = {(c.sentence, c.n): number for number, c in enumerate(answer.citations, 1)}
    html, at = [], 0
    for start, end in sentence_spans(text):
        html.append(_safe(text[at:start]))
        sentence = _linked(text[start:end], answer, evidence)
        if (start, end) in doubtful:
            title = "No passage that the run has read carries this"
            sentence = f'<span class="unsupported" title="{title}">{sentence}</span>'
        html.append(sentence)
        at = end
    return "".join(html)


def _linked(sentence: str, answer: Answered, evidence: Mapping[tuple[str, int], int]) -> str:
    """``sentence`` with each mark as a link to its evidence: to what was found for this
    sentence, as another one may cite the same source for something else."""
    html, at, bare = [], 0, unmarked(sentence)
    for mark in MARK.finditer(sentence):
        html.append(_safe(sentence[at : mark.start()]))
        for n in map(int, mark[1].split(",")):
            number = evidence.get((bare, n))
            if number is None:
                html.append(f'<span class="cite unchecked" title="Not checked">{n}</span>')
            else:
                checked = "" if answer.citations[number - 1].supported else " unchecked"
                html.append(f'<a class="cite{checked}" href="#evidence-{number}">{n}</a>')
        at = mark.end()
    html.append(_safe(sentence[at:]))
    return "".join(html)


def _evidence(number: int, citation: Citation, story: Story) -> str:
    url = citation.source
    link = _safe(url)
    if re.match(r"https?://", url):
        link = f'<a href="{link}" rel="noopener noreferrer" target="_blank">{link}</a>'
    body = ""
    if citation.passage:
        before, after = _context(citation, story)
        body = f"<blockquote>{before}<mark>{_safe(citation.passage)}</mark>{after}</blockquote>"
    if not citation.supported:
        body += f'<div class="problem">Not supported: {_safe(citation.problem)}</div>'
    # What is no page has its call for a title and for an address.
    title = f"{_safe(citation.title)} " if citation.title not in ("", url) else ""
    n = f'<span class="n">[{citation.n}]</span>'
    if citation.task_id in story.taken().tasks:
        key = _key(story.choice.team if story.choice else 0, citation.task_id)
        told = "The call that read it"
        n = f'<a class="n" href="#task-{key}" title="{told}">[{citation.n}]</a>'
    return f'<li id="evidence-{number}">{n} {title}<span class="url">{link}</span>{body}</li>'


def _context(citation: Citation, story: Story) -> tuple[str, str]:
    """What stands before and after the passage in the result it was found in."""
    task = story.taken().tasks.get(citation.task_id)
    if task is None or not isinstance(task.outcome, Ok):
        return "", ""
    value = task.outcome.value
    pages = [page for page in pages_of(value) if page.get("url") == citation.source]
    for text in _texts(pages or value):
        start = text.find(citation.passage)
        if start >= 0:
            end = start + len(citation.passage)
            before, after = text[max(0, start - _AROUND) : start], text[end : end + _AROUND]
            return (
                ("…" if start > _AROUND else "") + _safe(before),
                _safe(after) + ("…" if end + _AROUND < len(text) else ""),
            )
    return "", ""


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


# --- lanes ------------------------------------------------------------------------------


class _Scale:
    """Seconds of the run, or of one of its teams, to percent of the lanes' width.

    ``later`` is how long after the run the team began: its own times count from there.
    """

    def __init__(self, story: Story, later: float = 0.0) -> None:
        self.began = story.began - later
        self.length = max(story.wall(), 1e-3)

    def x(self, at: float) -> float:
        return round(max(0.0, min(100.0, (at - self.began) / self.length * 100)), 3)

    def rect(self, name: str, span: Span, y: int, height: int, least: float = 0.0) -> str:
        x = min(self.x(span[0]), 100 - least)
        width = max(least, round(self.x(span[1]) - x, 3))
        corner = ' rx="3"' if height > 4 else ""
        return f'<rect class="{name}" x="{x}%" y="{y}" width="{width}%" height="{height}"{corner}/>'

    def label(self, span: Span, text: str) -> str:
        """Text behind the bar, or before it, or in its end where it fills the width."""
        start, end = self.x(span[0]), self.x(span[1])
        if end <= 88:
            return f'<text x="{end}%" dx="6" y="17">{text}</text>'
        if start >= 12:
            return f'<text x="{start}%" dx="-6" y="17" text-anchor="end">{text}</text>'
        return f'<text class="within" x="{end}%" dx="-6" y="17" text-anchor="end">{text}</text>'

    def ticks(self) -> Iterator[tuple[float, str]]:
        """At most eight round numbers of seconds, as percent and label."""
        rough = self.length / 8
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        digits = max(0, -math.floor(math.log10(step)))
        for number in range(int(self.length / step) + 1):
            yield self.x(self.began + number * step), f"{number * step:.{digits}f} s"


def _key(team: int, id: int) -> str:
    """What a task is called on the page: its number, behind that of its team where there are
    several."""
    return f"{team}.{id}" if team else f"{id}"


def _gantt(story: Story) -> str:
    rows = [_grid(story, _Scale(story))]
    if story.teams:
        rows += _resumed_rows(story)
    for team, part in story.parts():
        scale = _Scale(story, story.teams[team].began if team else 0.0)
        if team:
            rows.append(_team_row(story.teams[team], story))
        rows += _resumed_rows(part)
        rows.append(_lanes(team, part, scale))
    return "".join(rows)


def _resumed_rows(story: Story) -> Iterator[str]:
    """What had changed whenever the run was carried on."""
    for event in story.resumed:
        told = _safe("; ".join(event.changes)) or "nothing has changed, in the end"
        at = seconds(event.at - story.began)
        yield f'<div class="row why resumed"><span>↷ carried on at {at}: {told}</span></div>'


def _team_row(team: TeamStory, story: Story) -> str:
    """What stands above a team's lanes."""
    taken = story.choice is not None and story.choice.team == team.number
    status = team.end.status if team.end is not None else "running"
    said = ""
    if team.end is not None:
        said = team.end.conclusion if status == "answered" else team.end.error
    mark = '<span class="taken">chosen</span>' if taken else ""
    how = f'<span class="how">{_safe(one_line(team.how, 200))}</span>' if team.how else ""
    return (
        f'<div class="row team{" chosen" if taken else ""}" id="team-{team.number}"><span>'
        f"<b>Team {team.number}</b>{mark}"
        f'<span class="status {status}">{status}</span>{_safe(one_line(said, 160))}{how}'
        "</span></div>"
    )


def _lanes(team: int, story: Story, scale: _Scale) -> str:
    """Planner, tasks and joiner of a run, or of one team, round by round."""
    critical = set(story.critical_path())
    tasks_of: dict[int, list[TaskStory]] = {}
    for task in story.tasks.values():
        tasks_of.setdefault(task.round, []).append(task)
    parts: list[str] = []
    for number in sorted({*story.rounds, *tasks_of}):
        round_ = story.rounds.get(number, RoundStory(number))
        tasks = tasks_of.get(number, [])
        parts.append(_planner_lane(round_, tasks, story, scale))
        for task in tasks:
            parts.append(_task_row(team, task, story, scale, task.task.id in critical))
            parts.extend(_worker_lanes(task.group, scale))
        parts.extend(_worker_lanes(round_.group, scale))
        parts.append(_joiner_lane(round_, story, scale))
        if round_.replan:
            parts.append(f'<div class="row why"><span>↻ {_safe(round_.replan)}</span></div>')
    return "".join(parts)


def _grid(story: Story, scale: _Scale) -> str:
    ticks = list(scale.ticks())
    bands = "".join(
        scale.rect("band", span, 0, 1).replace('height="1"', 'height="100%"')
        for round_ in story.rounds.values()
        if (span := round_.plan_span(story.now))
    )
    lines = "".join(f'<line x1="{x}%" x2="{x}%" y1="0" y2="100%"/>' for x, _ in ticks)
    for team, part in _told(story):
        later = story.teams[team].began if team else 0.0
        for event in part.resumed:
            x = scale.x(event.at + later)
            lines += f'<line class="resumed" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>'
    labels = "".join(
        f'<text x="{x}%" y="14" text-anchor="{"start" if x == 0 else "end" if x > 97 else "middle"}'
        f'">{text}</text>'
        for x, text in ticks
    )
    return (
        f'<div class="grid" aria-hidden="true"><svg>{bands}{lines}</svg></div>'
        f'<div class="row axis" aria-hidden="true"><span></span><svg>{labels}</svg></div>'
    )


def _planner_lane(round_: RoundStory, tasks: list[TaskStory], story: Story, scale: _Scale) -> str:
    span = round_.plan_span(story.now)
    if span is None:
        return ""
    ticks = "".join(
        f'<rect class="plan-tick" x="{scale.x(task.planned)}%" y="6" width="2" height="14">'
        f"<title>task {task.task.label}, {seconds(task.planned - story.began)}</title></rect>"
        for task in tasks
    )
    bar = scale.rect("plan-bar", span, 6, 14, 0.25)
    return _lane(f"Plan {round_.number}", bar + ticks, span, round_.plan_error, scale)


def _joiner_lane(round_: RoundStory, story: Story, scale: _Scale) -> str:
    span = round_.join_span(story.now)
    if span is None:
        return ""
    first = round_.join_first_text
    bars = scale.rect("join-wait", span, 6, 14, 0.25)
    if first is not None:
        bars += scale.rect("join-bar", (first, span[1]), 6, 14, 0.25)
    return _lane(f"Join {round_.number}", bars, span, round_.join_error, scale)


def _worker_lanes(group: GroupStory | None, scale: _Scale) -> Iterator[str]:
    """A lane for each of several workers: when it wrote, and on hovering what."""
    for lane in group.lanes.values() if group else ():
        if lane.began is None or lane.ended is None:
            continue
        span = (lane.began, lane.ended)
        bar = scale.rect("worker-bar", span, 9, 8, 0.25)
        title = f"<title>{_safe(one_line(lane.text, 400))}</title>"
        label = scale.label(span, f"{seconds(span[1] - span[0])}")
        yield (
            f'<div class="row lane worker"><span class="name">{_safe(lane.worker)}</span>'
            f"<svg><g>{title}{bar}</g>{label}</svg></div>"
        )


def _lane(name: str, bars: str, span: Span, error: str, scale: _Scale) -> str:
    broken = " broken failed" if error else ""
    note = f"{seconds(span[1] - span[0])}{' ✕' if error else ''}"
    row = (
        f'<div class="row lane{broken}"><span class="name">{name}</span>'
        f"<svg>{bars}{scale.label(span, note)}</svg></div>"
    )
    return row + (f'<div class="row why"><span>✕ {_safe(error)}</span></div>' if error else "")


def _task_row(team: int, task: TaskStory, story: Story, scale: _Scale, critical: bool) -> str:
    state, key = story.state(task), _key(team, task.task.id)
    span = task.span(story.now)
    until = task.ended if task.ended is not None else story.now
    wait = ""
    if span is None and isinstance(task.outcome, Failed):  # refused before its call: it only waited
        shown, note = (until, until), str(task.outcome.kind)
        wait = scale.rect("wait", (task.planned, until), 12, 2)
    elif span is None:  # it never ran
        shown, note = (task.planned, until), str(state)
    else:
        shown, note = span, seconds(span[1] - span[0]) + ("" if state == "ok" else f" {state}")
        if task.used is not None:
            note += f", from {_whose(task.used, story)}"
    for event in task.throttled[-1:]:
        note += f", {_safe(_asks_for_less(event))}"
    if span is not None and span[0] > task.planned:
        wait = scale.rect("wait", (task.planned, span[0]), 12, 2)
    args = one_line(arguments(task.task), 90)
    kind = (" critical" if critical else "") + (" reused" if task.used is not None else "")
    return (
        f'<div class="row task {state}{kind}" id="task-{key}" '
        f'data-task="{key}"><button class="name" type="button" '
        f'title="{escape(one_line(call(task.task), 400))}">'
        f'<span class="id">{task.task.label}</span>'
        f'<b>{escape(one_line(task.task.tool, 40))}</b><span class="args">{escape(args)}</span>'
        f'</button><svg aria-hidden="true">{wait}{scale.rect("bar", shown, 7, 12, 0.3)}'
        f"{''.join(_throttles(task, story, scale))}"
        f"{scale.label(shown, note)}</svg></div>"
    )


def _throttles(task: TaskStory, story: Story, scale: _Scale) -> Iterator[str]:
    """Where a host told the task's call that it was too much, and for how long."""
    for event in task.throttled:
        if event.retry_after is not None:
            until = min(event.at + event.retry_after, story.now)
            yield scale.rect("peace", (event.at, until), 22, 2)
        yield f'<rect class="throttled" x="{scale.x(event.at)}%" y="4" width="2" height="19"/>'


def _asks_for_less(event: HostThrottled) -> str:
    peace = "" if event.retry_after is None else f" for {seconds(event.retry_after)}"
    return f"{one_line(event.host, 60)} asks for less{peace}"


def _whose(used: EntryUsed, story: Story) -> str:
    """Who has found what settled a task of ``story``."""
    return _safe(one_line(finder(used.producer[0], used.team, story.run_id), 60))


# --- below the lanes --------------------------------------------------------------------


def _teams(story: Story) -> str:
    """What each team came to, how they voted, and why one was chosen."""
    if not story.teams:
        return ""
    why, votes = "", ""
    if (choice := story.choice) is not None:
        why = f"<p>Team {choice.team} was chosen ({_safe(choice.select)}): {_safe(choice.why)}.</p>"
        votes = "".join(
            f"<li><b>{len(teams)}</b> {_safe(said)} <small>team {', '.join(map(str, teams))}"
            "</small></li>"
            for said, teams in choice.votes.items()
        )
    items = "".join(
        f'<li><a href="#team-{number}">Team {number}</a> <code>{_safe(team.run_id)}</code> '
        f"{_safe(_came_to(team))}</li>"
        for number, team in sorted(story.teams.items())
    )
    ballot = f'<ul class="votes">{votes}</ul>' if votes else ""
    return (
        f'<section class="teams"><h2>Teams</h2>{why}{ballot}<ul class="each">{items}</ul></section>'
    )


def _came_to(team: TeamStory) -> str:
    if team.end is None:
        return "has not ended"
    said = team.end.conclusion if team.end.status == "answered" else team.end.error
    return f"{team.end.status}: {one_line(said, 300)}" if said else team.end.status


def _workers(story: Story) -> str:
    """What workers wrote, group by group."""
    parts = []
    for where, group in _groups(story):
        how = "one KV cache" if group.backend == "rows" else "one log"
        notes = "; ".join(filter(None, (group.why, *group.faults)))
        why = f": {_safe(notes)}" if notes else ""
        texts = "".join(
            f"<dt>{_safe(lane.worker)}</dt><dd>{_safe(_cut(lane.text.strip()))}</dd>"
            for lane in group.lanes.values()
        )
        parts.append(
            f"<details><summary>{where}: {len(group.lanes)} workers, {how}{why}</summary>"
            f'<dl class="workers">{texts}</dl></details>'
        )
    return f"<section><h2>Workers</h2>{''.join(parts)}</section>" if parts else ""


def _groups(story: Story) -> Iterator[tuple[str, GroupStory]]:
    for team, part in story.parts():
        for where, group in part.groups():
            yield f"Team {team}: {where}" if team else where, group


def _faults(story: Story) -> str:
    faults = [(team, fault) for team, part in story.parts() for fault in part.faults]
    if not faults:
        return ""
    items = "".join(
        f"<li>{f'Team {team}: ' if team else ''}{_safe(fault.message)}<br>"
        f"<code>{_safe(fault.line)}</code></li>"
        for team, fault in faults
    )
    return (
        '<section aria-labelledby="faults-title"><h2 id="faults-title">Plan lines that could not '
        f'be used</h2><ul class="faults">{items}</ul></section>'
    )


def _plan(story: Story) -> str:
    """The plan's graph; of several teams, that of the one that was chosen."""
    title = "Plan"
    if story.choice is not None:
        title, story = f"Plan of team {story.choice.team}", story.taken()
    if not story.tasks:
        return ""
    if len(story.tasks) > _DRAWN:
        body = f"<p>{len(story.tasks):,} tasks: graphs are drawn up to {_DRAWN}.</p>"
    else:
        tasks = (task.task for task in story.tasks.values())
        body = f'<div class="scroll">{svg(tasks, story.outcomes(), embedded=True)}</div>'
    return f"<section><details open><summary>{title}</summary>{body}</details></section>"


# --- details ----------------------------------------------------------------------------


def _data(story: Story) -> str:
    """What the side panel shows, as JSON that is inert inside a script element."""
    team_of = {team.run_id: number for number, team in story.teams.items()}
    data: dict[str, dict[str, Any]] = {}
    for team, part in story.parts():
        users: dict[int, list[int]] = {}
        for task in part.tasks.values():
            for need in task.task.needs:
                users.setdefault(need, []).append(task.task.id)
        for id, task in part.tasks.items():
            details = data[_key(team, id)] = _details(task, users.get(id, []), part)
            if team:
                for edge in ("needs", "users"):
                    details[edge] = [_key(team, other) for other in details[edge]]
            if task.used is not None:
                run, produced = task.used.producer
                details["whose"] = f"from {_whose(task.used, part)}, task {produced}"
                details["from"] = _key(team_of[run], produced) if run in team_of else ""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _details(task: TaskStory, users: list[int], story: Story) -> dict[str, Any]:
    result = error = ""
    match task.outcome:
        case Ok(value):
            result = _pretty(value)
        case Failed(text, kind):
            error = _cut(f"{visible(text)} ({kind})")
        case Skipped(because):
            error = f"task {because}, which it needs, has no value"
    times = [f"planned {seconds(task.planned - story.began)}"]
    if task.started is not None:
        times.append(f"started {seconds(task.started - story.began)}")
    if task.ended is not None:
        times.append(f"ended {seconds(task.ended - story.began)}")
    return {
        "tool": one_line(task.task.tool, 80),
        "state": story.state(task),
        "when": " · ".join(time.replace(" ", "\u00a0") for time in times),
        "thought": _cut(visible(task.task.thought)),
        "call": _cut(visible(call(task.task))),
        "filled": _pretty(task.filled) if task.filled and task.task.needs else "",
        "result": result,
        "error": error,
        "hosts": "\n".join(
            f"{seconds(event.at - story.began)}: {visible(_asks_for_less(event))}"
            for event in task.throttled
        ),
        "needs": list(task.task.needs),
        "users": users,
    }


def _pretty(value: Any) -> str:
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, indent=2, default=str)
    )
    return _cut(visible(text))


def _cut(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}\n… {len(text) - _SHOWN:,} characters more in the run's record"
