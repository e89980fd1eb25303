"""From a file to an `AgentSpec`, or to every mistake in it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from agentpar.config.complaints import complaints
from agentpar.config.environment import fill
from agentpar.config.fields import (
    AgentFile,
    LimitFields,
    MemoryFields,
    ToolEntry,
    WatchFields,
    WorkerFields,
    revealed,
)
from agentpar.config.notes import idle_rules, outside, unmatched
from agentpar.config.shape import Remark, Shape, dotted
from agentpar.config.source import Loc, Mark, Node, read_text, read_yaml
from agentpar.config.tools import Make, makers
from agentpar.errors import ConfigError, UsageError
from agentpar.executor.journal import open_journal
from agentpar.memory.controller import load as load_controller
from agentpar.memory.settings import Memory
from agentpar.memory.store import open_store
from agentpar.permissions import Rule
from agentpar.planner.planner import plan_problems
from agentpar.planner.prompts import Example
from agentpar.policy import PolicyFields, Price
from agentpar.ports import Watch
from agentpar.redact import SHORTEST
from agentpar.teams import Teams
from agentpar.thinking import planned_think
from agentpar.tools.base import Tool
from agentpar.workers import Workers

_BACKENDS: dict[str, Literal["auto", "log"]] = {"hogwild": "auto", "log": "log"}
_AUTO = {"auto": None, "always": True, "never": False}
_LIMITS = tuple(LimitFields.model_fields)


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent as a file describes it.

    ``fields`` hold what the file says, credentials hidden. ``notes`` are lines worth showing
    that are no mistakes: a field known by another word, examples that cannot be checked, a
    pattern that matches no tool.
    """

    path: Path
    fields: AgentFile
    notes: tuple[str, ...]
    makers: tuple[Make, ...]

    @property
    def name(self) -> str:
        """What the agent is called."""
        return self.fields.name

    @property
    def journal(self) -> str | None:
        """The address of its journal; a file's name is seen from the folder of ``path``."""
        journal = self.fields.journal
        return None if journal is None else _from(self.path, revealed(journal.url))

    @property
    def keep(self) -> float | None:
        """Seconds for which the journal keeps a run that has ended; None for ever."""
        return None if self.fields.journal is None else self.fields.journal.keep

    @property
    def memory(self) -> Memory | None:
        """What it says of its bank; a file's name is seen from the folder of ``path``."""
        return None if self.fields.memory is None else _memory(self.fields.memory, self.path)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `agentpar.agent.Agent`.

        ``tools`` holds tools and closed sources of tools; sources are new at each call, so
        that two agents made from one file do not share them. Without ``model:`` in the file
        there is no ``model``, and the caller gives one.
        """
        file = self.fields
        arguments: dict[str, Any] = {
            "tools": [make() for make in self.makers],
            "name": file.name,
            "instructions": file.instructions,
            "grammar": _AUTO[file.planner.grammar],
            "prefill": _AUTO[file.planner.prefill],
            "max_plan_tokens": file.planner.max_tokens,
            "max_plan_lines": file.planner.max_lines,
            "max_tasks": file.planner.max_tasks,
            "max_replans": file.planner.replans,
            "replan_early": file.planner.replan_on == "failure",
            "extended_plans": file.planner.extended,
            "concurrency": file.defaults.concurrency,
            "timeout": file.defaults.timeout,
            "policies": _policies(file) or None,
            "permissions": rules(file),
            "watch": tuple(_watchers(file.watch)),
            "secrets": tuple(map(revealed, file.secrets)),
            **{name: getattr(file.limits, name) for name in _LIMITS},
        }
        if file.planner.examples is not None:
            arguments["examples"] = tuple(
                Example(example.question, example.plan) for example in file.planner.examples
            )
        if file.workers is not None:
            arguments["workers"] = _workers(file.workers)
        if file.teams is not None:
            arguments["teams"] = Teams(file.teams.n, file.teams.select)
        if self.memory is not None:
            arguments["memory"] = self.memory
        if self.journal is not None:
            kept = self.keep is not None
            arguments["journal"] = (
                open_journal(self.journal, keep=self.keep) if kept else self.journal
            )
        if file.model is not None:
            model = file.model
            arguments["model"] = model.base_url or model.id
            arguments["model_id"] = model.id if model.base_url else None
            arguments["api_key"] = revealed(model.api_key)
            arguments["model_concurrency"] = model.concurrency
            arguments["temperature"] = model.settings.temperature
            arguments["seed"] = model.settings.seed
            arguments["max_answer_tokens"] = model.settings.max_tokens
            if model.price.model_fields_set:
                arguments["price"] = Price(model.price.prompt, model.price.completion)
        return arguments


def _workers(said: WorkerFields) -> Workers:
    return Workers(**said.model_dump(exclude={"mode"}), backend=_BACKENDS[said.mode])


def _memory(said: MemoryFields, path: Path) -> Memory:
    """The bank; a file's name is seen from the folder of ``path``."""
    bank = revealed(said.bank)
    return Memory(
        None if bank is None else _from(path, bank),
        said.scope,
        said.admission,
        said.ttl,
        said.lease,
        said.namespace,
        offers=said.offers,
        controller=said.controller and str(path.resolve().parent / said.controller),
    )


