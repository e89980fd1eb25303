"""Memory is promised before a group begins: sums of blocks, and who may begin beside whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar.runtime.hogwild.plugin.admission import Pool, Row

ROWS = [Row(prompt=75, limit=194, prefix=70), Row(73, 192, 70), Row(79, 198, 70)]
POOL = Pool(total=14, size=32, shares=True)

rows = st.lists(
    st.integers(0, 300).flatmap(
        lambda own: st.integers(own, own + 300).map(lambda most: Row(100 + own, 100 + most, 100))
    ),
    min_size=1,
    max_size=6,
)


def test_the_whole_blocks_of_the_prefix_count_once() -> None:
    """Two blocks of 32 lie in a prefix of 70: held once by all three rows."""
    assert POOL.prompts(ROWS) == 2 + 3 * 1
    assert POOL.worst(ROWS) == 2 + 5 + 4 + 5
    assert Pool(14, 32, shares=False).worst(ROWS) == 7 + 6 + 7


def test_the_last_token_of_a_prompt_is_never_taken_from_the_cache() -> None:
    """A worker that was told nothing computes the end of the prefix itself."""
    assert POOL.common(Row(prompt=64, limit=100, prefix=64)) == 1
    assert POOL.common(Row(prompt=65, limit=100, prefix=64)) == 2


def test_a_group_alone_begins_if_its_prompts_fit() -> None:
    """Its worst case (16 blocks) is more than there are (14), but nobody else wants them."""
    assert POOL.verdict([], joining=ROWS, promised=0) == "begin"
    assert POOL.verdict([], joining=ROWS, promised=1) == "wait"
    assert Pool(17, 32, shares=True).verdict([], joining=ROWS, promised=1) == "begin"


def test_a_group_whose_prompts_do_not_fit_is_refused() -> None:
    """Waiting would not help."""
    assert Pool(4, 32, shares=True).verdict([], joining=ROWS, promised=9) == "refuse"


def test_a_late_row_waits_where_it_could_take_what_was_promised() -> None:
    """Those who began count with their worst case."""
    late = [Row(prompt=120, limit=130, prefix=70)]
    assert Pool(20, 32, shares=True).verdict(ROWS, joining=late, promised=0) == "begin"
    assert POOL.verdict(ROWS, joining=late, promised=0) == "wait"


@given(present=rows, joining=rows, promised=st.integers(0, 80), total=st.integers(1, 80))
@pytest.mark.parametrize("shares", [True, False])
def test_what_begins_beside_others_never_takes_what_they_were_promised(
    shares: bool, present: list[Row], joining: list[Row], promised: int, total: int
) -> None:
    """All promises together fit, unless a group has the cache to itself."""
    pool = Pool(total, 32, shares)
    verdict = pool.verdict(present, joining=joining, promised=promised)
    fits = pool.worst([*present, *joining]) + promised <= total
    if promised:
        assert (verdict == "begin") == fits
    elif fits:
        assert verdict == "begin"
    assert (verdict == "refuse") == (pool.prompts(joining) > total)
