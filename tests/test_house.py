"""The rules of the house: arrows go down, the face is small, importing is cheap."""

from __future__ import annotations

import ast
import inspect
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import agentpar

ROOT = Path(agentpar.__file__).parent

# From the ground up. A module may use its own floor and those below. A name stands for the
# module or package of that name and all that is in it.
FLOORS = (
    ("errors", "plan", "quick"),
    (
        "events",
        "policy",
        "ports",
        "net",
        "tools",
        "cache",
        "estimate",
        "ids",
        "plaintext",
        "fingerprint",
        "labels",
        "permissions",
        "resource",
        "gate",
        "optimize",
        "redact",
        "postgres",
        "sqlite",
        "workers",
    ),
    ("planner", "executor", "memory", "runtime", "miniweb"),
    (
        "agent",
        "answer",
        "fuzzing",
        "partial",
        "rivals",
        "run",
        "session",
        "teams",
        "thinking",
        "watchers",
    ),
    ("config", "display", "timeline", "drawing", "story", "langgraph", "langgraph_store", "watch"),
    ("cli", "doctor", "__init__"),
)
ROOMS = FLOORS[2]  # on one floor, and no door between them
FLOOR_OF = {name: number for number, names in enumerate(FLOORS, 1) for name in names}


# Two methods of Agent stand for a file above it (`from_yaml`, `as_graph`): a convenience that
# users look for there. The files load when the methods are called.
CONVENIENCES = {("agent", "config"), ("agent", "langgraph")}

HEAVY = (
    "torch",
    "vllm",
    "langgraph",
    "typer",
    "rich",
    "tantivy",
    "mcp",
    "pydantic",
    "httpx",
    "psycopg",
    "opentelemetry",
    "prometheus_client",
)


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path


MODULES = dict(_modules())
"""Every file of agentpar by its dotted name below ``agentpar``."""
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(module: str) -> Iterator[tuple[str, int]]:
    """The agentpar modules that ``module`` imports, anywhere in it, with the line."""
    for node in ast.walk(TREES[module]):
        match node:
            case ast.Import(names=aliases):
                found = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(source), names=aliases):
                found = [f"{source}.{alias.name}" for alias in aliases]
            case _:
                continue
        for name in found:
            if name.split(".")[0] == "agentpar":
                # `from agentpar.plan import Task` names something in a module.
                inside = name.removeprefix("agentpar").removeprefix(".") or "__init__"
                while inside not in MODULES and "." in inside:
                    inside = inside.rpartition(".")[0]
                yield inside if inside in MODULES else "__init__", node.lineno


def top(module: str) -> str:
    return module.split(".")[0]


ARROWS = [
    (module, target, line)
    for module in MODULES
    for target, line in imports(module)
    if (module, target) not in CONVENIENCES
]


def test_every_module_stands_on_a_floor() -> None:
    """A new file has to be given its place in FLOORS."""
    assert {top(module) for module in MODULES} <= set(FLOOR_OF)


def test_arrows_go_down() -> None:
    """No module imports from a floor above its own."""
    up = [
        f"{module}:{line} imports {target}"
        for module, target, line in ARROWS
        if FLOOR_OF[top(target)] > FLOOR_OF[top(module)]
    ]
    assert not up


def test_rooms_have_no_doors_to_each_other() -> None:
    """Planner, executor, memory, runtime and mini-web meet above, never sideways."""
    sideways = [
        f"{module}:{line} imports {target}"
        for module, target, line in ARROWS
        if top(module) != top(target) and {top(module), top(target)} <= set(ROOMS)
    ]
    assert not sideways


def test_no_two_modules_need_each_other() -> None:
    """Imports form no circle, those for type checkers and inside functions included."""
    graph = nx.DiGraph(
        (module, target)
        for module, target, _ in ARROWS
        if module != target and not target.startswith(f"{module}.")
    )
    circles = [names for names in nx.strongly_connected_components(graph) if len(names) > 1]
    assert not circles


def test_the_face_is_small_sorted_and_whole() -> None:
    """`__all__` is sorted, each name is there, and the file is at most 40 lines of code."""
    assert agentpar.__all__ == sorted(agentpar.__all__)
    for name in agentpar.__all__:
        assert getattr(agentpar, name).__name__ == name or name == "tool"
    assert sum(map(bool, (ROOT / "__init__.py").read_text().splitlines())) <= 40
    with pytest.raises(AttributeError, match="'Agnet'"):
        _ = agentpar.Agnet


def test_type_checkers_see_the_same_face() -> None:
    """The names under TYPE_CHECKING are those of `__all__`, from the same files."""
    (block,) = (node for node in TREES["__init__"].body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == agentpar.__all__
    for name, home in seen.items():
        assert getattr(agentpar, name) is getattr(sys.modules[str(home)], name)


def test_every_module_says_what_it_is() -> None:
    """Each file opens with a docstring."""
    assert not [module for module, tree in TREES.items() if not ast.get_docstring(tree)]


@pytest.mark.parametrize("name", agentpar.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    """What the face offers, and each public method of it, has a docstring of its own."""
    thing = getattr(agentpar, name)
    assert (thing.__doc__ or "").strip()
    if not inspect.isclass(thing):
        return
    for attribute, value in vars(thing).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if attribute.startswith("_") or not (
            inspect.isroutine(function) or isinstance(function, property)
        ):
            continue
        assert function.__doc__, f"{name}.{attribute} has no docstring"


def test_importing_agentpar_loads_nothing_heavy() -> None:
    """`import agentpar` takes less than 100 ms of work (best of three), and loads none of the heavy
    packages."""
    script = (
        "import sys, time; began = time.process_time(); import agentpar; "
        "print(time.process_time() - began); print(*sys.modules)"
    )
    seconds, loaded = [], set()
    for _ in range(3):
        first, _, rest = python("-c", script).partition("\n")
        seconds.append(float(first))
        loaded |= set(rest.split())
    assert not loaded.intersection(HEAVY)
    assert min(seconds) < 0.1


def test_help_comes_at_once() -> None:
    """`agentpar --help` takes less than half a second of work (best of three), Python's start
    included; on a busy machine one waits longer."""
    seconds = []
    for _ in range(3):
        began = worked()
        text = python("-m", "agentpar.cli", "--help")
        seconds.append(worked() - began)
    assert "doctor" in text
    assert min(seconds) < 0.5


def worked() -> float:
    """Seconds of the processor that child processes have had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