def _policies(file: AgentFile) -> dict[str, PolicyFields]:
    """What the file says of how tools are called, by pattern; later entries win."""
    found: dict[str, dict[str, Any]] = {}
    entries: list[tuple[list[str], dict[str, Any]]] = [
        (["*"], {"retries": file.defaults.retries, "rate": file.defaults.rate})
    ]
    for entry in file.policies:
        patterns = [entry.tools] if isinstance(entry.tools, str) else entry.tools
        entries.append((patterns, entry.model_dump(exclude={"tools"})))
    for patterns, said in entries:
        said = {name: value for name, value in said.items() if value is not None}
        for pattern in patterns if said else ():
            # A pattern that comes again goes behind those between, as the file has it.
            found[pattern] = {**found.pop(pattern, {}), **said}
    return cast("dict[str, PolicyFields]", found)


def rules(file: AgentFile) -> tuple[Rule, ...]:
    """The rules under ``permissions:``, in their order."""
    return tuple(Rule(rule.tools, rule.action, rule.data) for rule in file.permissions)


def load_journal(
    path: str | os.PathLike[str], *, env: Mapping[str, str] | None = None
) -> AgentSpec:
    """What `load` reads, of ``journal:`` alone: no module need be allowed for it."""
    return _load_alone("journal", _check_journal, path, env)


def load_memory(path: str | os.PathLike[str], *, env: Mapping[str, str] | None = None) -> AgentSpec:
    """What `load` reads, of ``memory:`` alone: no module need be allowed for it."""
    return _load_alone("memory", _check_memory, path, env)


def _load_alone(
    name: str,
    check: Callable[[AgentFile, Node, Shape], None],
    path: str | os.PathLike[str],
    env: Mapping[str, str] | None,
) -> AgentSpec:
    path = Path(path)
    root = _root(path)
    root = replace(root, value={k: v for k, v in root.value.items() if k == name})
    shape = Shape()
    root, unfilled = fill(root, os.environ if env is None else env)
    for loc, message in unfilled:
        shape.problems.append(Remark(root.find(loc).mark, f"{dotted(loc)}: {message}"))
    root = shape.fitted(root)
    fields = _fields(root, shape, {loc for loc, _ in unfilled})
    if fields is not None and not unfilled:
        check(fields, root, shape)
    if fields is None or shape.problems:
        raise ConfigError("\n".join(map(str, sorted(shape.problems))))
    return AgentSpec(path, fields, (), ())


def _root(path: Path) -> Node:
    root = read_yaml(read_text(path, str(path)), str(path))
    if not isinstance(root.value, dict):
        raise ConfigError(f"{root.mark}: an agent is a mapping with fields such as tools:")
    return root


