"""Untrusted text made fit to be shown on one line."""

from __future__ import annotations

import pytest

from agentpar.plaintext import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("a \n\t b", "a b"),
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 9 + "…"),
        ("a" + " " * 100, "a…"),
        ("a" + " " * 100 + "b", "a…"),
        (" " * 100 + "b", "…"),
        ("a\x1b[2Jb", "a␛[2Jb"),
    ],
)
def test_a_line_of_ten_says_where_more_was(text: str, line: str) -> None:
    """Nothing is left out without a sign, however it is hidden behind blanks."""
    assert one_line(text, 10) == line


def test_without_a_limit_all_is_shown() -> None:
    """Blanks are one blank, whatever their number."""
    assert one_line("a" + " " * 9_000 + "b") == "a b"
