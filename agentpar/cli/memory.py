"""``agentpar memory``: what a bank holds, what it was good for, and taking it back.

It shows what is in a bank and withdraws from it; nothing here adds to one. What an entry says was
read from somewhere: it is shown on one line and never obeyed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentpar.errors import UsageError

if TYPE_CHECKING:  # a bank opens when a command is about it
    from agentpar.memory.entry import Entry, Reading
    from agentpar.memory.store import Store

BankUrl = Annotated[
    str | None,
    typer.Option(
        "--bank", metavar="URL", help="sqlite:///FILE or postgresql://…; the bank that is meant."
    ),
]
AgentFile = Annotated[
    Path | None,
    typer.Option(
        "--agent", metavar="AGENT.yaml", help="The agent's file, whose memory: names its bank."
    ),
]
Namespace = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only what lies in it; by default all.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")]

SHORT = 12
"""Characters of an id that are shown in a list; any beginning of one that is enough names it."""
GONE = "(the bank has it no more, or was never to keep it)"
_WIDTH = 60
_NEAREST = 3


def show(
    entry: Annotated[
        str | None, typer.Argument(metavar="ENTRY", help="The beginning of an entry's id.")
    ] = None,
    bank: BankUrl = None,
    agent: AgentFile = None,
    namespace: Namespace = None,
    revoked: Annotated[
        bool, typer.Option("--revoked", help="What was withdrawn, not what stands.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List a bank's entries, or tell all of one.

    A list has one entry a line, the oldest first: id, how often others used it, the call, what it
    brought.
    """
    with opened(bank, agent) as store:
        if entry is not None:
            _show_one(store, entry, as_json)
            return
        found = list(store.entries(namespace, revoked=revoked))
        if as_json:
            typer.echo(_dumped([_data(store, one, revoked) for one in found]))
        elif not found:
            typer.echo(_nothing(namespace, revoked), err=True)
        else:
            uses = Counter(reading.entry_id for reading in store.readings())
            for one in found:
                typer.echo(f"{one.id[:SHORT]} {uses[one.id]:4}x  {_told(one)}")


def stats(
    bank: BankUrl = None,
    agent: AgentFile = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a bank holds and what it has spared, in all and by tool."""
    with opened(bank, agent) as store:
        numbers = store.statistics(namespace)
        entries = list(store.entries(namespace))
        readings = store.readings()
    by_tool = _by_tool(entries, readings)
    data = {
        "entries": numbers.entries,
        "bytes": numbers.bytes,
        "revoked": numbers.revoked,
        "refused": numbers.refused,
        "leases": numbers.leases,
        "readings": numbers.readings,
        "spared_seconds": numbers.spared_seconds,
        "spared_tokens": numbers.spared_tokens,
        "tools": by_tool,
    }
    if as_json:
        typer.echo(_dumped(data))
        return
    typer.echo(f"entries   {numbers.entries:,} ({numbers.bytes:,} bytes)")
    typer.echo(f"revoked   {numbers.revoked:,}")
    if numbers.refused:
        typer.echo(f"refused   {numbers.refused:,} (another program has changed them)")
    typer.echo(f"leases    {numbers.leases:,} held")
    typer.echo(f"readings  {numbers.readings:,}")
    typer.echo(f"spared    {numbers.spared_seconds:,.1f} s, {numbers.spared_tokens:,} tokens")
    if by_tool:
        typer.echo(f"\n{'tool':24} {'entries':>8} {'readings':>8} {'spared s':>9} {'tokens':>9}")
    for tool, part in by_tool.items():
        typer.echo(
            f"{_one_line(tool, 24):24} {part['entries']:8,} {part['readings']:8,} "
            f"{part['spared_seconds']:9,.1f} {part['spared_tokens']:9,}"
        )


def revoke(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An address or the beginning of one, an entry's id, or a run's id.",
        ),
    ],
    bank: BankUrl = None,
    agent: AgentFile = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="The reason, kept with it.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be withdrawn, and withdraw nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Withdraw what comes from a source, and all that was made of it.

    Tells each entry, and each answer whose run, or teams' runs, used or brought one of them: those
    deserve another look. What is withdrawn is never used again, nor brought again by an equal call.
    """
    with opened(bank, agent) as store:
        known = {one.id: one for one in (*store.entries(), *store.entries(revoked=True))}
        if len(source) >= SHORT and len(ids := [id for id in known if id.startswith(source)]) == 1:
            [source] = ids
        gone = store.revoke(source, why, dry_run=dry_run)
        if not gone.entries:
            raise UsageError(_no_source(source, list(known.values())))
    if as_json:
        data = {**asdict(gone), "why": why, "dry_run": dry_run}
        typer.echo(_dumped(data))
        return
    for id in gone.entries:
        line = _told(known[id]) if id in known else GONE
        typer.echo(f"entry   {id[:SHORT]}  {line}")
    for run in gone.answers:
        teams = [one for one in gone.runs if one.rpartition(".")[0] == run]
        teams = [one for one in teams if one not in gone.answers]  # a user may call a run R.2
        by = f" (teams: {', '.join(teams)})" if teams else ""
        typer.echo(f"answer  {_one_line(run + by, 0)}")
    would = "would be " if dry_run else ""
    typer.echo(
        f"{would}withdrawn: {_many(len(gone.entries), 'entry', 'entries')}; answers that used or "
        f"brought any of it: {len(gone.answers)}",
        err=True,
    )


def export(
    bank: BankUrl = None,
    agent: AgentFile = None,
    namespace: Namespace = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there; overwrites nothing."),
    ] = None,
) -> None:
    """Write a bank's entries as JSON lines, each with who brought and who used it."""
    with opened(bank, agent) as store:
        lines = (
            json.dumps(_data(store, one), ensure_ascii=True, sort_keys=True)
            for one in store.entries(namespace)
        )
        if output is None:
            for line in lines:
                typer.echo(line)
            return
        try:
            file = output.open("x", encoding="utf-8")
        except FileExistsError:
            raise UsageError(
                f"{str(output)!r} is there already, and nothing is overwritten: name another file"
            ) from None
        count = 0
        try:
            with file:
                for line in lines:
                    file.write(f"{line}\n")
                    count += 1
        except BaseException:
            output.unlink(missing_ok=True)  # half of it would look like the whole
            raise
    typer.echo(f"{_many(count, 'entry', 'entries')} written to {output}", err=True)