def load(
    path: str | os.PathLike[str],
    *,
    allow_modules: Collection[str] = (),
    env: Mapping[str, str] | None = None,
) -> AgentSpec:
    """Read and check the agent that the YAML file at ``path`` describes; nothing is started.

    ``allow_modules`` names the Python modules (with what lies below them) that the file may
    import tools from; modules beside the file are found too. ``env`` fills in ``${…}``, by
    default `os.environ`.

    Raises `ConfigError` with one line per mistake, each ``file:line:column: field: what``.
    """
    path = Path(path)
    root = _root(path)
    shape = Shape()
    root = _with_files(root, path, shape)
    root, unfilled = fill(root, os.environ if env is None else env)
    for loc, message in unfilled:
        shape.problems.append(Remark(root.find(loc).mark, f"{dotted(loc)}: {message}"))
    root = shape.fitted(root)
    fields = _fields(root, shape, {loc for loc, _ in unfilled})
    made, known, mistakes = makers(
        _entries(root), folder=path.resolve().parent, allow_modules=allow_modules
    )
    for loc, message in mistakes:
        shape.problems.append(Remark(root.find(loc).mark, f"{dotted(loc)}: {message}"))
    if fields is not None:
        _check_secrets(fields, root, shape)
        if not any(loc[0] == "model" for loc, _ in unfilled):
            _check_model(fields, root, shape)
        if not any(loc[0] == "journal" for loc, _ in unfilled):
            _check_journal(fields, root, shape)
        if not any(loc[0] == "memory" for loc, _ in unfilled):
            _check_memory(fields, root, shape)
        if fields.workers is not None:
            known = {"think": planned_think(_workers(fields.workers)), **known}
        if not shape.problems:
            _check_examples(fields, root, known, shape)
            _add_notes(fields, root, known, shape)
    if fields is None or shape.problems:
        raise ConfigError("\n".join(map(str, sorted(shape.problems))))
    return AgentSpec(path, fields, tuple(map(str, sorted(shape.notes))), tuple(made))


def _fields(root: Node, shape: Shape, unfilled: set[Loc]) -> AgentFile | None:
    """The file's fields; None where values are wrong, which is then told.

    A value that could not be filled in has been told already.
    """
    try:
        return AgentFile.model_validate(root.plain())
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        wrong = [item for item in errors if tuple(item["loc"]) not in unfilled]
        shape.problems += complaints(wrong, root)
        return None


def _entries(root: Node) -> list[tuple[Loc, ToolEntry]]:
    """The tools that can be read, each with its place, also where other fields are wrong: so
    that all mistakes are told at once. What cannot be read is `_fields`' to tell."""
    tools = root.value.get("tools")
    entries: list[tuple[Loc, ToolEntry]] = []
    for index, node in enumerate(tools.value if tools and isinstance(tools.value, list) else ()):
        try:
            entry = ToolEntry.model_validate(node.plain())
        except ValidationError:
            continue
        if len(entry.model_fields_set) == 1:
            entries.append((("tools", index), entry))
    return entries


def _check_secrets(fields: AgentFile, root: Node, shape: Shape) -> None:
    for index, secret in enumerate(fields.secrets):
        if len(revealed(secret)) < SHORTEST:
            text = f"secrets[{index}]: must have at least {SHORTEST} characters"
            shape.problems.append(Remark(root.find(("secrets", index)).mark, text))


def _check_model(fields: AgentFile, root: Node, shape: Shape) -> None:
    model = fields.model
    if model is None:
        return
    here = root.find(("model",)).place
    if model.base_url is None and model.id is None:
        shape.problems.append(Remark(here, "model: id or base_url is needed"))
    elif model.base_url is None and model.api_key is not None:
        at = root.find(("model", "api_key")).place
        shape.problems.append(Remark(at, "model.api_key: goes with base_url, which is not given"))
    elif model.base_url is not None and not model.base_url.startswith(("http://", "https://")):
        at = root.find(("model", "base_url")).mark
        text = "must begin with http:// or https://, such as http://localhost:8000/v1"
        shape.problems.append(Remark(at, f"model.base_url: {text}"))


def _check_journal(fields: AgentFile, root: Node, shape: Shape) -> None:
    if fields.journal is None:
        return
    try:
        open_journal(revealed(fields.journal.url))
    except UsageError as error:
        at = root.find(("journal", "url")).mark
        shape.problems.append(Remark(at, f"journal: {error}"))


def _check_memory(fields: AgentFile, root: Node, shape: Shape) -> None:
    if fields.memory is None:
        return
    loc: Loc = ("memory",)
    try:
        memory = _memory(fields.memory, Path(root.mark.file))
        if memory.bank is not None:
            open_store(memory.bank)
        if memory.controller is not None:
            loc = ("memory", "controller")
            load_controller(memory.controller)
    except UsageError as error:
        text = str(error).removeprefix("memory: ")
        shape.problems.append(Remark(root.find(loc).mark, f"{dotted(loc)}: {text}"))


def _from(path: Path, url: str) -> str:
    """``url`` with the name of its file, where it has one, seen from the folder of ``path``."""
    start = "sqlite:///"
    if not url.startswith(start):
        return url
    return start + str(path.resolve().parent / url.removeprefix(start))


