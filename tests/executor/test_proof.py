"""The proof of a plan: what can reach a sink, by which path, and what the rules make of it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from agentpar import Rule
from agentpar.executor.proof import describe, prove
from agentpar.labels import Label, Origin
from agentpar.permissions import Flow, Permissions
from agentpar.plan import Ref, Task

FLOWS = {"send": Flow("write"), "post": Flow(sends=True), "calc": Flow(pure=True)}
PLAN = (
    Task.of(1, "search", q="news"),
    Task.of(2, "read", url=Ref(1, (0, "url"))),
    Task.of(3, "read", url="https://example.org"),
    Task.of(4, "calc", a=Ref(2), b=Ref(3)),
    Task.of(5, "send", to="ann", text=Ref(4), more=Ref(2)),
    Task.of(6, "post", text="done"),
)


def test_the_shortest_path_from_each_origin() -> None:
    """One that is the end of another is left out; a sink with literals has none."""
    fed, own = prove(PLAN, Permissions((), FLOWS)).sinks
    assert fed.paths == ((1, 2, 5), (3, 4, 5))
    assert [origin.task_id for origin in fed.label.data] == [1, 2, 3]
    assert (own.paths, own.label.untrusted) == ((), False)
    assert not fed.unapproved  # it asks


def test_an_open_path_is_found_and_told() -> None:
    """A rule that lets untrusted data in is exactly what the proof fails on."""
    open_ = prove(PLAN, Permissions((Rule("send", "allow", data="any"),), FLOWS))
    assert [sink.task.id for sink in open_.unapproved] == [5]
    shut = prove(PLAN, Permissions((Rule("send", "allow"),), FLOWS))
    assert not shut.unapproved
    assert "NOT PROVED: 6 calls, 2 of them sinks; untrusted data reach call 5" in describe(open_)


def test_the_text_says_path_verdict_and_reason() -> None:
    """To the letter: it is read by people who decide from it."""
    assert describe(prove(PLAN, Permissions((Rule("post", "deny"),), FLOWS))) == (
        "5 send($4, $2): changes things\n"
        "  untrusted: 1 search → 2 read → 5 send\n"
        "  untrusted: 3 read → 4 calc → 5 send\n"
        "  ask: send changes things\n"
        "6 post(): sends data out\n"
        "  no untrusted data reach it\n"
        "  deny: rule 1: {tools: post, action: deny}\n"
        "proved: 6 calls, 2 of them sinks; untrusted data reach none unless somebody is asked\n"
        "a call of post that a later plan adds after reading results is denied\n"
        "a call of send that a later plan adds after reading results asks\n"
    )


def test_a_later_plan_counts_what_it_had_read() -> None:
    """A call with literals only is reached through its planner."""
    tasks = Task.of(1, "read", url="x"), Task.of(2, "send", text="pwned")
    permissions = Permissions((Rule("*", "allow", data="any"),), FLOWS)
    [sink] = prove(tasks, permissions, {2: (1,)}).sinks
    assert sink.label == Label(plan=(Origin(1, "read(x)"),))
    assert sink.verdict.action == "ask"
    text = describe(prove(tasks, permissions, {2: (1,)}))
    assert "  untrusted: planned after reading 1 read\n" in text


@given(st.integers(1, 14), st.randoms(use_true_random=False))
def test_every_path_is_one_of_the_plan(size: int, random: Random) -> None:
    """From a call that brings something in, along arrows, to the sink; none where none leads."""
    tasks = []
    for id in range(1, size + 1):
        needs = random.sample(range(1, id), min(id - 1, random.randrange(3)))
        name = random.choice(["read", "calc", "send"])
        tasks.append(Task.of(id, name, "", **{f"a{n}": Ref(need) for n, need in enumerate(needs)}))
    by_id = {task.id: task for task in tasks}
    for sink in prove(tasks, Permissions((), FLOWS)).sinks:
        assert bool(sink.paths) == sink.label.untrusted
        for path in sink.paths:
            assert by_id[path[0]].tool != "calc"
            assert path[-1] == sink.task.id
            for before, after in pairwise(path):
                assert before in by_id[after].needs
        on_paths = {id for path in sink.paths for id in path}
        assert {origin.task_id for origin in sink.label.data} <= on_paths
