"""The record of a run: every event and every command as a JSON line, and the proof by replay.

A record starts with a header line (format, limits, permissions), so that it can be
replayed by itself. Reading one back feeds the events to a fresh machine and compares
what it wants with what was recorded: equal facts must give equal commands.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

from agentpar.errors import PlanError, UsageError
from agentpar.events import Citation, Event, FromTeam, Usage
from agentpar.executor.commands import Ask, Command, Execute, Expand, Settle
from agentpar.executor.machine import Machine
from agentpar.fingerprint import fingerprint
from agentpar.labels import Label, Origin
from agentpar.permissions import Permissions
from agentpar.plan import EACH, Failed, Ok, Pick, Ref, Skipped, Star, Task, is_special
from agentpar.policy import PLAIN, Limits, Policy, Price

FORMAT = 2

_EVENTS: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}
_OUTCOMES: dict[str, type] = {"ok": Ok, "failed": Failed, "skipped": Skipped}
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in dataclasses.fields(kind))
    for kind in (*_EVENTS.values(), *_OUTCOMES.values(), Usage, Citation)
}
"""Worked out once: it is asked for with every event."""
_OURS = frozenset(("$ref", "$pick", "$int", "$literal"))
_OUTCOME_NAMES = {kind: name for name, kind in _OUTCOMES.items()}


def encode(event: Event) -> dict[str, Any]:
    """``event`` as JSON-like data; `decode` gives back an equal event."""
    data: dict[str, Any] = {"event": type(event).__name__}
    if isinstance(event, FromTeam):
        return {**data, "team": event.team, "told": encode(event.told), "at": event.at}
    for name in _names(type(event)):
        data[name] = _encode(getattr(event, name))
    return data


def _encode(value: Any) -> Any:
    match value:
        case int() if value.bit_length() > 63:
            return {"$int": hex(value)}  # not every reader of JSON has numbers that large
        case None | bool() | int() | float() | str():
            return value
        case Ref():
            return {"$ref": _encode_ref(value)}
        case Pick(refs, k):
            return {"$pick": [k, *map(_encode_ref, refs)]}
        case Task():
            return {
                "id": value.id,
                "tool": value.tool,
                "args": _encode(value.args),
                "needs": list(value.needs),
                "thought": value.thought,
                **({"part": list(value.part)} if value.part is not None else {}),
            }
        case Ok() | Failed() | Skipped():
            data = {name: _encode(getattr(value, name)) for name in _names(type(value))}
            return {"outcome": _OUTCOME_NAMES[type(value)], **data}
        case Label() | Permissions():
            return value.as_data()
        case Usage() | Citation():
            return {name: getattr(value, name) for name in _names(type(value))}
        case Mapping():
            data = {str(key): _encode(item) for key, item in value.items()}
            # A tool's own "$ref" key must not come back as a reference.
            return {"$literal": data} if not data.keys().isdisjoint(_OURS) else data
        case list() | tuple():
            return [_encode(item) for item in value]
        case _:
            raise TypeError(f"{type(value).__name__} cannot be recorded: {value!r:.80}")


def _encode_ref(ref: Ref) -> list[Any]:
    """Its task and its path, in which null stands for `EACH`: a field may have any name."""
    return [ref.task, *(None if isinstance(step, Star) else step for step in ref.path)]


def _decode_ref(data: Sequence[Any]) -> Ref:
    task, *path = data
    return Ref(task, tuple(EACH if step is None else step for step in path))


def decode(data: Mapping[str, Any]) -> Event:
    """The event that `encode` turned into ``data``; `UsageError` where it is none of ours."""
    kind = _EVENTS.get(str(data.get("event")))
    if kind is None:
        raise UsageError(f"unknown event {data.get('event')!r}: written by another version?")
    try:
        fields = {n: _decode_field(n, value) for n, value in data.items() if n != "event"}
        event: Event = kind(**fields)
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"event {data.get('event')!r} cannot be read: {error}") from None
    return event


def _decode_field(name: str, value: Any) -> Any:
    match name:
        case "task":
            args = _decode(value["args"])
            part = tuple(value["part"]) if "part" in value else None
            needs, thought = tuple(value["needs"]), value["thought"]
            return Task(value["id"], value["tool"], args, needs, thought, is_special(args), part)
        case "outcome":
            kind = _OUTCOMES[value["outcome"]]
            return kind(**{key: _decode(item) for key, item in value.items() if key != "outcome"})
        case "label":
            return Label(**{n: tuple(Origin(**item) for item in value[n]) for n in value})
        case "usage":
            return Usage(**value)
        case "citations":
            return tuple(Citation(**item) for item in value)
        case "unsupported" | "changes" | "workers" | "faults" | "features" | "holder" | "producer":
            return tuple(value)
        case "permissions":
            return Permissions.from_data(value)
        case "told":
            return decode(value)
        case "votes":
            return {said: tuple(teams) for said, teams in _decode(value).items()}
        case _:
            return _decode(value)


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _decode_ref(value["$ref"])
        if "$pick" in value:
            k, *refs = value["$pick"]
            return Pick(tuple(map(_decode_ref, refs)), k)
        if "$int" in value:
            return int(value["$int"], 16)
        if "$literal" in value:
            value = value["$literal"]
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


def _names(kind: type) -> tuple[str, ...]:
    return _FIELDS[kind]


def encode_command(command: Command) -> dict[str, Any]:
    """``command`` as JSON-like data; a call's arguments stand as a SHA-256, as the
    `TaskStarted` event beside it has them in full."""
    name = type(command).__name__
    match command:
        case Execute(task, args, attempt, retry):
            data = {"command": name, "task_id": task.id, "tool": task.tool}
            data["inputs"] = fingerprint(args)
            if attempt > 1 or retry:
                data |= {"attempt": attempt, "retry": retry}
            return data
        case Ask(task, _, _, because, bound):
            data = {"command": name, "task_id": task.id, "tool": task.tool}
            return {**data, "because": because, "bound": bound}
        case Expand(task_id, parts):
            return {"command": name, "task_id": task_id, "parts": [part.id for part in parts]}
        case Settle(task_id, outcome, via):
            data = {"command": name, "task_id": task_id, "outcome": _encode(outcome)}
            return {**data, "via": via} if via else data
        case _:
            return {"command": name, **dataclasses.asdict(command)}


@dataclass(frozen=True, slots=True)
class Terms:
    """All that a machine decides by, besides the facts; see `Machine`."""

    limits: Limits
    permissions: Permissions = field(default_factory=Permissions)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seed: str = ""

    @classmethod
    def of(cls, machine: Machine) -> Terms:
        """Those that ``machine`` began with."""
        known = machine.known_latencies
        rules = machine.first_permissions
        return cls(machine.limits, rules, machine.policies, known, machine.seed)

    def machine(self) -> Machine:
        """A new machine that decides by these terms."""
        return Machine(
            self.limits,
            self.permissions,
            policies=self.policies,
            latencies=self.latencies,
            seed=self.seed,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-like data; `from_dict` gives back equal terms."""
        return {
            "limits": dataclasses.asdict(self.limits),
            "permissions": self.permissions.as_data(),
            "policies": {name: _changed(policy) for name, policy in self.policies.items()},
            "latencies": {name: list(found) for name, found in self.latencies.items()},
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Terms:
        limits = {**data["limits"], "price": Price(**data["limits"]["price"])}
        return cls(
            Limits(**limits),
            Permissions.from_data(data["permissions"]),
            {name: Policy(**changed) for name, changed in data["policies"].items()},
            {name: tuple(found) for name, found in data["latencies"].items()},
            data["seed"],
        )


def _changed(policy: Policy) -> dict[str, Any]:
    """The fields of ``policy`` that are not as by default."""
    fields = dataclasses.asdict(policy)
    return {n: v for n, v in fields.items() if v != getattr(PLAIN, n)}


class RecordWriter:
    """Appends a run to a JSONL file as it happens; every line is written whole.

    ``history`` is an earlier part of the run, which is written again: the file always holds
    all of it. Unless ``known``, without one the file must be new: no run writes over another.

    Use as a context manager. Entering it raises `UsageError` where the file is there already
    or cannot be made, a later write `OSError`. An open text file in the place of a path is
    written to and left open.
    """

    def __init__(
        self,
        path: Path | TextIO,
        machine: Machine,
        *,
        history: Sequence[Event] = (),
        known: bool = False,
    ) -> None:
        self.path = path
        self._machine = machine
        self._history = tuple(history)
        self._known = known or bool(self._history)
        self._file: TextIO | None = None

    def __enter__(self) -> RecordWriter:
        self._file = self._opened()
        terms = Terms.of(self._machine)
        self._write({"record": FORMAT, **terms.as_dict()})
        machine = terms.machine()
        for event in self._history:
            self.event(event)
            for command in machine.handle(event):
                self.command(command)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None and self._file is not self.path:
            self._file.close()
        self._file = None

    def event(self, event: Event) -> None:
        self._write(encode(event))

    def command(self, command: Command) -> None:
        self._write(encode_command(command))

    def _opened(self) -> TextIO:
        if not isinstance(self.path, Path):
            return self.path
        mode: Literal["w", "x"] = "w" if self._known else "x"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open(mode, encoding="utf-8", errors="surrogatepass", buffering=1)
        except OSError as error:
            if isinstance(error, FileExistsError) and self.path.is_file():
                raise UsageError(
                    f"there is a record of a run {self.path.parent.name!r} already "
                    f"({self.path}): give this run another run_id, or none"
                ) from None
            raise UsageError(
                f"the run cannot be recorded in {str(self.path.parent)!r} "
                f"({error.strerror or error}): give another folder for runs"
            ) from error

    def _write(self, data: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(data, ensure_ascii=False) + "\n")


@dataclass(frozen=True, slots=True)
class Record:
    """A record read back: the machine's terms, the events, the commands as recorded."""

    terms: Terms
    lines: tuple[Event | dict[str, Any], ...]

    @property
    def events(self) -> Iterator[Event]:
        return (line for line in self.lines if not isinstance(line, dict))


def read_record(path: Path) -> Record:
    """Read ``events.jsonl``. A torn last line (the process was killed while writing it) is
    left out; any other damage raises `UsageError` with the line's number."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no record at {str(path)!r}") from None
    return parse_record(whole, path)


def parse_record(whole: bytes, path: Path = Path("events.jsonl")) -> Record:
    """What `read_record` does, of a file's content; ``path`` is for the messages."""
    rows = whole.split(b"\n")
    torn = rows.pop()  # what follows the last newline: nothing, or a line half written
    if not rows:
        raise UsageError(f"{path}: the record is empty" + (", but for a torn line" if torn else ""))
    terms = _read_header(rows[0], path)
    lines: list[Event | dict[str, Any]] = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            data = _read_row(row)
            lines.append(data if "command" in data else decode(data))
        except (ValueError, UsageError) as error:
            raise UsageError(f"{path}:{number}: {error}") from None
    return Record(terms, tuple(lines))


def _read_row(row: bytes) -> dict[str, Any]:
    """One line as JSON-like data; `ValueError` (a bad encoding is one) where it is none."""
    try:
        data = json.loads(row.decode("utf-8", "surrogatepass"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON line: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"not a JSON object: {row[:80]!r}")
    return data


def _read_header(row: bytes, path: Path) -> Terms:
    try:
        header = _read_row(row)
        if header["record"] != FORMAT:
            raise ValueError(f"format {header['record']!r}")
        return Terms.from_dict(header)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path}:1: not a run record of format {FORMAT}: {error}") from None


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found; ``difference`` is empty when every command came out equal."""

    events: int
    commands: int
    difference: str = ""


def replay(record: Record) -> Replay:
    """Decide the whole run again from its events and compare every command."""
    machine = record.terms.machine()
    wanted: deque[dict[str, Any]] = deque()
    events = commands = 0
    for line in record.lines:
        if isinstance(line, dict):
            commands += 1
            if not wanted:
                return Replay(events, commands, f"recorded {line}, but nothing was wanted")
            again = json.loads(json.dumps(wanted.popleft()))
            if again != line:
                return Replay(events, commands, f"recorded {line}, now wanted {again}")
        else:
            events += 1
            try:
                wanted += [encode_command(command) for command in machine.handle(line)]
            except PlanError as error:
                return Replay(events, commands, f"{type(line).__name__}: {error}")
    if wanted:
        return Replay(events, commands, f"{len(wanted)} commands were never recorded: {wanted[0]}")
    return Replay(events, commands)
