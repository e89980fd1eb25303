"""Schemas as foreign servers write them: old drafts, short forms, mistakes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentpar.errors import PlanError, UsageError
from agentpar.planner.binding import bind
from agentpar.planner.grammar import plan_grammar
from agentpar.planner.parser import Call
from agentpar.planner.prompts import describe_tool
from agentpar.tools.arguments import check_schema, tidy
from agentpar.tools.base import Tool
from agentpar.tools.dialects import modern
from agentpar.tools.outputs import written_out


def tool_of(schema: Any) -> Tool:
    """A tool as an MCP server's is made."""

    async def call(**args: Any) -> None: ...

    tidied = tidy("t", schema)
    output = written_out("t", modern(schema)) or None
    return Tool("t", "", tidied, call, check_schema("t", tidied), output=output)


def taking(schema: Any) -> Tool:
    return tool_of({"type": "object", "properties": {"a": schema}})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}),
        ({"maximum": 9, "exclusiveMaximum": True}, {"exclusiveMaximum": 9}),
        ({"minimum": 0, "exclusiveMinimum": False}, {"minimum": 0}),
        ({"exclusiveMinimum": 0}, {"exclusiveMinimum": 0}),
        (
            {"items": [{"type": "string"}], "additionalItems": False},
            {
                "prefixItems": [{"type": "string"}],
                "items": False,
                "additionalItems": False,
            },
        ),
        ({"items": {"type": "string"}}, {"items": {"type": "string"}}),
        ({"properties": {"a": True, "b": False}}, {"properties": {"a": {}, "b": {"not": {}}}}),
        ({"anyOf": [True, {"type": "null"}]}, {"anyOf": [{}, {"type": "null"}]}),
        ({"maxLength": 5.0, "minLength": -1}, {"maxLength": 5}),
        ({"minimum": "0", "type": 7, "required": True, "enum": []}, {}),
        ({"x-own": [1], "title": "T"}, {"x-own": [1], "title": "T"}),
    ],
)
def test_a_schema_is_read_in_todays_dialect(written: Any, read: Any) -> None:
    """What an older draft says is said in the new words; what cannot be meant is left out."""
    assert modern(written) == read


def test_a_property_that_may_be_anything_is_shown_to_the_planner() -> None:
    """``true`` is how some SDKs write it; it ended every plan of the agent with a TypeError."""
    assert describe_tool(taking(True)).startswith("t(a?: any)")


def test_a_bound_of_an_old_draft_bounds_what_it_meant() -> None:
    """``maximum: 100, exclusiveMaximum: true`` (OpenAPI 3.0) lets 99 through, and not 100."""
    tool = taking({"type": "integer", "maximum": 100, "exclusiveMaximum": True})
    assert bind(Call(1, "t", (), {"a": 99}), {"t": tool}, ()).args == {"a": 99}
    with pytest.raises(PlanError, match="must be less than 100, not 100"):
        bind(Call(1, "t", (), {"a": 100}), {"t": tool}, ())
    today = taking({"type": "integer", "exclusiveMaximum": 100})
    assert plan_grammar({"t": tool}) == plan_grammar({"t": today})


RULES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from([0.5, 2.0, -1.0, float("nan"), float("inf"), "", "string", "object", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "type enum const anyOf oneOf allOf $ref items prefixItems additionalItems "
                "properties required additionalProperties pattern minimum maximum exclusiveMinimum "
                "exclusiveMaximum minLength maxLength minItems maxItems description default title "
                "$defs a".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(RULES, RULES)
def test_no_schema_of_a_server_ends_the_planning(schema: Any, value: Any) -> None:
    """Whatever stands in it, the tool is shown, has a grammar, and calls are held against it."""
    tool = taking(schema)
    describe_tool(tool)
    plan_grammar({"t": tool}, known=[1])
    with suppress(PlanError):
        bind(Call(1, "t", (), {"a": value}), {"t": tool}, ())
    with suppress(UsageError):
        tool.validate({"a": value})
