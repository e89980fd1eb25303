"""References: to values, to their parts, to each element of a list, to the first good ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentpar.errors import PlanError
from agentpar.plan import (
    EACH,
    Failed,
    Ok,
    Outcome,
    Pick,
    Ref,
    Skipped,
    Task,
    blocker,
    chosen,
    collect,
    each,
    element_args,
    elements,
    fill,
    needs,
    picks,
    ready,
    references,
    resolve,
)


def test_a_path_leads_into_lists_and_mappings() -> None:
    """To the value that stands there, whatever it is."""
    outcomes = {1: Ok({"hits": [{"url": "http://a"}]})}
    assert resolve(Ref(1, ("hits", 0, "url")), outcomes) == "http://a"


@pytest.mark.parametrize(
    ("value", "path", "told"),
    [
        ("Lima", (0,), r"\$1\[0\]: \$1 is str, which has no parts"),
        ({"value": "Lima"}, ("value", 0), r"\$1\.value\[0\]: \$1\.value is str"),
        (["Lima"], (1,), r"\$1\[1\]: \$1 is a list of 1"),
        ({"value": 3}, ("name",), r"\$1\.name: \$1 has the fields 'value'"),
        (19, (0,), r"\$1\[0\]: \$1 is int"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(
    value: object, path: tuple[str | int, ...], told: str
) -> None:
    """With the step that is missing and what is there instead: a text has no parts either."""
    with pytest.raises(PlanError, match=told):
        resolve(Ref(1, path), {1: Ok(value)})


# -- each element ----------------------------------------------------------------------------

HITS: dict[int, Outcome] = {1: Ok({"hits": [{"url": "a"}, {"url": "b", "n": 2}]}), 2: Ok("x")}
URL = Ref(1, ("hits", EACH, "url"))


def test_a_starred_reference_names_the_list_it_goes_over() -> None:
    """Wherever it stands; several of one list go together."""
    assert each({"x": [{"y": URL}], "z": Ref(1, ("hits", EACH)), "w": Ref(2)}) == Ref(1, ("hits",))
    assert each({"x": Ref(1), "y": Ref(1, ("*",))}) is None
    assert Task.of(3, "f", x=URL).needs == (1,)
    assert str(URL) == "$1.hits[*].url"


def test_one_call_is_filled_for_each_element() -> None:
    """Starred references from the element, all others as ever; `$1["*"]` is a field."""
    args = {"url": URL, "all": Ref(1, ("hits", 1, "n")), "deep": [{"all": Ref(1, ("hits", EACH))}]}
    over = each(args)
    assert over is not None
    calls = [element_args(args, i, item, HITS) for i, item in enumerate(elements(over, HITS))]
    assert calls == [
        {"url": "a", "all": 2, "deep": [{"all": {"url": "a"}}]},
        {"url": "b", "all": 2, "deep": [{"all": {"url": "b", "n": 2}}]},
    ]
    assert fill({"x": Ref(1, ("*",))}, {1: Ok({"*": 7})}) == {"x": 7}


def test_an_element_may_come_before_its_list() -> None:
    """What a stream has brought is enough; the list's task has not ended."""
    assert element_args({"x": Ref(9, (EACH, "v"))}, 0, {"v": 5}, {}) == {"x": 5}


def test_as_a_value_a_starred_reference_is_the_list_of_the_parts() -> None:
    """That is what citations and drawings show of it."""
    assert resolve(URL, HITS) == ["a", "b"]
    assert fill({"x": URL}, HITS) == {"x": ["a", "b"]}


def test_an_element_without_the_part_is_told_with_its_place() -> None:
    """By index, not by star."""
    args = {"x": Ref(1, ("hits", EACH, "n"))}
    with pytest.raises(PlanError, match=r"\$1\.hits\[0\]\.n: \$1\.hits\[0\] has the fields 'url'"):
        element_args(args, 0, {"url": "a"}, HITS)
    with pytest.raises(PlanError, match=r"\$2\[\*\]: \$2 is str, which has no parts: \[\*\] needs"):
        elements(Ref(2), HITS)
    with pytest.raises(PlanError, match=r"\$2\[\*\]: \$2 is str"):
        resolve(Ref(2, (EACH,)), HITS)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            {"a": Ref(1, (EACH,)), "b": Ref(2, (EACH,))},
            r"\$1\[\*\] and \$2\[\*\] go over two lists",
        ),
        ({"a": Ref(1, (EACH,)), "b": Ref(1, ("x", EACH))}, "two lists"),
        ({"a": Ref(1, (EACH, "x", EACH))}, r"one \[\*\] at most"),
        ({"a": Pick((Ref(1, (EACH,)), Ref(2)))}, r"any\(\$1\[\*\], \$2\): \[\*\] cannot stand"),
    ],
)
def test_a_call_goes_over_one_list(args: dict[str, Any], told: str) -> None:
    """What that list is must be plain from the call."""
    with pytest.raises(PlanError, match=told):
        each(args)


