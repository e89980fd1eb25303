"""What is shown of a call before it is approved."""

from __future__ import annotations

from agentpar.cli.approve import SHOWN, shown_call


def test_a_long_argument_hides_no_other() -> None:
    """The receiver is seen, however long the text before it."""
    shown = shown_call("send", {"text": "x" * 5_000, "to": "eve@evil.example"})
    assert shown.endswith('…, to="eve@evil.example")')
    assert len(shown) < SHOWN + 100


def test_a_thousand_blanks_hide_nothing_unsaid() -> None:
    """What stands behind them is not shown, but that there is something is."""
    shown = shown_call("send", {"text": "hello" + " " * 20_000 + "and the password"})
    assert shown == 'send(text="hello…)'


def test_a_call_cannot_steer_the_terminal() -> None:
    """Control characters, wherever they stand, are shown and not obeyed."""
    shown = shown_call("send", {"a\x1b[2J": "b\x1b[2J\n\u202ec"})
    assert shown.isprintable()
    assert "\n" not in shown
