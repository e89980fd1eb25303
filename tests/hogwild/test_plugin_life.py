"""Groups live and die inside vLLM: whoever joins, leaves or lacks memory, texts stay exact."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from served import HEADS, PREFIX, Served, served, start
from tiny import VOCABULARY, ids, tiny
from vllm.exceptions import VLLMValidationError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


# A vLLM server on a CPU never schedules ahead: AGENTPAR_THOROUGH=1 has an engine do so as well.
MODES = {"step by step": False} | ({"ahead": True} if os.environ.get("AGENTPAR_THOROUGH") else {})


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES.keys())
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with served(
        tiny(dtype=torch.float32), folder, ahead=request.param, scheduling_policy="priority"
    ) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, in the end no block is held and no row remembered."""
    yield
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").require_clean()


def test_a_late_row_joins_the_living(engine: Served) -> None:
    """It sees what they wrote, they see it, and it comes last in the views."""
    rows = start(engine, "late", 30)
    engine.steps(10)
    rows["Dora"] = engine.row("late", "Dora", PREFIX, ids(40, seed=7), 12)
    engine.run()
    transcript = engine.require_replay("late", rows)
    assert transcript.steps[0].joined == tuple(HEADS)
    assert [step.joined for step in transcript.steps if step.joined][1:] == [("Dora",)]


def test_what_a_group_wrote_is_kept_for_who_comes_late(engine: Served) -> None:
    """All have ended, and the engine was idle; the row sees their texts, and ends the group."""
    rows = start(engine, "held", 12, hold=30.0)
    engine.run()
    assert engine.free < engine.blocks
    rows["answer"] = engine.row("held", "answer", PREFIX, ids(6, seed=9), 8, late=True)
    engine.run()
    engine.require_replay("held", rows)


def test_who_comes_when_the_time_is_over_is_refused(engine: Served) -> None:
    """Even if nothing was scheduled since: it would be in a group of its own, and see nobody."""
    start(engine, "over", 6, hold=60.0)
    engine.run()
    (group,) = engine.scheduler._groups.values()
    group.held_until = time.monotonic()
    late = engine.row("over", "answer", PREFIX, ids(6, seed=9), 8, late=True)
    engine.run()
    assert engine.written[late].finish == "error"
    assert "the group has ended" in str(engine.written[late].reason)


def test_an_injected_text_is_a_row_of_one_token(engine: Served) -> None:
    """A row that may write one token is read by all, and closed once it is computed."""
    rows = start(engine, "inject", 24)
    engine.steps(6)
    rows["tool"] = engine.row("inject", "tool", PREFIX, ids(33, seed=8), 1)
    engine.run()
    transcript = engine.require_replay("inject", rows)
    (read,) = (step for step in transcript.steps if "tool" in step.wrote)
    assert read.wrote["tool"] == 33
    assert "tool" in read.closed


def test_a_row_that_leaves_stays_in_sight(engine: Served) -> None:
    """A client that goes away closes its row, the others go on and see what it wrote."""
    rows = start(engine, "leave", 30)
    engine.steps(8)
    engine.abort(rows["Bob"])
    engine.run()
    transcript = engine.require_replay("leave", rows)
    assert len(engine.written[rows["Alice"]].tokens) == 30
    assert len(transcript.tokens["Bob"]) < 20
    assert sum("Bob" in step.closed for step in transcript.steps) == 1


def test_when_the_last_one_leaves_all_is_free(engine: Served) -> None:
    """Clients that disconnect in the middle leave no block behind."""
    rows = start(engine, "gone", 200)
    engine.steps(5)
    assert engine.free < engine.blocks
    for row in rows.values():
        engine.abort(row)
    engine.run()
    assert engine.free == engine.blocks


def test_rows_that_leave_before_their_group_began_are_forgotten(engine: Served) -> None:
    """The line is left, and who remains begins after the wait."""
    lost = engine.row("early", "lost", PREFIX, HEADS["Bob"], 20, size=2)
    engine.step()
    engine.abort(lost)
    engine.run()
    engine.require_clean()


def test_a_group_waits_for_its_rows_and_then_begins_at_once(engine: Served) -> None:
    """With size 3, two rows write nothing until the third is there."""
    rows = {
        name: engine.row("barrier", name, PREFIX, HEADS[name], 12, size=3)
        for name in ("Alice", "Bob")
    }
    engine.steps(5)
    assert not any(engine.written[row].tokens for row in rows.values())
    rows["Carol"] = engine.row("barrier", "Carol", PREFIX, HEADS["Carol"], 12, size=3)
    engine.run()
    transcript = engine.require_replay("barrier", rows)
    assert transcript.steps[0].joined == ("Alice", "Bob", "Carol")
    assert len(transcript.steps) == 12


def test_a_group_that_waits_in_vain_begins_with_those_there(engine: Served) -> None:
    """The wait is bounded (0.5 s in these tests)."""
    began = time.monotonic()
    rows = {"Alice": engine.row("vain", "Alice", PREFIX, HEADS["Alice"], 6, size=5)}
    engine.run(most=10**6)
    assert time.monotonic() - began >= 0.5
    engine.require_replay("vain", rows)