# Which bank, which entry


@contextmanager
def opened(bank: str | None, agent: Path | None) -> Iterator[Store]:
    """The bank that is named, or that of the agent's file. Raises `UsageError` where there is
    none: a command that looks at a bank makes none."""
    from agentpar.memory.store import open_store

    if bank is None and agent is not None:
        from agentpar.config import load_memory

        memory = load_memory(agent).memory
        if memory is None or memory.bank is None:
            raise UsageError(f"{str(agent)!r} names no bank that outlives a run: give --bank")
        bank = memory.bank
    if bank is None:
        raise UsageError(
            "say which bank: --bank sqlite:///bank.db, or --agent with a file that has memory:"
        )
    store = open_store(bank, tell=_warn)
    file = bank.removeprefix("sqlite:///").partition("?")[0]
    if bank.startswith("sqlite:///") and not Path(file).is_file():
        raise UsageError(f"there is no bank at {file!r}: --bank names another file")
    store.open()
    try:
        yield store
    finally:
        store.close()


def _warn(text: str) -> None:
    """What names a row that another program has changed says what that program wrote."""
    typer.echo(f"agentpar: {_one_line(text, 0)}", err=True)


def _named(name: str, entries: Sequence[Entry]) -> Entry:
    """The entry whose id begins with ``name``; `UsageError` with what is near where there is
    none."""
    found = [one for one in entries if one.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{name!r} begins {len(found)} entries: "
            + ", ".join(one.id[:SHORT] for one in found[: 2 * _NEAREST])
        )
    if not entries:
        raise UsageError(f"there is no entry {name!r}: the bank is empty")
    near = "; ".join(
        f"{one.id[:SHORT]} ({_one_line(one.question, _WIDTH)})"
        for one in _close(name, {one.question: one for one in entries})
    )
    raise UsageError(
        f"there is no entry {name!r}"
        + (f"; near to it are {near}" if near else ": 'agentpar memory show' lists them")
    )


def _close(name: str, by_text: dict[str, Any]) -> list[Any]:
    """What stands under the texts that are nearest to ``name``, or hold it."""
    from difflib import get_close_matches

    folded = name.casefold()
    texts = [text for text in by_text if folded in text.casefold()]
    texts += get_close_matches(name, by_text, n=_NEAREST, cutoff=0.5)
    return [by_text[text] for text in dict.fromkeys(texts)][:_NEAREST]


def _no_source(source: str, entries: Sequence[Entry]) -> str:
    sources = {text: text for one in entries for text in one.sources}
    runs = {one.producer.run_id: one.producer.run_id for one in entries}
    close = _close(source, sources | runs)
    listed = ", ".join(repr(_one_line(text, 80)) for text in close)
    return f"nothing in the bank comes from {source!r}" + (
        f"; there are {listed}" if close else ": name an address, an entry's id or a run's id"
    )


