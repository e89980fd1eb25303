"""A realistic recorded run for the views: two rounds, a failed page, a skipped call.

Its third task reads two pages, so that the number of a source is not that of its task.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentpar.events import (
    Answered,
    Citation,
    EntryUsed,
    Event,
    HostThrottled,
    JoinStarted,
    JoinText,
    LeaseAwaited,
    ModelUsed,
    PlanEnded,
    PlanFault,
    PlanStarted,
    PlanText,
    ReplanAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    Source,
    TaskDone,
    TaskPlanned,
    TaskStarted,
    TeamChosen,
    TeamEnded,
    TeamStarted,
    Usage,
)
from agentpar.memory.evidence import check
from agentpar.permissions import Permissions
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task
from agentpar.teams import woven

CHILE = (
    "Chile is a country in western South America.\n"
    "Chile had a population of 19,629,590 in 2023.\nIts capital is Santiago."
)
CENSUS = "The census of 2023.\nChile: 19,629,590 inhabitants.\nThe next one is in 2033."
PERU = (
    "Peru is a country in western South America.\n"
    "The population of Peru is 34,352,719 people as of 2023.\nIts capital is Lima."
)
TASKS = {
    1: Task.of(1, "web_search", "Find a page on each country.", query="Chile population"),
    2: Task.of(2, "web_search", query="Peru population"),
    3: Task.of(3, "web_fetch", url=Ref(1, (0, "url"))),
    4: Task.of(4, "web_fetch", url=Ref(2, (0, "url"))),
    5: Task.of(5, "calc", expression="a - b", a=Ref(4, ("population",)), b=Ref(3, ("population",))),
    6: Task.of(6, "web_fetch", "The first page on Peru was gone.", url=Ref(2, (1, "url"))),
    7: Task.of(7, "calc", expression="a - b", a=Ref(6, ("population",)), b=Ref(3, ("population",))),
}
SEARCHES = {
    1: [{"title": "Chile", "url": "http://atlas.example/chile"}],
    2: [
        {"title": "Peru", "url": "http://atlas.example/peru"},
        {"title": "Peru: people", "url": "http://almanac.example/peru"},
    ],
}
PAGES = {
    3: {"title": "Chile", "url": "http://atlas.example/chile", "text": CHILE,
        "population": 19629590,
        "others": [{"title": "Census", "url": "http://census.example/2023", "text": CENSUS}]},
    6: {"title": "Peru: people", "url": "http://almanac.example/peru", "text": PERU,
        "population": 34352719},
}  # fmt: skip
ANSWER = (
    "Peru has more people than Chile. Peru has 34,352,719 inhabitants [5], "
    "Chile 19,629,590 [3, 4], so Peru has 14,723,129 more [6]. "
    "Most of them live on the coast."
)
SOURCES = {
    source.n: source
    for source in (
        Source(1, 1, 'web_search("Chile population")', "Search", "http://atlas.example/chile"),
        Source(2, 2, 'web_search("Peru population")', "Search", "http://atlas.example/peru"),
        Source(3, 3, "http://atlas.example/chile", "Chile", CHILE),
        Source(4, 3, "http://census.example/2023", "Census", CENSUS),
        Source(5, 6, "http://almanac.example/peru", "Peru: people", PERU),
        Source(6, 7, "calc(a - b, 34352719, 19629590)", "calc", "14723129"),
    )
}
CHECKED = check(ANSWER, SOURCES)
NOTE = "mini-web: simulated pages on this machine, each reply delayed 80 ms"


def events() -> list[Event]:
    """The run: a question, a plan whose fourth call fails, a second plan, a cited answer."""
    return sorted([*_first_round(), *_second_round()], key=lambda event: event.at)


def _first_round() -> list[Event]:
    lines = (
        ("Thought: Find a page on each country.\n", None, 0.3),
        ('1. web_search(query="Chile population")\n', 1, 0.62),
        ('2. web_search(query="Peru population")\n', 2, 0.95),
        ("3. web_fetch(url=$1[0].url)\n", 3, 1.24),
        ("4. web_fetch(url=$2[0].url)\n", 4, 1.5),
        ("5. calc(expression=\"a - b\", a=$4.population, b=$3.population)\n", 5, 2.05),
        ("6. serach(query=\"South America\")\n", None, 2.3),
        ("join()", None, 2.45),
    )  # fmt: skip
    run: list[Event] = [
        RunStarted("20261103-141502-k3f9", "Which has more people, Chile or Peru?", NOTE),
        PlanStarted(1, 0.02),
    ]
    for text, task, at in lines:
        run.append(PlanText(1, text, at))
        if task is not None:
            run.append(TaskPlanned(1, TASKS[task], at))
    message = "tool 'serach' is not known; the agent has 'web_search', 'web_fetch', 'calc'"
    return [
        *run,
        PlanFault(1, message, line='6. serach(query="South America")', at=2.3),
        PlanEnded(1, 2.45),
        ModelUsed("plan", 1, Usage(612, 118, 512, 1), first_token=0.28, seconds=2.43, at=2.45),
        *_call(1, 0.62, 1.1, Ok(SEARCHES[1]), query="Chile population"),
        *_call(2, 0.95, 1.61, Ok(SEARCHES[2]), query="Peru population"),
        *_call(3, 1.24, 2.3, Ok(PAGES[3]), url="http://atlas.example/chile"),
        *_call(
            4, 1.61, 3.2, Failed("HTTP 404 for http://atlas.example/peru"),
            url="http://atlas.example/peru",
        ),
        TaskDone(5, Skipped(4), 3.2),
        JoinStarted(1, 3.21),
        JoinText(1, "Replan: the page on Peru is gone, ", 3.6),
        JoinText(1, "read the other one", 3.9),
        ReplanAsked(1, "the page on Peru is gone, read the other one", 3.95),
        ModelUsed("join", 1, Usage(840, 14, 0, 1), first_token=0.39, seconds=0.74, at=3.95),
    ]  # fmt: skip


def _second_round() -> list[Event]:
    pieces = ANSWER.split(" ")
    return [
        PlanStarted(2, 3.96),
        PlanText(2, "Thought: The first page on Peru was gone.\n", 4.2),
        PlanText(2, "6. web_fetch(url=$2[1].url)\n", 4.5),
        TaskPlanned(2, TASKS[6], 4.5),
        PlanText(2, '7. calc(expression="a - b", a=$6.population, b=$3.population)\n', 5.0),
        TaskPlanned(2, TASKS[7], 5.0),
        PlanText(2, "join()", 5.2),
        PlanEnded(2, 5.2),
        ModelUsed("plan", 2, Usage(905, 52, 600, 1), first_token=0.24, seconds=1.24, at=5.2),
        *_call(6, 4.5, 5.6, Ok(PAGES[6]), url="http://almanac.example/peru"),
        *_call(7, 5.6, 5.61, Ok(14723129), expression="a - b", a=34352719, b=19629590),
        JoinStarted(2, 5.62),
        *(
            JoinText(2, piece + " ", 6.0 + 1.6 * number / len(pieces))
            for number, piece in enumerate(pieces)
        ),
        Answered(2, ANSWER, CHECKED.citations, CHECKED.unsupported, at=7.65),
        ModelUsed("join", 2, Usage(1204, 61, 840, 1), first_token=0.38, seconds=2.0, at=7.65),
        RunFinished("answered", at=7.66),
    ]  # fmt: skip


def _call(id: int, start: float, end: float, outcome: Outcome, **args: object) -> list[Event]:
    return [TaskStarted(id, args, start), TaskDone(id, outcome, end)]


def teams_events() -> list[Event]:
    """Three teams: team 2 waits for a call of team 1 and uses what it finds, team 3 finds it
    there; two come to one answer, and team 3 was not done."""
    own: list[Event] = [RunStarted("run", "Which has more people, Chile or Peru?")]
    hows = ("", "Take the parts from the last to the first; seed 8", "Begin with what decides it")
    own += [TeamStarted(n, f"run.{n}", hows[n - 1], 0.01 * n) for n in (1, 2, 3)]
    own += [
        TeamEnded(1, "answered", "Peru [2]", at=3.3),
        TeamEnded(2, "answered", "Peru", at=3.6),
        TeamEnded(3, "failed", error="the server is gone", at=3.0),
        TeamChosen(1, "vote", "2 of 2 came to it", {"Peru": (1, 2)}, 3.6),
        Answered(1, "Peru has 34 people [2].\nAnswer: Peru [2]", at=3.6,
                 citations=(Citation(2, "Peru has 34 people.", "people(Peru)", 2, "people(Peru)",
                                     "34"),)),
        RunFinished("answered", at=3.6),
    ]  # fmt: skip
    return woven(own, {team: list(team_events(team)) for team in (1, 2, 3)})


def team_events(team: int) -> Iterator[Event]:
    """What one of the teams of `teams_events` does; times count from its own beginning."""
    countries = ("Chile", "Peru") if team == 1 else ("Peru", "Chile")
    yield RunStarted(f"run.{team}", "Which has more people, Chile or Peru?")
    yield PlanStarted(1, 0.01)
    for id, country in enumerate(countries, 1):
        yield TaskPlanned(1, Task.of(id, "people", country=country), 0.2 * id + 0.1 * team)
    yield TaskPlanned(1, Task.of(3, "larger", a=Ref(1), b=Ref(2)), 0.6 + 0.1 * team)
    yield PlanEnded(1, 0.7 + 0.1 * team)
    ends = {1: (1.9, 1.4), 2: (1.4, 2.2), 3: (1.45, 2.4)}[team]
    for id, country in enumerate(countries, 1):
        start = 1.44 if (team, id) == (3, 1) else 0.2 * id + 0.1 * team
        yield TaskStarted(id, {"country": country}, start)
        if country == "Peru" and team > 1:
            if team == 2:
                yield LeaseAwaited(id, ("run.1", 2), 1, start + 0.01)
            yield EntryUsed(id, "e1", ("run.1", 2), 1, 0.9, ends[id - 1])
        via = "bank" if country == "Peru" and team > 1 else ""
        yield TaskDone(id, Ok(34 if country == "Peru" else 19), ends[id - 1], via=via)
    if team == 3:
        yield RunFinished("failed", "the server is gone", 2.9)
        return
    yield TaskStarted(3, {"a": 1, "b": 2}, 2.3)
    yield TaskDone(3, Ok("Peru"), 2.5)
    yield JoinStarted(1, 2.5)
    yield JoinText(1, "Peru has 34 people [2].\nAnswer: Peru [2]", 2.8)
    yield ModelUsed("join", 1, Usage(400, 20, calls=1), 0.3, 0.7, 3.2)
    yield Answered(1, "Peru has 34 people [2].\nAnswer: Peru [2]", at=3.2)
    yield RunFinished("answered", at=3.25)


HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    "<!--<script> [bold red]{{js}}{{answer}}[/] \x1b]0;pwned\x07\x1b[2J "
    "\u202egnp.exe\u2066 \ud800 &lt;b&gt; javascript:alert(1) \x00 $1 `;` %% \"quote\" 'q' \\"
)


def hostile_events() -> list[Event]:
    """A run in which every text that a model or a page can write is `HOSTILE`."""
    task = Task.of(1, "web_fetch", HOSTILE, url=HOSTILE, deep={HOSTILE: [Ref(9), HOSTILE]})
    return [
        RunStarted(HOSTILE, HOSTILE, HOSTILE),
        PlanStarted(1, 0.0),
        PlanText(1, HOSTILE, 0.1),
        TaskPlanned(1, task, 0.1),
        TaskPlanned(1, Task.of(2, HOSTILE, url="x"), 0.2),
        PlanFault(1, HOSTILE, line=HOSTILE, task_id=3, at=0.2),
        PlanEnded(1, 0.3),
        TaskStarted(1, {"url": HOSTILE}, 0.1),
        TaskDone(1, Ok({"text": HOSTILE * 3, HOSTILE: HOSTILE}), 0.5),
        TaskStarted(2, {"url": "x"}, 0.3),
        TaskDone(2, Failed(HOSTILE), 0.6),
        JoinStarted(1, 0.6),
        JoinText(1, HOSTILE, 0.7),
        Answered(
            1,
            f"Cited [1]\n{HOSTILE}",
            citations=(
                Citation(1, "Cited", f"javascript:alert(1)//{HOSTILE}", 1, HOSTILE, HOSTILE),
                Citation(2, HOSTILE, HOSTILE, 0, HOSTILE, supported=False, problem=HOSTILE),
            ),
            unsupported=(HOSTILE,),
            at=0.9,
        ),
        RunFinished("answered", HOSTILE, 1.0),
    ]


def hostile_teams() -> list[Event]:
    """Two teams of the same kind, and all that is said of them."""
    team = [event for event in hostile_events() if not isinstance(event, Answered)]
    used = EntryUsed(1, HOSTILE, (HOSTILE, 1), 0, 0.1, 0.4)
    own: list[Event] = [
        RunStarted(HOSTILE, HOSTILE, HOSTILE),
        TeamStarted(1, HOSTILE, HOSTILE),
        TeamStarted(2, "x", HOSTILE),
        TeamEnded(1, "answered", HOSTILE, at=1.0),
        TeamEnded(2, "failed", error=HOSTILE, at=1.0),
        TeamChosen(1, HOSTILE, HOSTILE, {HOSTILE: (1, 2)}, 1.0),
        *(event for event in hostile_events() if isinstance(event, Answered)),
        RunFinished("answered", HOSTILE, 1.0),
    ]
    return woven(own, {1: team, 2: [*team[:-1], used, team[-1]]})


def big_events(count: int = 1000) -> list[Event]:
    """A run of ``count`` tasks, every tenth needing the two before it."""
    run: list[Event] = [RunStarted("big", "A thousand pages?"), PlanStarted(1, 0.0)]
    for id in range(1, count + 1):
        start = 0.01 * id
        args = {"a": Ref(id - 1), "b": Ref(id - 2)} if id % 10 == 0 else {"query": f"page {id}"}
        run.append(TaskPlanned(1, Task.of(id, "web_search", **args), start))
        run.append(TaskStarted(id, {"query": f"page {id}"}, start + 0.3 * (id % 10 == 0)))
        run.append(TaskDone(id, Ok({"text": f"page {id} " * 300}), start + 0.4 + 0.01 * (id % 37)))
    end = 0.01 * count + 1
    return sorted(
        [
            *run,
            PlanEnded(1, 0.01 * count),
            JoinStarted(1, end),
            JoinText(1, "All ", end + 0.1),
            Answered(1, "All read.", at=end + 1),
            RunFinished("answered", at=end + 1),
        ],
        key=lambda event: event.at,
    )


CHANGES = ("tool 'pay' is new", "the permissions are others: the stricter of both hold")


def carried_on_events(name: str = "atlas.example") -> list[Event]:
    """The run, which hosts ask for less twice, and which breaks off and is carried on at 2.2 s."""
    told: list[Event] = [
        HostThrottled(4, name, 1.5, at=1.7),
        HostThrottled(6, name, at=4.6),
        RunResumed(CHANGES, Permissions(), at=2.2),
    ]
    return sorted([*events(), *told], key=lambda event: event.at)
