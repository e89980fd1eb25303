"""What an entry was worth."""

from __future__ import annotations

import pytest

from agentpar.memory.credit import Credit, Ledger, Presence, Prices, Use, foreign, worth
from agentpar.memory.entry import Reading

PRICES = Prices(token=0.01, failed=60.0, contradicted=30.0)


def reading(
    run: str = "R.2", seconds: float = 10.0, tokens: int = 100, context: int = 50
) -> Reading:
    return Reading("e", run, 1, 2, seconds, tokens, context)


def test_it_is_worth_what_was_spared_less_what_reading_took() -> None:
    """Seconds, and tokens at their price."""
    credit = worth(Ledger((reading(),)), PRICES)
    assert credit == Credit(gain=11.0, loss=0.5, readers=1)
    assert credit.net == 10.5


def test_what_nobody_reads_costs_its_place() -> None:
    """Lines in the prompts of others, and the time they took."""
    assert worth(Ledger(), PRICES).net == 0
    assert worth(Ledger(presence=Presence(tokens=200, seconds=1.5)), PRICES).net == -3.5


def test_own_reads_never_count() -> None:
    """Of whoever brought it, as first or later; neither gain nor cost."""
    ledger = Ledger((reading("R.1"), reading("R.2"), reading("R.3")), frozenset({"R.1", "R.3"}))
    assert worth(ledger, PRICES) == worth(Ledger((reading("R.2"),)), PRICES)
    assert [one.run_id for one in foreign(ledger.readings, ledger.producers)] == ["R.2"]


def test_what_is_not_true_loses_for_each_reader() -> None:
    """Time spared on a wrong way is no gain."""
    ledger = Ledger(
        (reading("R.2"), reading("R.3")),
        uses={"R.2": Use("contradicted"), "R.3": Use("contradicted")},
    )
    assert worth(ledger, PRICES) == Credit(gain=0.0, loss=61.0, readers=2)


def test_what_no_answer_rests_on_gains_nothing() -> None:
    """Uncited: the call need not have been made at all. What it took to read stays a loss."""
    assert worth(Ledger((reading(),), uses={"R.2": Use("uncited")}), PRICES).net == -0.5


def test_a_failed_answer_blames_all_that_it_read() -> None:
    """Each for its share; so much the less where many were read."""
    alone = worth(Ledger((reading(),), uses={"R.2": Use("failed", 1)}), PRICES)
    among = worth(Ledger((reading(),), uses={"R.2": Use("failed", 6)}), PRICES)
    assert alone.net == 10.5 - 60
    assert among.net == 10.5 - 10


def test_an_entry_is_not_blamed_for_the_times_it_lives_in() -> None:
    """Where half of the runs fail anyway, being read in as many that do costs nothing."""
    ledger = Ledger(
        (reading("R.2"), reading("R.3")), uses={"R.2": Use("failed", 2), "R.3": Use("sound", 2)}
    )
    prices = Prices(token=0.01, failed=60.0, failures=0.5)
    assert worth(ledger, prices).net == pytest.approx(2 * 10.5)
