"""A group's life: who ends how and why, what it costs in blocks, and that nothing is left."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from driving import Scores, compare_with_replay, finish, held, step, writing
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, ids, tiny

from agentpar.errors import CacheFull, UsageError
from agentpar.runtime.hogwild.engine import Engine, Group
from agentpar.runtime.hogwild.engine.blocks import Pool
from agentpar.runtime.hogwild.engine.picking import Picker
from agentpar.runtime.hogwild.sampling import Sampling
from agentpar.workers import Layout

LAYOUTS: tuple[Layout, ...] = ("contiguous", "interleaved", "combined")


@cache
def model(kv_heads: int = 2, layers: int = 2, **config: Any) -> Any:
    """A model that several tests use; none of them changes it."""
    return tiny(kv_heads=kv_heads, layers=layers, **config)


# Any sequence of actions

actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("join"),
            st.integers(0, 20),  # tokens of the head
            st.builds(
                Sampling,
                max_tokens=st.integers(1, 12),
                temperature=st.sampled_from([0.0, 0.0, 1.5]),
                top_p=st.sampled_from([1.0, 0.8]),
                seed=st.integers(0, 5),
                stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=20),
            ),
        ),
        st.tuples(st.just("inject"), st.integers(0, 20)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("begin"), st.integers(0, 40), st.sampled_from(LAYOUTS)),
        st.tuples(st.just("close")),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(
    script=actions,
    first=st.tuples(st.integers(0, 40), st.sampled_from(LAYOUTS)),
    kv_heads=st.sampled_from([1, 2, 4]),
    blocks=st.sampled_from([12, 100]),
    block_size=st.sampled_from([1, 4, 16]),
    chunk=st.sampled_from([1, 5, 64]),
)
def test_whatever_happens_to_groups(
    script: list[tuple[Any, ...]],
    first: tuple[int, Layout],
    kv_heads: int,
    blocks: int,
    block_size: int,
    chunk: int,
) -> None:
    """Each block is held by as many as use it, all groups end, all are as in one dense pass, and
    at the end the pool is full."""
    engine = Engine(model(kv_heads), blocks=blocks, block_size=block_size, chunk=chunk)
    groups: list[tuple[Group, Scores]] = []

    def begin(prefix: int, layout: Layout) -> None:
        try:
            group = engine.group(ids(prefix, prefix), layout=layout, separators=range(40))
        except (CacheFull, UsageError):
            return
        groups.append((group, {}))

    begin(*first)
    for number, (what, *details) in enumerate(script):
        if what == "begin":
            begin(*details)
        if not groups or what == "begin":
            continue
        group, scores = groups[-1]
        name = f"row{number}"
        try:
            match what, details:
                case "join", [head, sampling]:
                    group.join(name, ids(head, number), sampling)
                case "inject", [count]:
                    group.inject(name, ids(count, number))
                case "leave", [which]:
                    group.leave([*group.members][which])
                case "step", [times]:
                    for _ in range(times):
                        step(group, scores)
                case "close", []:
                    group.close()
        except (CacheFull, UsageError, IndexError):
            pass  # no room, an empty row, a closed group, nobody there: nothing has happened
        assert held(engine, [group for group, _ in groups])
    for group, scores in groups:
        steps = 0
        while group.running:
            step(group, scores)
            steps += 1
            assert steps < 200
        group.close()
        compare_with_replay(engine, group, scores, 1e-10)
    assert engine.cache.pool.free == blocks


class TestEnds:
    """Why a row writes no more."""

    @pytest.fixture
    def group(self) -> Group:
        return Engine(model()).group(ids(20, 1))

    def test_a_stop_token_is_the_last(self, group: Group) -> None:
        """It is in the output, and was never computed on."""
        free = group.join("Free", ids(3, 1), writing(9))
        finish(group)
        alone = Engine(model()).group(ids(20, 1))
        stop = free.output[4]
        member = alone.join("Bob", ids(3, 1), Sampling(stop=frozenset({stop})))
        finish(alone)
        assert member.finish == "stop"
        assert member.output == free.output[: free.output.index(stop) + 1]
        assert member.computed == len(member.own) - 1

    def test_so_is_the_models_end_of_text_unless_it_is_ignored(self) -> None:
        """The end of text is the model's own."""
        free = Engine(model()).group(ids(20, 1))
        expected = free.join("Free", ids(3, 1), writing(9))
        finish(free)
        end = expected.output[3]
        ending = tiny(layers=2)
        ending.generation_config.eos_token_id = [end]
        group = Engine(ending).group(ids(20, 1))
        member = group.join("Bob", ids(3, 1), Sampling(max_tokens=9))
        finish(group)
        assert member.finish == "stop"
        assert member.output[-1] == end
        again = Engine(ending).group(ids(20, 1))
        member = again.join("Bob", ids(3, 1), Sampling(max_tokens=9, ignore_eos=True))
        finish(again)
        assert member.output == expected.output

    def test_at_its_limit_left_read_and_cancelled(self, group: Group) -> None:
        """One of each, and what they wrote stays in sight until the group is closed."""
        group.join("Short", ids(3, 1), writing(2))
        group.join("Bob", ids(3, 2), writing(50))
        group.join("Carol", ids(3, 3), writing(50))
        group.inject("tool", ids(4, 4))
        for _ in range(5):
            group.step()
        group.leave("Bob")
        group.step()
        group.leave("Bob")  # nothing more
        blocks = group.blocks
        assert all(blocks)
        group.close()
        found = {name: member.finish for name, member in group.members.items()}
        assert found == {"Short": "length", "Bob": "left", "Carol": "cancelled", "tool": "read"}
        assert [len(member.output) for member in group.members.values()] == [2, 4, 5, 0]
        transcript = group.transcript()
        assert [step.closed for step in transcript.steps] == [
            ("tool",), ("Short",), (), ("Bob",), (),
        ]  # fmt: skip

    def test_where_the_context_ends_a_worker_ends(self) -> None:
        """The place of a token in its view never passes what the model was trained for."""
        short = tiny(layers=1, max_position_embeddings=64)
        with Engine(short).group(ids(20, 1)) as group:
            group.join("Alice", ids(3, 1), writing(100))
            group.join("Bob", ids(3, 2), writing(100))
            finish(group)
        assert {member.finish for member in group.members.values()} == {"length"}
        *_, last = (board.view(name)[-1] for _, board in group.transcript().boards()
                    for name in board.rows)  # fmt: skip
        assert 60 <= last.at + last.stop - last.start <= 64
        with pytest.raises(UsageError, match="fills the model's context of 64"):
            Engine(short).group(ids(64, 1))
        with pytest.raises(UsageError, match="'Carol' would begin with 70 tokens"):
            Engine(short).group(ids(40, 1)).join("Carol", ids(30, 1))


