"""Drawing schedules from chance: equal numbers give equal schedules.

It must never know what becomes of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from agentpar.events import Usage
from agentpar.executor.schedules import (
    FAULTS,
    LIST,
    READ,
    SINKS,
    TOOLS,
    Behaviour,
    Crash,
    JoinEnd,
    Line,
    PlanEnd,
    Round,
    Schedule,
    Verdict,
    names_of,
)
from agentpar.permissions import Rule
from agentpar.plan import EACH, Pick, Ref, Task, is_special, needs
from agentpar.policy import Limits, Policy

Chance = Callable[[str], Random]
"""The source of chance for one dimension of schedules, by its name."""

_STEP = 100  # latencies are hundredths of a second, so that ties are common


def seeded(seed: int) -> Chance:
    """Each dimension draws from a stream of its own: a new one changes none of the others."""
    return lambda dimension: Random(f"{seed} {dimension}")


def drawn(seed: int, chance: Chance | None = None) -> Schedule:
    """The schedule with this number. Equal seeds give equal schedules."""
    chance = chance or seeded(seed)
    limits = _limits(chance("limits"))
    surgery = chance("surgery")
    if limits.max_replans and surgery.random() < 0.3:
        limits = replace(limits, replan_early=True)
    rounds = _rounds(chance("plan"), limits, chance("rounds"))
    rounds = _woven(chance("dataflow"), rounds)
    rounds = _mended(surgery, rounds, limits.replan_early)
    tasks = [line.task for one in rounds for line in one.lines if line.task is not None]
    policies = _policies(chance("policy"))
    timeout = _timeout(chance("timeout"))
    cancels = _cancels(chance("cancel"))
    calls = _calls(chance("latency"), chance("fault"), tasks)
    hangs = any(b.fault == "hangs" for behaviours in calls.values() for b in behaviours)
    if hangs and timeout is None and not cancels:
        timeout = 2.005  # else the run waits for ever, as it should
    rules = _rules(chance("rules"))
    crashes = _crashes(chance("crash"), len(tasks))
    if crashes:
        rounds = _written_anew(chance("anew"), rounds)
        crashes = _with_other_rules(chance("other rules"), crashes)
    asking = [*rules, *(rule for crash in crashes for rule in crash.rules or ())]
    return Schedule(
        seed,
        rounds,
        calls,
        _verdicts(chance("approval"), tasks, asking),
        limits,
        policies,
        timeout,
        _kept(chance("cache"), tasks, policies),
        cancels,
        _drops(chance("drop"), tasks),
        rules,
        crashes,
        _refusals(chance("host"), tasks),
        _batches(chance("batch")),
    )


def _limits(chance: Random) -> Limits:
    tokens = chance.choice((None, None, None, None, None, 40, 100, 400))
    return Limits(
        max_tasks=chance.choice((1000, 1000, 1000, 4)),
        max_replans=chance.choice((0, 1, 2)),
        concurrency=chance.choice((1, 2, 3, 8, 64)),
        max_steps=chance.choice((None, None, None, None, 0, 2, 5, 9)),
        max_cost_usd=chance.choice((None, None, None, None, 0.02, 0.1)),
        deadline=chance.choice((None, None, None, None, 0.605, 1.505, 4.005)),
        per_host=chance.choice((None, 1, 2)),
        host_rate=chance.choice((None, None, 2.0, 10.0)),
        max_tokens=tokens,
        plan_tokens=0 if tokens is None else 30,
        answer_tokens=0 if tokens is None else 20,
    )


def _policies(chance: Random) -> dict[str, Policy]:
    """Plain in half of the schedules. The hosts and locks of tools are of every kind."""
    plain = chance.random() < 0.5
    return {name: _policy(chance, name, plain) for name in TOOLS}


def _policy(chance: Random, name: str, plain: bool) -> Policy:
    host = "url" if name == "fetch" else ""
    if plain:
        return Policy(host=host)
    return Policy(
        timeout=chance.choice((None, None, 0.305)),
        retries=chance.choice((0, 0, 1, 3)),
        backoff=chance.choice((0.0, 0.05, 0.5)),
        idempotent=chance.choice((None, None, True, False)),
        lock=chance.choice(("", "", "one", "two")),
        on_error=chance.choices(("skip", "keep", "fail"), (6, 3, 1))[0],
        cache=chance.choice((None, None, 60.0)),
        concurrency=chance.choice((None, None, 1, 2)),
        rate=chance.choice((None, None, 3.0, 20.0)),
        hedge=chance.random() < 0.3,
        cost=chance.choice((0.0, 0.01)),
        host=host,
    )


def _kept(chance: Random, tasks: list[Task], policies: Mapping[str, Policy]) -> frozenset[int]:
    """Of calls whose arguments are known beforehand."""
    plain = [task for task in tasks if not task.needs]
    cached = [
        task.args["me"]
        for task in plain
        if task.tool not in SINKS
        and policies[task.tool].cache is not None
        and policies[task.tool].idempotent is not False
    ]
    return frozenset(id for id in cached if chance.random() < 0.3)


def _drops(chance: Random, tasks: list[Task]) -> tuple[tuple[float, int], ...]:
    if not tasks or chance.random() < 0.9:
        return ()
    some = chance.sample(tasks, min(len(tasks), chance.randint(1, 3)))
    return tuple((chance.randint(0, 150) / _STEP, task.id) for task in some)


def _timeout(chance: Random) -> float | None:
    """Between two hundredths: no call ends at the very instant at which its time is over."""
    return None if chance.random() < 0.3 else chance.randint(20, 400) / _STEP + 0.005


def _cancels(chance: Random) -> tuple[float, ...]:
    """Most runs are left alone; an impatient caller cancels again."""
    if chance.random() < 0.85:
        return ()
    first = chance.randint(0, 300) / _STEP
    return (first, first + chance.randint(0, 50) / _STEP) if chance.random() < 0.3 else (first,)


def _rounds(plan: Random, limits: Limits, ends: Random) -> tuple[Round, ...]:
    """As many as the joiners ask for; where failures ask as well, as many as there may be."""
    rounds: list[Round] = []
    known: list[int] = []
    while True:
        lines = tuple(_lines(plan, known))
        plan_end: PlanEnd = ends.choices(("ends", "raises", "says nothing"), (94, 4, 2))[0]
        join_end: JoinEnd = ends.choices(
            ("answers", "replans", "raises", "says nothing"), (76, 20, 3, 1)
        )[0]
        asked = ends.choice((0, 0, 60))
        rounds.append(
            Round(
                lines,
                plan_end,
                join_end,
                ends.randint(0, 20) / _STEP,
                Usage(asked, ends.randint(0, 30), calls=1),
                Usage(asked, ends.randint(0, 20), calls=1),
            )
        )
        more = join_end == "replans" or limits.replan_early
        if not more or len(rounds) > limits.max_replans:
            return tuple(rounds)


def _lines(chance: Random, known: list[int]) -> Iterator[Line]:
    """One plan: a chain, a fan or anything between; ``known`` grows by its numbers."""
    pace = chance.choice((0, 0, 3, 10))
    most = chance.choice((0, 1, 2, 3))  # needs of a call
    near = chance.choice((1, 3, 100))  # how far back they reach
    risky = chance.random() < 0.25
    twins = chance.choice((0.1, 0.1, 0.5))
    alone: list[Task] = []  # that have no needs: what a twin can be of
    tools = READ if chance.random() < 0.7 else (chance.choice(READ),)
    for _ in range(chance.choices((0, 1, 3, 6, 9, 14, 45), (3, 3, 4, 4, 4, 4, 1))[0]):
        id = (known[-1] if known else 0) + chance.choice((1, 1, 1, 1, 3))
        gap = chance.randint(0, pace) / _STEP
        tool = SINKS[0] if risky and chance.random() < 0.3 else chance.choice(tools)
        args: dict[str, Any] = {"me": id}
        if tool == "fetch":
            args["url"] = f"http://{chance.choice('ab')}.example/{id}"
        for place in range(chance.randint(0, most) if known else 0):
            args["abc"[place]] = _reference(chance, known[-near:], id)
        task: Task | None = Task(id, tool, args, needs(args))
        kind = chance.random()
        if kind < 0.04:
            task = None
        elif kind < 0.04 + twins and alone:
            twin = chance.choice(alone)
            task = Task(id, twin.tool, twin.args)
        elif not needs(args):
            alone.append(Task(id, tool, args))
        yield Line(gap, task, id)
        known.append(id)


def _reference(chance: Random, known: list[int], id: int) -> Any:
    """Mostly a part of an earlier result; now and then nowhere, or inside a list."""
    kind = chance.random()
    if kind < 0.02:
        return Ref(id + 1)  # not planned before
    of = chance.choice(known)
    if kind < 0.05:
        return Ref(of, ("items", 7))
    if kind < 0.15:
        return [Ref(of, ("sum",)), {"deep": Ref(chance.choice(known))}]
    return chance.choice((Ref(of), Ref(of, ("sum",)), Ref(of, ("items", 0))))


def _woven(chance: Random, rounds: tuple[Round, ...]) -> tuple[Round, ...]:
    """The same plans, in which some calls bring lists and some go over them, some take what of
    several ends first, and some send instead of writing."""
    lists, picks = chance.random() < 0.4, chance.random() < 0.35
    tools: dict[int, str] = {}  # twins stay equal
    known: list[int] = []
    listing: list[int] = []

    def woven(task: Task) -> Task:
        me = task.args["me"]
        if me not in tools:
            tools[me] = task.tool
            if task.tool in SINKS:
                tools[me] = chance.choice(SINKS)
            elif lists and "url" not in task.args and chance.random() < 0.25:
                tools[me] = LIST
        args = dict(task.args)
        if picks and task.needs and chance.random() < 0.4:
            args["abc"[chance.randrange(3)]] = _pick(chance, known)
        if lists and task.needs and chance.random() < 0.4:
            args |= _over(chance, known, listing)
        if tools[me] == LIST:
            listing.append(task.id)
        return Task(task.id, tools[me], args, needs(args), special=is_special(args))

    found = []
    for one in rounds:
        lines = []
        for line in one.lines:
            lines.append(line if line.task is None else replace(line, task=woven(line.task)))
            known.append(line.id)
        found.append(replace(one, lines=tuple(lines)))
    return tuple(found)


def _pick(chance: Random, known: Sequence[int]) -> Any:
    """One, or some, of what ends first; at times two parts of one result, at times in a list."""
    count = chance.choice((1, 2, 2, 3, 4))
    paths: tuple[tuple[str | int, ...], ...] = ((), (), ("sum",), ("items", 0))
    refs = tuple(Ref(chance.choice(known[-8:]), chance.choice(paths)) for _ in range(count))
    pick = Pick(refs, chance.choice((None, None, 1, max(1, count - 1), count)))
    return [pick] if chance.random() < 0.2 else pick


def _over(chance: Random, known: Sequence[int], listing: Sequence[int]) -> dict[str, Any]:
    """Arguments that make a call go over a list; now and then over what is none."""
    kind = chance.random()
    if listing and kind < 0.6:
        over = Ref(chance.choice(listing[-3:]))
    else:
        over = Ref(chance.choice(known[-5:]), () if kind > 0.95 else ("items",))
    args: dict[str, Any] = {"each": Ref(over.task, (*over.path, EACH))}
    if chance.random() < 0.3:
        args["more"] = [Ref(over.task, (*over.path, EACH, chance.choice(("n", "n", "sum"))))]
    return args


def _mended(chance: Random, rounds: tuple[Round, ...], early: bool) -> tuple[Round, ...]:
    """The same plans, of which the later ones replace and cancel calls of those before."""
    if len(rounds) < 2 or not (early or chance.random() < 0.1):
        return rounds
    known = [line.id for line in rounds[0].lines]
    found = [rounds[0]]
    new = _OTHERS
    for one in rounds[1:]:
        lines = list(one.lines)
        for _ in range(chance.randint(0, 4) if known else 0):
            id, gap = chance.choice(known[-12:]), chance.choice((0, 0, 3)) / _STEP
            if chance.random() < 0.35:
                line = Line(gap, None, id, "cancels")
            else:
                new += 1
                line = Line(gap, _other(chance, id, new, known), id, "replaces")
            lines.insert(chance.randint(0, len(lines)), line)
        known += (line.id for line in one.lines)
        found.append(replace(one, lines=tuple(lines)))
    return tuple(found)


_OTHERS = 100_000
"""What replaces others is called from here on; no plan counts that far."""


def _other(chance: Random, id: int, me: int, known: list[int]) -> Task:
    """Another call in the place of call ``id``; now and then one that needs what needs it."""
    before = [other for other in known if other < id]
    among = known if chance.random() < 0.15 else before
    args: dict[str, Any] = {"me": me}
    for place in range(chance.randint(0, 2) if among else 0):
        args["abc"[place]] = Ref(chance.choice(among[-8:]))
    if before and chance.random() < 0.15:
        args["c"] = _pick(chance, before)
    if before and chance.random() < 0.25:
        args |= _over(chance, before, before)
    tool = chance.choice((*READ[:2], LIST, *SINKS))
    return Task(id, tool, args, needs(args), special=is_special(args))


def _calls(latency: Random, fault: Random, tasks: list[Task]) -> dict[str, tuple[Behaviour, ...]]:
    most = latency.choice((0, 2, 20, 100))  # hundredths; 0 and 2 make everything a tie
    tail = latency.choice((0.0, 0.1))
    often = fault.choice((0.0, 0.0, 0.1, 0.4))
    firsts = Counter(task.args["me"] for task in tasks)
    calls: dict[str, tuple[Behaviour, ...]] = {}
    for task in tasks:
        shared = firsts[task.args["me"]] > 1
        for name in names_of(task):
            if name in calls:
                continue
            found: list[Behaviour] = []
            # What a twin gets must not depend on which of the two comes first.
            for _ in range(1 if shared else 4):
                seconds = latency.randint(0, most) / _STEP
                seconds *= 20 if latency.random() < tail else 1
                kind = fault.choice(FAULTS) if fault.random() < often else ""
                if kind == "done twice" and (shared or "each" in task.args):
                    kind = ""
                if kind in ("done twice", "large", "not data") and task.tool == LIST:
                    kind = "raises"  # what it brings comes one by one
                if kind in ("stubborn", "deaf") and fault.random() < 0.7:
                    seconds += 5  # beyond every timeout: it will be cancelled
                longest = 6000 if kind == "deaf" else 150  # at times beyond all patience
                lag = fault.randint(1, longest) / _STEP + 0.003
                found.append(Behaviour(seconds, kind, lag))
                if kind == "":
                    break
            calls[name] = tuple(found)
    return calls


def _verdicts(
    chance: Random, tasks: list[Task], rules: Sequence[Rule]
) -> dict[int, tuple[float, Verdict]]:
    words: tuple[Verdict, ...] = (
        "allowed",
        "allowed",
        "refused",
        "not judged: the approver breaks",
    )
    return {
        task.id: (chance.randint(0, 30) / _STEP, chance.choice(words))
        for task in tasks
        if task.tool in SINKS or rules
    }


def _rules(chance: Random) -> tuple[Rule, ...]:
    """None in most schedules: then a sink asks, and all else runs."""
    return () if chance.random() < 0.65 else _some_rules(chance)


def _some_rules(chance: Random) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            chance.choice(("*", *SINKS, "[sp]*", "look", "fetch", "b*")),
            chance.choice(("allow", "allow", "allow", "ask", "deny")),
            chance.choice((None, None, "any", "trusted", "untrusted")),
        )
        for _ in range(chance.randint(1, 3))
    )


def _crashes(chance: Random, tasks: int) -> tuple[Crash, ...]:
    """Somewhere in one run of four, if it comes as far; at times twice."""
    if chance.random() < 0.75:
        return ()
    count = 2 if chance.random() < 0.2 else 1
    return tuple(
        Crash(chance.randint(1, 6 + 3 * tasks), chance.choice((0, 0, 1, 3))) for _ in range(count)
    )


def _written_anew(chance: Random, rounds: tuple[Round, ...]) -> tuple[Round, ...]:
    """The same plans, of which some are written otherwise behind what a crash leaves of them."""
    found = []
    for one in rounds:
        if chance.random() < 0.4:
            left_out = (line.id for line in one.lines if chance.random() < 0.4)
            one = replace(one, anew=frozenset(left_out))
        found.append(one)
    return tuple(found)


def _with_other_rules(chance: Random, crashes: tuple[Crash, ...]) -> tuple[Crash, ...]:
    """The same deaths, behind some of which the agent comes back with other rules."""
    return tuple(
        replace(crash, rules=_some_rules(chance)) if chance.random() < 0.5 else crash
        for crash in crashes
    )


def _refusals(chance: Random, tasks: list[Task]) -> dict[str, tuple[float | None, ...]]:
    """Hosts that ask for less, in one schedule of five: at times for longer than a call waits."""
    if chance.random() < 0.8:
        return {}
    reads = (task for task in tasks if task.tool in READ)
    waits = (None, 0.053, 0.203, 0.803, 1.503, 6.003)
    return {
        name: tuple(chance.choice(waits) for _ in range(chance.choice((1, 1, 2))))
        for task in reads
        for name in names_of(task)
        if chance.random() < 0.3
    }


def _batches(chance: Random) -> dict[str, int]:
    """Tools whose calls go as one, in one schedule of four."""
    if chance.random() < 0.75:
        return {}
    tools = (name for name in TOOLS if name != LIST)
    return {name: chance.choice((2, 3, 16)) for name in tools if chance.random() < 0.8}