def test_an_ended_group_leaves_its_name_to_a_new_one(engine: Served) -> None:
    """The second group of a name sees nothing of the first."""
    for _ in range(2):
        rows = start(engine, "again", 10)
        engine.run()
        transcript = engine.require_replay("again", rows)
        assert len(transcript.tokens) == 3
    assert len(list(engine.records.glob("again.*.json"))) == 2


def test_groups_and_ordinary_requests_run_side_by_side(engine: Served) -> None:
    """Three groups with different layouts and an ordinary request: each as if it were alone."""
    prompt = ids(50, seed=11)
    alone = engine.add(prompt, 25)
    engine.run()
    separators = tuple(token for token in range(VOCABULARY) if token % 5 < 3)
    groups = {
        layout: start(engine, f"side-{layout}", 20, layout=layout, steps=separators)
        for layout in ("contiguous", "interleaved", "combined")
    }
    beside = engine.add(prompt, 25)
    engine.run()
    for layout, rows in groups.items():
        engine.require_replay(f"side-{layout}", rows)
    assert engine.written[beside].tokens == engine.written[alone].tokens


def test_a_token_that_ends_a_row_is_not_seen_by_others(engine: Served) -> None:
    """The row stops at it, and only what it had computed before stays in sight."""
    first = start(engine, "unstopped", 20)
    engine.run()
    wrote = engine.written[first["Bob"]].tokens
    stop = next(token for index, token in enumerate(wrote) if index > 3 and token not in wrote[:3])
    rows = {
        worker: engine.row(
            "stop",
            worker,
            PREFIX,
            head,
            20,
            size=3,
            stop_token_ids=[stop] if worker == "Bob" else None,
        )
        for worker, head in HEADS.items()
    }
    engine.run()
    transcript = engine.require_replay("stop", rows)
    found = engine.written[rows["Bob"]]
    assert found.finish == "stop"
    assert len(found.tokens) == wrote.index(stop) + 1
    assert transcript.tokens["Bob"] == (*HEADS["Bob"], *found.tokens[:-1])


def test_log_probabilities_are_those_of_one_dense_pass(engine: Served) -> None:
    """Not only the likeliest token: the numbers agree to 1e-3."""
    rows = start(engine, "logprobs", 12, logprobs=3)
    engine.run()
    transcript = engine.require_replay("logprobs", rows)
    again = engine.reference().replay(transcript)
    for worker, row in rows.items():
        told = len(HEADS[worker])
        expected = again.rows[worker][told - 1 :].log_softmax(-1)
        for found, position in zip(engine.written[row].logprobs or (), expected, strict=True):
            for token, value in found.items():
                assert abs(value.logprob - float(position[token])) < 1e-3


SETTINGS: dict[str, dict[str, Any]] = {
    "presence penalty": {"presence_penalty": 1.5},
    "frequency penalty": {"frequency_penalty": 1.5},
    "repetition penalty": {"repetition_penalty": 1.8},
    "bias": {"logit_bias": {7: 9.0, 11: 9.0}},
    "allowed tokens": {"allowed_token_ids": list(range(20, 60))},
}


def picked(scores: torch.Tensor, prompt: list[int], settings: dict[str, Any]) -> list[int]:
    """What an ordinary request with ``prompt`` picks from ``scores`` [tokens, vocabulary]."""
    written: list[int] = []
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[prompt] = True
    for row in scores:
        counts = torch.bincount(torch.tensor(written, dtype=torch.int64), minlength=VOCABULARY)
        penalty = settings.get("repetition_penalty", 1.0)
        again = torch.where(row > 0, row / penalty, row * penalty)
        row = torch.where(seen | (counts > 0), again, row)
        row = row - settings.get("frequency_penalty", 0.0) * counts
        row = row - settings.get("presence_penalty", 0.0) * (counts > 0)
        for token, bias in settings.get("logit_bias", {}).items():
            row[token] += bias
        if allowed := settings.get("allowed_token_ids"):
            row[[token for token in range(VOCABULARY) if token not in allowed]] = -torch.inf
        if len(written) < settings.get("min_tokens", 0):
            row[settings["stop_token_ids"]] = -torch.inf
        written.append(int(row.argmax()))
    return written


def require_picks(
    engine: Served, group: str, rows: dict[str, str], settings: dict[str, Any]
) -> None:
    """Each row wrote what ``settings`` make of the scores of one dense pass."""
    again = engine.reference().replay(engine.transcript(group))
    for worker, row in rows.items():
        written = engine.written[row]
        scores = again.rows[worker][len(written.prompt) - len(PREFIX) - 1 :]
        assert written.tokens == picked(scores, written.prompt, settings)


@pytest.mark.parametrize("what", SETTINGS)
def test_a_rows_sampling_settings_are_those_of_an_ordinary_request(
    engine: Served, what: str
) -> None:
    """Penalties count what the row itself was told and wrote, not what it sees of others."""
    rows = start(engine, f"set {what}", 14, **SETTINGS[what])
    engine.run()
    require_picks(engine, f"set {what}", rows, SETTINGS[what])
    with pytest.raises(AssertionError):
        engine.require_replay(f"set {what}", rows)