def test_the_case_of_fifteen_blocks_ends() -> None:
    """Three workers, a pool that does not hold them all: two end early, all stay in sight."""
    engine = Engine(model(), blocks=15, block_size=32)
    with engine.group(ids(70, 1)) as group:
        for name, head in (("Alice", 5), ("Bob", 3), ("Carol", 9)):
            group.join(name, ids(head, head), writing(120))
        scores = finish(group)
        assert [member.finish for member in group.members.values()] == ["length"] * 3
        lengths = [len(member.output) for member in group.members.values()]
        assert lengths[1] == 120
        assert all(60 < lengths[number] < 120 for number in (0, 2))
        assert engine.cache.pool.free == 0
    compare_with_replay(engine, group, scores, 1e-10)
    assert engine.cache.pool.free == 15


class TestRoom:
    """What does not fit is refused before anything is computed."""

    def test_a_prefix_that_can_never_fit(self) -> None:
        """The message says how much there is, and which setting makes it more."""
        engine = Engine(model(), blocks=3, block_size=16)
        with pytest.raises(UsageError, match=r"needs 4 blocks of 16 tokens.*cache has 3.*blocks="):
            engine.group(ids(60, 1))
        assert engine.cache.pool.free == 3

    def test_a_head_that_does_not_fit_now(self) -> None:
        """The group goes on without it; when another group ends, there is room."""
        engine = Engine(model(), blocks=7, block_size=16)
        other = engine.group(ids(30, 2))
        with engine.group(ids(30, 1)) as group:
            alice = group.join("Alice", ids(3, 1), writing(5))
            with pytest.raises(CacheFull, match=r"row of 'Bob' needs 2 blocks.*1 of 7 are free"):
                group.join("Bob", ids(16, 1))
            finish(group)
            assert len(alice.output) == 5
            assert [*group.members] == ["Alice"]
            other.close()
            group.join("Bob", ids(16, 1), writing(3))
            finish(group)
        assert engine.cache.pool.free == 7

    def test_whole_blocks_of_the_prefix_are_shared(self) -> None:
        """Four workers on a prefix of 35 tokens: two blocks once, one for each and the group."""
        engine = Engine(model(), block_size=16)
        with engine.group(ids(35, 1)) as group:
            for name in "ABCD":
                group.join(name, ids(3, 1), writing(2))
            prefix, *rows = group.blocks
            assert all(row[:2] == prefix[:2] for row in rows)
            assert len({block for row in group.blocks for block in row}) == 2 + 5

    def test_an_attention_that_fails_takes_its_group_along_and_no_block(self) -> None:
        """Out of memory in the middle of a step: the group is closed, the engine goes on."""
        failing = False

        def fragile(*arguments: Any) -> torch.Tensor:
            if failing:
                raise RuntimeError("out of memory")
            from agentpar.runtime.hogwild.engine.attention import attend

            return attend(*arguments)

        engine = Engine(model(), attention=fragile)
        group = engine.group(ids(20, 1))
        group.join("Alice", ids(3, 1), writing(5))
        group.step()
        group.step()
        failing = True
        with pytest.raises(RuntimeError, match="out of memory"):
            group.step()
        assert group.members["Alice"].finish == "cancelled"
        assert engine.cache.pool.free == engine.cache.pool.count
        with pytest.raises(UsageError, match="this group is closed"):
            group.step()
        failing = False
        with engine.group(ids(20, 1)) as group:
            group.join("Alice", ids(3, 1), writing(5))
            finish(group)