def _check_examples(fields: AgentFile, root: Node, known: Mapping[str, Tool], shape: Shape) -> None:
    """Every example plan must run with the tools, or it teaches the model mistakes."""
    examples = fields.planner.examples
    if examples is None:
        return
    at = root.find(("planner", "examples"))
    if any(entry.kind == "mcp" for entry in fields.tools):
        text = "planner.examples: not checked, as an MCP server's tools are known when it runs"
        shape.notes.append(Remark(at.place, text))
        return
    for index, example in enumerate(examples):
        loc = ("planner", "examples", index, "plan")
        for problem in plan_problems(example.plan, known):
            shape.problems.append(Remark(root.find(loc).mark, f"{dotted(loc)}: {problem}"))


def _add_notes(fields: AgentFile, root: Node, known: Mapping[str, Tool], shape: Shape) -> None:
    more = any(entry.kind == "mcp" for entry in fields.tools)
    shape.notes += unmatched(fields, root, known, more=more)
    shape.notes += idle_rules(rules(fields), root, known, more=more)
    file = Path(root.mark.file).name
    if fields.journal is not None:
        shape.notes += outside(revealed(fields.journal.url), file, root, ("journal", "url"))
    if fields.memory is not None and fields.memory.bank is not None:
        shape.notes += outside(revealed(fields.memory.bank), file, root, ("memory", "bank"))
        if "scope" not in fields.memory.model_fields_set:
            text = "memory: no later run uses this bank; with scope: project they do"
            shape.notes.append(Remark(root.find(("memory", "bank")).place, text))


def _watchers(fields: WatchFields) -> Iterator[Watch]:
    """Who watches; each loads its packages only where the file asks for it."""
    if fields.otel:
        from agentpar.watch.otel import OpenTelemetry

        yield OpenTelemetry(content=fields.content)
    if fields.prometheus is not None:
        from agentpar.watch.prometheus import Prometheus

        yield Prometheus(port=fields.prometheus.port, host=fields.prometheus.host)


# Files that the file names

_TEXT: Loc = ("instructions",)
_YAML: Loc = ("planner", "examples")


def _with_files(root: Node, path: Path, shape: Shape) -> Node:
    """``root`` with each ``{file: …}`` replaced by what that file holds."""
    entries = dict(root.value)
    for word in ("instructions", *_words_for("instructions")):
        if word in entries:
            entries[word] = _included(entries[word], path, (word,), shape, yaml=False)
    planner = entries.get("planner")
    if planner is not None and isinstance(planner.value, dict) and "examples" in planner.value:
        examples = _included(planner.value["examples"], path, _YAML, shape, yaml=True)
        entries["planner"] = replace(planner, value={**planner.value, "examples": examples})
    return replace(root, value=entries)


def _words_for(name: str) -> list[str]:
    return [word for word, meant in AgentFile.also.items() if meant == name]


def _included(node: Node, path: Path, loc: Loc, shape: Shape, *, yaml: bool) -> Node:
    """What ``{file: NAME}`` names; any other node as it is. A text file is taken as it is,
    ``${…}`` in it is text."""
    if not isinstance(node.value, dict) or list(node.value) != ["file"]:
        return node
    named = node.value["file"]
    here = f"{dotted(loc)}.file"
    empty = replace(node, value=[] if yaml else "")
    if not isinstance(named.value, str) or not named.value:
        shape.problems.append(Remark(named.mark, f"{here}: must be the name of a file"))
        return empty
    folder = path.resolve().parent
    try:
        target = (folder / named.value).resolve()
    except (OSError, ValueError, RuntimeError):
        shape.problems.append(Remark(named.mark, f"{here}: {named.value!r} is no file name"))
        return empty
    if not target.is_relative_to(folder):
        text = f"{here}: {named.value!r} lies outside the folder of {path.name}"
        shape.problems.append(Remark(named.mark, text))
        return empty
    name = str(path.parent / named.value)
    try:
        text = read_text(target, name)
        if yaml:
            return replace(read_yaml(text, name), key=node.key)
    except ConfigError as error:
        shape.problems.append(Remark(named.mark, f"{here}: {error}"))
        return empty
    return Node(text.strip().replace("${", "$${"), Mark(name), node.key, written=text)
