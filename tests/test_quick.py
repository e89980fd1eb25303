"""Values that are made often: quicker to make, and in everything else frozen dataclasses."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
from mypy import api
from pydantic import TypeAdapter

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
]


@pytest.mark.parametrize("value", MADE, ids=lambda value: type(value).__name__)
def test_a_type_checker_refuses_to_change_a_value(value: Any, tmp_path: Path) -> None:
    """mypy takes it for the frozen dataclass that it is declared to be."""
    kind, first = type(value), fields(value)[0].name
    text = f"from {kind.__module__} import {kind.__name__} as V\ndef f(v: V) -> None:\n    "
    (tmp_path / "changes.py").write_text(f"{text}v.{first} = v.{first}\n")
    stdout, _, status = api.run([str(tmp_path / "changes.py"), "--follow-imports=silent"])
    assert status == 1
    assert f'Property "{first}" defined in "{kind.__name__}" is read-only' in stdout


def test_dev_mode_keeps_the_guard() -> None:
    """With ``python -X dev`` an assignment raises."""
    code = "from agentpar.events import TaskDone; TaskDone(1, None).at = 2.0"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True)
    assert "FrozenInstanceError" in done.stderr


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


def test_pydantic_makes_it_from_data() -> None:
    """As any other dataclass."""
    assert TypeAdapter(Quick).validate_python({"id": 1, "at": 2}) == Quick(1, at=2.0)


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
