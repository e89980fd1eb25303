"""Rows of one group have one adapter and one cache salt; who has another is refused alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from adapters import RANK, adapted
from driving import plain
from served import HEADS, PREFIX, Served, served, start
from tiny import ids, tiny
from vllm.lora.request import LoRARequest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

NAMES = ("french", "german")
PROMPT = ids(20, seed=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny(dtype=torch.float32)


@pytest.fixture(scope="module")
def merged(base: Any, folder: Path) -> dict[str, Any]:
    """The model with each adapter in its weights."""
    return {name: adapted(base, folder / name, seed=k) for k, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def adapters(merged: dict[str, Any], folder: Path) -> dict[str, LoRARequest]:
    return {name: LoRARequest(name, k, str(folder / name)) for k, name in enumerate(merged, 1)}


@pytest.fixture(scope="module")
def shared(base: Any, adapters: dict[str, LoRARequest], folder: Path) -> Iterator[Served]:
    # vLLM's CPU kernels give requests without an adapter the one in the last place: it stays empty.
    places = len(adapters) + 1
    with served(
        base, folder / "served", enable_lora=True, max_loras=places, max_lora_rank=RANK
    ) as engine:
        yield engine


@pytest.fixture
def engine(shared: Served, base: Any) -> Iterator[Served]:
    """Whatever a test did, an ordinary request beside it wrote what it always writes."""
    beside = shared.add(PROMPT, 12)
    yield shared
    assert shared.written[beside].tokens == plain(base, PROMPT, 12)
    shared.model = base
    shared.require_clean()


def test_a_group_of_one_adapter_is_exact(
    engine: Served, merged: dict[str, Any], adapters: dict[str, LoRARequest]
) -> None:
    """It writes what the model with the adapter in its weights does, and the base model does not;
    two groups with different adapters at once."""
    groups = {name: start(engine, name, 16, adapter=adapters[name]) for name in NAMES}
    engine.run()
    for name, rows in groups.items():
        engine.model = merged[name]
        engine.require_replay(name, rows)
        engine.model = merged[next(other for other in NAMES if other != name)]
        with pytest.raises(AssertionError):
            engine.require_replay(name, rows)


def test_a_row_with_another_adapter_is_refused_alone(
    engine: Served, merged: dict[str, Any], adapters: dict[str, LoRARequest]
) -> None:
    """It is told both names; the group goes on exactly, and so does who asks for that adapter."""
    rows = start(engine, "one", 12, adapter=adapters["french"])
    engine.steps(3)
    odd = {
        name: engine.row("one", str(name), PREFIX, HEADS["Bob"], 12, adapter=adapter)
        for name, adapter in (("german", adapters["german"]), (None, None))
    }
    beside = engine.add(PROMPT, 12, adapter=adapters["german"])
    engine.run()
    for name, row in odd.items():
        assert engine.written[row].finish == "error"
        said = f"has LoRA adapter {name!r}, but its group has 'french'"
        assert said in str(engine.written[row].reason)
    assert engine.written[beside].tokens == plain(merged["german"], PROMPT, 12)
    engine.model = merged["french"]
    engine.require_replay("one", rows)


def test_a_row_with_another_adapter_is_refused_before_the_group_begins(
    engine: Served, merged: dict[str, Any], adapters: dict[str, LoRARequest]
) -> None:
    """Who came first says which adapter the group has."""
    rows = {"Alice": engine.row("first", "Alice", PREFIX, HEADS["Alice"], 8, size=2)}
    odd = engine.row("first", "Bob", PREFIX, HEADS["Bob"], 8, size=2, adapter=adapters["german"])
    rows["Carol"] = engine.row("first", "Carol", PREFIX, HEADS["Carol"], 8, size=2)
    engine.run()
    assert "has LoRA adapter 'german', but its group has None" in str(engine.written[odd].reason)
    engine.require_replay("first", rows)


def test_a_row_with_another_salt_is_refused_alone_and_told_nothing(engine: Served) -> None:
    """A salt is a secret: the message names none, nor a token of the group's prefix."""
    rows = start(engine, "salted", 16, salt="Alice's own")
    engine.steps(3)
    other = [*PREFIX[:-1], PREFIX[-1] ^ 1]
    odd = {
        salt: engine.row("salted", "odd", other, HEADS["Bob"], 16, salt=salt)
        for salt in ("Mallory's", None)
    }
    engine.run()
    for row in odd.values():
        assert engine.written[row].finish == "error"
        said = str(engine.written[row].reason)
        assert "has another cache_salt than its group" in said
        assert "Alice" not in said
        assert "token" not in said
    engine.require_replay("salted", rows)


def test_the_prefix_of_a_salted_group_is_cached_for_its_salt_only(engine: Served) -> None:
    """Rows of one salt hold the prefix in common; others compute it anew."""
    engine.run()
    engine.scheduler.reset_prefix_cache()
    rows = start(engine, "private", 8, salt="a")
    engine.run()
    same, none = (engine.add([*PREFIX, *PROMPT], 4, salt=salt) for salt in ("a", None))
    engine.run()
    assert [engine.written[row].cached for row in rows.values()] == [0, 64, 64]
    assert (engine.written[same].cached, engine.written[none].cached) == (64, 0)
    assert engine.written[same].tokens == engine.written[none].tokens
    engine.require_replay("private", rows)
