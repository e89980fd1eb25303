"""Who waits: the most urgent first, and among equals who came first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentpar.executor.admission import Admission
from agentpar.executor.latency import Latency
from agentpar.policy import Limits

RANKS = st.sampled_from([0.5, 1.0, 2.0, 3.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("queue"), st.sampled_from(["a", "b"]), RANKS),
        st.tuples(st.just("next"), st.just("a"), RANKS),
        st.tuples(st.just("withdraw"), st.just("a"), RANKS),
        st.tuples(st.just("reorder"), st.just("a"), RANKS),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_most_urgent_goes_first(steps: list[tuple[str, str, float]]) -> None:
    """In whatever lane it waits, also after some gave up and all were ranked anew."""
    admission = Admission(Limits(), {}, Latency())
    waiting: dict[str, tuple[float, str]] = {}  # call -> (rank, tool), in order of coming
    for turn, (what, tool, rank) in enumerate(steps):
        if what == "queue":
            call = f"call {turn}"
            waiting[call] = rank, tool
            admission.queue(call, admission.lane(tool, {}), rank)
        elif what == "reorder":
            ranks = {call: rank if tool == "a" else 1.0 for call, (_, tool) in waiting.items()}
            waiting = {call: (ranks[call], tool) for call, (_, tool) in waiting.items()}
            admission.reorder(ranks.__getitem__)
        elif what == "withdraw" and waiting:
            call = list(waiting)[turn % len(waiting)]
            lane = admission.lane(waiting.pop(call)[1], {})
            assert admission.withdraw(call, lane)
            assert not admission.withdraw(call, lane)
        elif what == "next":
            best = max(waiting, key=lambda call: waiting[call][0], default=None)
            assert admission.next(0.0) == best
            if best is not None:
                admission.release(admission.lane(waiting.pop(best)[1], {}))
        assert admission.waiting == len(waiting)
