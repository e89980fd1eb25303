"""What a request may say about its group, and how nonsense is told."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar.errors import UsageError
from agentpar.runtime.hogwild.plugin.params import Member, check, parse

GOOD: dict[str, Any] = {"hogwild_group": "g", "hogwild_worker": "Alice", "hogwild_prefix": 70}


def test_an_ordinary_request_is_none_of_ours() -> None:
    """Extra arguments of others are left alone."""
    assert parse(None) is None
    assert parse({}) is None
    assert parse({"session_id": "x", "kv_transfer_params": 7}) is None


def test_the_defaults_are_those_of_a_group_that_waits_for_nobody() -> None:
    """Group, worker and prefix are enough."""
    assert parse({**GOOD, "session_id": "x"}) == Member("g", "Alice", 70)


def test_all_keys_are_read_as_json_brings_them() -> None:
    """Numbers in lists may come as floats over HTTP."""
    more = {"hogwild_size": 3, "hogwild_layout": "combined", "hogwild_steps": [13.0, 198]}
    found = parse(json.loads(json.dumps(GOOD | more)))
    assert found == Member("g", "Alice", 70, 3, "combined", frozenset({13, 198}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hogwild_group", None, "hogwild_group is None"),
        ("hogwild_group", "", "hogwild_group is ''"),
        ("hogwild_group", "x" * 129, "1 to 128 characters"),
        ("hogwild_group", "a\nb", "must be a name"),
        ("hogwild_worker", 7, "hogwild_worker is 7"),
        ("hogwild_prefix", 0, "hogwild_prefix is 0; it must be a whole number of at least 1"),
        ("hogwild_prefix", "70", "hogwild_prefix is '70'"),
        ("hogwild_prefix", 70.5, "hogwild_prefix is 70.5"),
        ("hogwild_prefix", True, "hogwild_prefix is True"),
        ("hogwild_size", 0, "from 1 to 1024"),
        ("hogwild_size", 1025, "from 1 to 1024"),
        ("hogwild_layout", "zigzag", "hogwild_layout is 'zigzag'; there are contiguous"),
        ("hogwild_steps", "13", "hogwild_steps is '13'"),
        ("hogwild_steps", [-1], "list of at most 256 token ids"),
        ("hogwild_steps", list(range(257)), "list of at most 256 token ids"),
        ("hogwild_grup", "g", "hogwild_grup is not known; the keys are hogwild_group"),
    ],
)
def test_nonsense_is_refused_with_key_and_value(key: str, value: Any, said: str) -> None:
    """Nothing is guessed, nothing is dropped."""
    with pytest.raises(UsageError) as refused:
        parse(GOOD | {key: value})
    assert said in str(refused.value)


@pytest.mark.parametrize("missing", GOOD)
def test_a_row_needs_group_worker_and_prefix(missing: str) -> None:
    """A half-described row is no ordinary request."""
    with pytest.raises(UsageError, match=missing):
        parse({key: value for key, value in GOOD.items() if key != missing})


values = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers()


@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "hogwild_size", "hogwild_steps", "hogwild_x", "other"]),
        values | st.lists(values, max_size=3),
    )
)
def test_whatever_comes_it_is_a_row_a_refusal_or_none_of_ours(arguments: dict[str, Any]) -> None:
    """Nothing that a client sends ends in another error."""
    with contextlib.suppress(UsageError):
        parse(arguments)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"prompt": 69}, "hogwild_prefix = 70, but its prompt has 69 tokens"),
        ({"prompt": None}, "a prompt of embeddings"),
        ({"samples": 2}, "start 2 workers instead"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"cached": False}, "skip_reading_prefix_cache"),
        ({"resumable": True}, "streams its input"),
    ],
)
def test_what_no_row_can_be_is_refused(what: dict[str, Any], said: str) -> None:
    """Each with what to do, naming worker and group."""
    with pytest.raises(UsageError, match=said) as refused:
        check(Member("g", "Alice", 70), **({"prompt": 80} | what))
    assert "worker 'Alice' of group 'g'" in str(refused.value)
    check(Member("g", "Alice", 70), prompt=70)