class TestMistakes:
    """A caller's mistake raises, and leaves the group as it was."""

    def test_names(self) -> None:
        """One row, one name."""
        group = Engine(model()).group(ids(20, 1))
        group.join("Alice", ids(3, 1))
        with pytest.raises(UsageError, match="'Alice' is in the group already"):
            group.inject("Alice", ids(3, 1))
        with pytest.raises(UsageError, match="no 'Bob' in this group; it has 'Alice'"):
            group.leave("Bob")
        group.close()
        group.close()  # again: nothing
        for act in (lambda: group.join("Bob"), lambda: group.leave("Alice"), group.step):
            with pytest.raises(UsageError, match="this group is closed"):
                act()

    def test_a_row_of_nothing(self) -> None:
        """Without a token there is nothing to write after."""
        group = Engine(model()).group([])
        with pytest.raises(UsageError, match="'Alice' has nothing to begin with"):
            group.join("Alice")
        group.join("Alice", ids(1, 1), writing(3))
        finish(group)

    @pytest.mark.parametrize(
        "numbers",
        [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")},
         {"top_p": 0.0}, {"top_p": 1.1}],
    )  # fmt: skip
    def test_sampling(self, numbers: dict[str, Any]) -> None:
        """The message names the number."""
        with pytest.raises(UsageError, match=next(iter(numbers))):
            Sampling(**numbers)

    def test_a_dtype_that_is_none(self) -> None:
        """Told before gigabytes are read."""
        with pytest.raises(UsageError, match="'float99' is no dtype of torch"):
            Engine.load("nowhere", dtype="float99")

    @pytest.mark.parametrize("name", ["blocks", "block_size", "chunk"])
    def test_engine(self, name: str) -> None:
        """The message names the number."""
        with pytest.raises(UsageError, match=f"{name} is 0"):
            Engine(model(), **{name: 0})


