"""Values that are made often: quicker to make, and in everything else frozen dataclasses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest

from agentpar.events import TaskDone, TaskPlanned, TaskStarted
from agentpar.executor.commands import Execute
from agentpar.plan import Ok, Task
from agentpar.quick import quick


@dataclass(frozen=True, slots=True)
class Slow:
    """What `Quick` must not differ from."""

    id: int
    args: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    note: str = field(default="", compare=False, repr=False)


@quick
@dataclass(frozen=True, slots=True)
class Quick:
    """`Slow`, made quickly."""

    id: int
    args: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    note: str = field(default="", compare=False, repr=False)


MADE = [
    TaskPlanned(1, Task.of(1, "echo")),
    TaskStarted(1, {"value": 2}, 0.5),
    TaskDone(1, Ok([1]), 1.0, 2, "cache"),
    Execute(Task.of(1, "echo"), {"value": 2}, retry=True),
    Ok("text"),
]


@pytest.mark.parametrize("value", MADE, ids=lambda value: type(value).__name__)
def test_a_value_cannot_be_changed(value: Any) -> None:
    """The guard of a frozen dataclass stands, also against names that are no fields."""
    for name in (fields(value)[0].name, "other"):
        with pytest.raises((FrozenInstanceError, TypeError)):
            setattr(value, name, 0)
    with pytest.raises(FrozenInstanceError):
        delattr(value, fields(value)[0].name)


@pytest.mark.parametrize("value", MADE, ids=lambda value: type(value).__name__)
def test_a_value_can_be_copied_and_sent(value: Any) -> None:
    """copy, deepcopy, pickle and replace() give an equal value of the same class."""
    copies = [copy.copy(value), copy.deepcopy(value), replace(value)]
    copies.append(pickle.loads(pickle.dumps(value)))
    for other in copies:
        assert other == value
        assert type(other) is type(value)


@pytest.mark.parametrize(
    ("given", "named"),
    [((1,), {}), ((1, {"a": 2}), {}), ((1,), {"at": 2.0, "note": "x"}), ((), {"id": 3})],
)
def test_it_is_what_the_plain_dataclass_is(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """The same arguments give the same fields, text and equality."""
    slow, made = Slow(*given, **named), Quick(*given, **named)
    assert [getattr(made, f.name) for f in fields(made)] == [
        getattr(slow, f.name) for f in fields(slow)
    ]
    assert repr(made) == repr(slow).replace("Slow", "Quick")
    assert made == Quick(*given, **{**named, "note": "another"})
    assert made != slow
    assert hash(Quick(1, (), 2.0)) == hash(Slow(1, (), 2.0))  # type: ignore[arg-type]


def test_every_value_has_a_default_of_its_own() -> None:
    """What a factory makes is made anew each time."""
    assert Quick(1).args == {}
    assert Quick(1).args is not Quick(1).args


@pytest.mark.parametrize(("given", "named"), [((), {}), ((1,), {"id": 1}), ((1,), {"where": 1})])
def test_wrong_arguments_are_refused(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """As by any other function."""
    with pytest.raises(TypeError):
        Quick(*given, **named)


def test_a_class_that_does_more_than_hold_fields_is_refused() -> None:
    """Its ``__post_init__`` would never run."""

    @dataclass(frozen=True, slots=True)
    class Checked:
        id: int

        def __post_init__(self) -> None:
            """Check."""

    with pytest.raises(AssertionError):
        quick(Checked)