# What is shown


def _show_one(store: Store, name: str, as_json: bool) -> None:
    stand, withdrawn = list(store.entries()), list(store.entries(revoked=True))
    one = _named(name, [*stand, *withdrawn])
    known = {other.id: other for other in (*stand, *withdrawn)}
    data = _data(store, one, one in withdrawn)
    if as_json:
        typer.echo(_dumped(data))
        return
    from agentpar.plaintext import visible

    def say(label: str, lines: Sequence[str]) -> None:
        for at, line in enumerate(lines):
            typer.echo(f"{'' if at else label:12}{line}")

    value = one.value if isinstance(one.value, str) else _dumped(one.value)
    say("entry", [one.id + " (revoked)" * bool(data["revoked"])])
    say("call", [_one_line(one.question, 0)])
    say("value", visible(value).splitlines() or [""])
    say("sources", [_one_line(text, 0) for text in one.sources])
    cost = f"{one.seconds:.2f} s, {one.tokens:,} tokens"
    ends = "never" if one.expires is None else _time(one.expires)
    say("found", [f"{_time(one.created)} in {cost}; expires {ends}"])
    say("brought by", [_who(**who) for who in data["producers"]])
    say("used by", [_use(use) for use in data["readings"]] or ["nobody yet"])
    made_of = [f"{id[:SHORT]}  {_told(known[id]) if id in known else GONE}" for id in one.parents]
    say("made of", made_of or ["nothing that was in the bank"])


def _use(use: dict[str, Any]) -> str:
    who = _who(use["run"], use["task"], use["team"])
    return f"{who}, spared {use['spared_seconds']:.2f} s and {use['spared_tokens']:,} tokens"


def _who(run: str, task: int, team: int) -> str:
    return f"run {_one_line(run, 0)}, task {task}" + (f" of team {team}" if team else "")


def _told(one: Entry) -> str:
    """An entry on one line: the call, and what it brought."""
    from agentpar.tools.page import is_page

    value = one.value
    if is_page(value):  # the one value that was looked for says more than a page's beginning
        value = value.get("value") or value["text"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{_one_line(one.question, _WIDTH)} = {_one_line(text, _WIDTH)}"


def _data(store: Store, one: Entry, revoked: bool = False) -> dict[str, Any]:
    """All that a bank knows of an entry, as JSON data."""
    return {
        "id": one.id,
        "namespace": one.namespace,
        "question": one.question,
        "tool": one.tool,
        "args": dict(one.args),
        "value": one.value,
        "sources": list(one.sources),
        "parents": list(one.parents),
        "seconds": one.seconds,
        "tokens": one.tokens,
        "cost_usd": one.cost_usd,
        "created": one.created,
        "expires": one.expires,
        "revoked": revoked,
        "producers": [
            {"run": run, "task": task, "team": team} for run, task, team in store.producers(one.id)
        ],
        "readings": [
            {
                "run": use.run_id,
                "task": use.task_id,
                "team": use.team,
                "spared_seconds": use.spared_seconds,
                "spared_tokens": use.spared_tokens,
                "context_tokens": use.context_tokens,
                "at": use.at,
            }
            for use in store.readings(one.id)
        ],
    }


def _by_tool(
    entries: Sequence[Entry], readings: Sequence[Reading]
) -> dict[str, dict[str, float | int]]:
    """What stands and what it has spared, by tool, the one that spared most first."""
    tool_of = {one.id: one.tool for one in entries}
    found: dict[str, dict[str, float | int]] = {
        tool: {"entries": count, "readings": 0, "spared_seconds": 0.0, "spared_tokens": 0}
        for tool, count in Counter(tool_of.values()).items()
    }
    for use in readings:
        if (tool := tool_of.get(use.entry_id)) is not None:
            found[tool]["readings"] += 1
            found[tool]["spared_seconds"] += use.spared_seconds
            found[tool]["spared_tokens"] += use.spared_tokens
    return dict(sorted(found.items(), key=lambda part: (-part[1]["spared_seconds"], part[0])))


def _nothing(namespace: str | None, revoked: bool) -> str:
    what = "nothing was withdrawn from it" if revoked else "it holds no entries yet"
    where = "" if namespace is None else f" in namespace {namespace!r}"
    return f"the bank is empty{where}: {what}" if not revoked else f"{what}{where}"


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _time(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _one_line(text: str, limit: int) -> str:
    from agentpar.plaintext import one_line

    return one_line(text, limit)


def _dumped(data: Any) -> str:
    from agentpar.plaintext import as_json

    return as_json(data)