def test_a_list_of_calls_ends_as_the_list_of_values() -> None:
    """Or as the first one that failed, by the list's order and not by time."""
    assert collect([]) == Ok([])
    assert collect([Ok(1), Ok([2])]) == Ok([1, [2]])
    failed = collect([Ok(1), Failed("late", "timeout"), Failed("no")])
    assert failed == Failed("element 1: late", "timeout")


# -- the first good ones ---------------------------------------------------------------------

ANY = Pick((Ref(1), Ref(2, ("v",)), Ref(3)))
TWO = Pick((Ref(1), Ref(2), Ref(3), Ref(4)), 2)


def test_any_is_the_first_good_value_to_complete() -> None:
    """Not the first to end, and not the first in writing."""
    outcomes: dict[int, Outcome] = {3: Failed("no"), 2: Ok({"v": "two"}), 1: Ok("one")}
    assert fill({"x": [ANY]}, outcomes) == {"x": ["two"]}
    assert [str(pick) for pick in picks({"x": [ANY]})] == ["any($1, $2.v, $3)"]


def test_some_are_a_list_in_writing_order() -> None:
    """Completion decides which values are in it, never where they stand."""
    outcomes: dict[int, Outcome] = {4: Ok("d"), 3: Failed(""), 2: Ok("b"), 1: Ok("a")}
    assert fill({"x": TWO}, outcomes) == {"x": ["b", "d"]}
    for order in itertools.permutations(range(1, 4)):
        done: dict[int, Outcome] = {id: Ok(id) for id in order}
        assert fill({"x": Pick((Ref(3), Ref(1), Ref(2)), 3)}, done) == {"x": [3, 1, 2]}


def test_references_of_one_task_count_one_by_one() -> None:
    """Those written first go first."""
    pick = Pick((Ref(1, ("a",)), Ref(2), Ref(1, ("b",))), 2)
    assert chosen(pick, {1: Ok({}), 2: Ok(0)}) == [Ref(1, ("a",)), Ref(1, ("b",))]


def test_a_pick_needs_all_that_it_chooses_from() -> None:
    """So that its tasks are planned before it and drawn as its inputs."""
    args = {"x": ANY, "y": Ref(7)}
    assert needs(args) == (1, 2, 3, 7)
    assert list(references(args)) == [*ANY.refs, Ref(7)]


def test_a_pick_with_too_few_values_is_told() -> None:
    """A machine that asks too early hears of it."""
    with pytest.raises(PlanError, match=r"some\(2, .*\): 1 of the 2 values"):
        fill({"x": TWO}, {1: Ok(1), 2: Skipped(9)})


ENDINGS: st.SearchStrategy[Outcome] = st.sampled_from([Ok({"v": 1}), Failed("no"), Skipped(9)])
OPERANDS = st.one_of(
    st.builds(Ref, st.integers(1, 5)),
    st.lists(st.builds(Ref, st.integers(1, 5)), min_size=1, max_size=4).flatmap(
        lambda refs: st.builds(Pick, st.just(tuple(refs)), st.none() | st.integers(1, len(refs)))
    ),
)


@given(
    st.dictionaries(st.sampled_from("abc"), OPERANDS),
    st.permutations(range(1, 6)),
    st.lists(ENDINGS, min_size=5, max_size=5),
)
@settings(deadline=None)
def test_once_ready_it_is_settled_whether_arguments_can_be_filled(
    args: dict[str, Any], order: list[int], endings: list[Outcome]
) -> None:
    """What ends later changes neither that nor the values; when all has ended, all is ready."""
    outcomes: dict[int, Outcome] = {}
    settled: tuple[Any, ...] | None = None
    for id in order:
        if ready(args, outcomes):
            fits = blocker(args, outcomes) is None
            now = fits, fill(args, outcomes) if fits else None
            assert settled in (None, now)
            settled = now
        outcomes[id] = endings[id - 1]
    assert ready(args, outcomes)
    because = blocker(args, outcomes)
    if because is None:
        fill(args, outcomes)
    else:
        assert not isinstance(outcomes[because], Ok)
        with pytest.raises(PlanError):
            fill(args, outcomes)