class TestSteps:
    """What ends a step of a worker."""

    def test_only_what_a_worker_wrote_ends_its_step(self) -> None:
        """Separators in the prefix, a head or a tool's text are text."""
        group = Engine(model()).group(
            ids(20, 1), layout="interleaved", separators=range(VOCABULARY)
        )
        group.join("Alice", ids(7, 2), writing(4))
        group.inject("tool", ids(5, 3))
        finish(group)
        assert [step.ended for step in group.transcript().steps] == [
            (), ("Alice",), ("Alice",), ("Alice",),
        ]  # fmt: skip


class TestSampling:
    """Drawn tokens."""

    def outputs(self, *seeds: int, **settings: Any) -> list[list[int]]:
        group = Engine(model()).group(ids(20, 1))
        for number, seed in enumerate(seeds):
            group.join(
                f"row{number}",
                ids(3, 1),
                Sampling(max_tokens=12, seed=seed, ignore_eos=True, **settings),
            )
        finish(group)
        return [member.output for member in group.members.values()]

    def test_seeds_decide(self) -> None:
        """The same seeds write the same, others something else."""
        hot = {"temperature": 2.0}
        assert self.outputs(1, 2, **hot) == self.outputs(1, 2, **hot)
        one, two = self.outputs(1, 2, **hot)
        assert one != two
        assert self.outputs(3, 2, **hot)[0] != one

    def test_a_tiny_top_p_takes_the_likeliest(self) -> None:
        """As temperature 0 does."""
        assert self.outputs(1, temperature=1.0, top_p=1e-9) == self.outputs(1)

    def test_tokens_are_drawn_as_often_as_they_are_likely(self) -> None:
        """Within top_p, renormalised; beyond it never."""
        logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
        picker = Picker(Sampling(temperature=1.0, top_p=0.8, seed=7))
        counts = [0, 0, 0, 0]
        for _ in range(4000):
            counts[picker.pick(logits)] += 1
        assert counts[0] == 0
        shares = [count / 4000 for count in counts[1:]]
        assert shares == pytest.approx([0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9], abs=0.03)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "retain", "release"]), st.integers(0, 6)), max_size=60
    )
)
def test_a_pool_counts_what_is_held(moves: list[tuple[str, int]]) -> None:
    """Never two owners by chance, never lost, never freed twice."""
    pool = Pool(8)
    tables: list[list[int]] = []
    for move, number in moves:
        if move == "take":
            free = pool.free
            taken = pool.take(number)
            assert (taken is None) == (number > free)
            if taken is not None:
                held_now = {block for table in tables for block in table}
                assert not held_now & set(taken)
                tables.append(taken)
        elif tables and move == "retain":
            table = tables[number % len(tables)]
            pool.retain(table)
            tables.append(list(table))
        elif tables:
            pool.release(tables.pop(number % len(tables)))
        everywhere = [block for table in tables for block in table]
        assert pool.free == 8 - len(set(everywhere))
        assert all(pool.holders(block) == everywhere.count(block) for block in range(8))


def test_a_pool_knows_a_block_that_nobody_holds() -> None:
    """Sharing it or giving it back is a mistake in the program."""
    pool = Pool(2)
    with pytest.raises(ValueError, match="block 1 is free"):
        pool.retain([1])
    with pytest.raises(ValueError, match="block 0 is free already"):
        pool.release([0])
