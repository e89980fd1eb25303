"""Tokens as text while they come: nothing lost, nothing twice, no half characters."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentpar.runtime import models
from agentpar.runtime.hogwild.pieces import Pieces

FOLDER = models.find("smollm2-135m")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs `agentpar weights smollm2-135m`")


@cache
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet=st.sampled_from("abc de\n\n.,ÄßλЖ漢字🙂👩‍💻é"), max_size=40))
def test_the_pieces_joined_are_the_text(text: str) -> None:
    """Of any language, and no piece ends within a character."""
    pieces = Pieces(tokenizer())
    told = [pieces.push(token) for token in tokenizer().encode(text, add_special_tokens=False)]
    assert not any("\ufffd" in piece for piece in told)
    assert "".join(told) + pieces.rest() == text


def test_half_a_character_at_the_end_is_told_of() -> None:
    """A worker that was cut off within one: said so, and not dropped in silence."""
    pieces = Pieces(tokenizer())
    first, *_, last = tokenizer().encode("🙂", add_special_tokens=False)
    assert first != last
    assert pieces.push(first) == ""
    assert pieces.rest() == "\ufffd"


def test_the_end_of_text_is_no_text() -> None:
    """Special tokens are left out."""
    pieces = Pieces(tokenizer())
    assert pieces.push(tokenizer().eos_token_id) == ""
    assert pieces.rest() == ""
