"""Equal calls: the first task with the same tool and arguments is found."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentpar.executor.twins import Twins

VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, "", "1", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner),
    max_leaves=4,
)
ARGS = st.dictionaries(st.sampled_from(["q", "n", "page"]), VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(["search", "fetch", "send"]), ARGS), max_size=12)


def written(tool: str, args: Any) -> str:
    """The call as text, equal for equal calls."""
    return f"{tool} {json.dumps(args, sort_keys=True)}"


@given(CALLS)
def test_the_first_of_equal_calls_is_found(calls: list[tuple[str, Any]]) -> None:
    """Exactly as comparing every two calls in full would find it; 1, 1.0 and True differ."""
    twins, seen = Twins(["search", "fetch"]), dict[str, int]()
    for task, (tool, args) in enumerate(calls):
        first = task if tool == "send" else seen.setdefault(written(tool, args), task)
        assert twins.first(task, tool, args) == first


@given(CALLS, st.data())
def test_a_task_that_was_replaced_or_failed_is_no_twin(
    calls: list[tuple[str, Any]], data: st.DataObject
) -> None:
    """The next task with its call is the first; one that begins anew takes its place."""
    twins, seen = Twins(["search", "fetch", "send"]), dict[str, int]()
    for task, (tool, args) in enumerate(calls):
        key = written(tool, args)
        first = seen.setdefault(key, task)
        assert twins.first(task, tool, args) == first
        what = data.draw(st.sampled_from(["go on", "fail", "replace"]))
        if what == "fail" and first != task:
            twins.begin_anew(task, tool, args)
            seen[key] = task
        elif what == "replace":
            twins.forget(first, tool)
            del seen[key]


def test_the_order_in_which_arguments_are_named_does_not_matter() -> None:
    """They are given by name."""
    twins = Twins(["search"])
    assert twins.first(1, "search", {"n": [1], "q": "a"}) == 1
    assert twins.first(2, "search", {"q": "a", "n": [1]}) == 1
