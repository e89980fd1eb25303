"""What a model call took where nobody says: about right, never nothing, and marked."""

from __future__ import annotations

import pytest

from agentpar.estimate import AROUND, known, prompt_of, tokens_of
from agentpar.events import Usage
from agentpar.ports import Message


def test_what_a_server_says_stands() -> None:
    """Also where it counts only one of the two: nothing is added to it."""
    for told in (Usage(12, 2, 8, calls=1), Usage(12, 0, calls=1), Usage(0, 3, calls=1)):
        assert known(told, 99, "a text") == told


def test_where_it_says_nothing_the_texts_are_counted() -> None:
    """The rest of what is known, such as that the text was cut, stays."""
    told = Usage(calls=1, cut=True)
    assert known(told, 40, "abc def") == Usage(40, 3, calls=1, cut=True, estimated=True)


def test_a_sum_with_an_estimate_is_one() -> None:
    """However much of it is exact."""
    exact, guess = Usage(900, 90, calls=3), Usage(10, 1, calls=1, estimated=True)
    assert (exact + guess).estimated
    assert (guess + exact).estimated
    assert not (exact + exact).estimated


# Token counts of the tokenizer of Qwen2.5-Coder, which has a token for each digit.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ('1. search(query="population of Chile 2020")\n2. search(query="Peru")\njoin()\n', 24),
        ("Chile 19116201 people in 2020, 756102 km2; Peru 32971854; GDP 252.9, 2023-11-04\n", 60),
        ("Which of the two countries has more people, Chile or Peru, and by how many?", 18),
    ],
)
def test_an_estimate_is_near(text: str, tokens: int) -> None:
    """And rather too high than too low."""
    assert 0.85 * tokens <= tokens_of(text) <= 1.5 * tokens


def test_what_utf8_cannot_carry_is_counted_all_the_same() -> None:
    """A page may hold half a character."""
    assert tokens_of("torn \ud83d") == 2


def test_a_prompt_is_more_than_its_texts() -> None:
    """A chat template writes something around each message."""
    chat = (Message("system", "abc"), Message("user", "abcdef"))
    assert prompt_of(chat) == 2 * AROUND + 1 + 2