def test_a_row_does_not_end_before_its_least_tokens(engine: Served) -> None:
    """A token that would end it is not written until then; afterwards it ends the row."""
    free = start(engine, "free", 8)
    engine.run()
    stops = sorted({engine.written[row].tokens[2] for row in free.values()})
    settings = {"stop_token_ids": stops, "min_tokens": 6}
    rows = start(engine, "least", 60, **settings)
    engine.run()
    require_picks(engine, "least", rows, settings)
    for row in rows.values():
        assert len(engine.written[row].tokens) > 6
        assert not set(stops) & set(engine.written[row].tokens[:6])
    assert "stop" in {engine.written[row].finish for row in rows.values()}


def test_a_row_that_would_not_take_the_prefix_from_the_cache_is_refused(engine: Served) -> None:
    """It would hold blocks that nobody was promised."""
    with pytest.raises(VLLMValidationError, match="skip_reading_prefix_cache"):
        engine.row("own", "A", PREFIX, HEADS["Bob"], 4, skip_reading_prefix_cache=True)


def test_a_seed_of_a_row_is_its_own(engine: Served) -> None:
    """Seeded rows repeat themselves."""
    texts = []
    for _ in range(2):
        rows = start(engine, "seeded", 15, temperature=1.5, seed=7)
        engine.run()
        texts.append([engine.written[row].tokens for row in rows.values()])
    assert texts[0] == texts[1]


def test_the_prefix_is_computed_once_and_shared(engine: Served) -> None:
    """The second and third row take the whole blocks of the prefix from the first."""
    engine.scheduler.reset_prefix_cache()
    rows = start(engine, "shared", 4)
    engine.step()
    held = engine.blocks - engine.free
    engine.run()
    assert [engine.written[row].cached for row in rows.values()] == [0, 64, 64]
    assert held == 2 + 3  # two whole blocks in common, one more each


def test_the_prefix_cache_is_not_poisoned(engine: Served) -> None:
    """Ordinary requests for the very texts of a group compute them anew, and as before."""
    prompts = [[*PREFIX, *ids(60, seed=20 + k)] for k in range(3)]
    before = [engine.add(prompt, 20) for prompt in prompts]
    engine.run()
    engine.scheduler.reset_prefix_cache()
    rows = {
        f"w{k}": engine.row("poison", f"w{k}", PREFIX, prompt[70:], 40, size=3)
        for k, prompt in enumerate(prompts)
    }
    engine.run()
    engine.require_replay("poison", rows)
    after = [engine.add(prompt, 20) for prompt in prompts]
    engine.run()
    for old, new in zip(before, after, strict=True):
        assert engine.written[new].tokens == engine.written[old].tokens
        assert engine.written[new].cached == 64  # the whole blocks of the prefix


def test_a_row_takes_no_more_than_the_prefix_from_the_cache(engine: Served) -> None:
    """What an ordinary request computed of a head, it computed without the others in sight."""
    heads = {name: ids(70, seed=30 + k) for k, name in enumerate(HEADS)}
    for head in heads.values():
        engine.add([*PREFIX, *head], 4)
    engine.run()
    rows = {
        name: engine.row("clip", name, PREFIX, head, 10, size=3) for name, head in heads.items()
    }
    engine.run()
    engine.require_replay("clip", rows)
    assert [engine.written[row].cached for row in rows.values()] == [64, 64, 64]


def test_the_running_group_survives_a_reset_of_the_prefix_cache(engine: Served) -> None:
    """A reset that would preempt all that runs is refused while a group is alive."""
    rows = start(engine, "reset", 12)
    engine.steps(4)
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True) is False
    engine.run()
    engine.require_replay("reset", rows)


REFUSALS = {
    "another prefix": ("A", [*PREFIX[:-1], PREFIX[-1] ^ 1], {}, "token 69 of the prefix"),
    "a shorter prefix": ("A", PREFIX[:-1], {}, "hogwild_prefix 69, but its group has 70"),
    "another layout": ("A", PREFIX, {"layout": "combined"}, "hogwild_layout 'combined'"),
    "a name that is taken": ("Alice", PREFIX, {}, "'Alice' of group 'mixed' is there already"),
    "too many rows": ("A", PREFIX, {"size": 99}, "expects 99 rows"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_row_that_does_not_fit_its_group_is_refused_alone(engine: Served, what: str) -> None:
    """It ends with an error that says why; the group and others go on untouched."""
    rows = start(engine, "mixed", 12)
    engine.steps(3)
    worker, prefix, settings, said = REFUSALS[what]
    odd = engine.row("mixed", worker, prefix, HEADS["Bob"], 12, **settings)  # type: ignore[arg-type]
    ordinary = engine.add(ids(20, seed=9), 5)
    engine.run()
    assert engine.written[odd].finish == "error"
    assert said in str(engine.written[odd].reason)
    assert len(engine.written[ordinary].tokens) == 5
    engine.require_replay("mixed", rows)
