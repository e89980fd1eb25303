"""Commands about a bank: show, stats, revoke, export; on a real bank's file."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from harness import Cli

from agentpar import tool
from agentpar.cli import memory
from agentpar.memory.entry import Entry, Producer, Reading, entry_of
from agentpar.memory.store import open_store

AT = "sqlite:///bank.db"
LIAR = "https://liar.example/lima"


@tool
async def web_lookup(subject: str, find: str) -> dict[str, Any]:
    """Look something up."""
    return {}


@tool
async def calc(expression: str) -> float:
    """Reckon."""
    return 0.0


def page(url: str, value: Any) -> dict[str, Any]:
    return {"url": url, "title": "A page", "text": "It says so.", "value": value}


@pytest.fixture
def entries(cli: Cli) -> dict[str, Entry]:
    """A bank of four entries: what a page says of Lima, what was reckoned from it, and two more.

    Team 2 of the run has used the first, another run the second.
    """
    store = open_store(f"sqlite:///{cli.folder / 'bank.db'}")
    store.open()
    one, other = Producer("20260101-a.1", 2, 1), Producer("20260102-b", 3)

    def put(tool: Any, args: dict[str, Any], value: Any, by: Producer, **more: Any) -> Entry:
        return store.put(entry_of(tool, args, value, by, namespace="geo", **more)).entry

    lima = put(
        web_lookup,
        {"subject": "Lima", "find": "population"},
        page(LIAR, 10_092_000),
        one,
        seconds=1.25,
        tokens=300,
    )
    half = put(calc, {"expression": "10092000/2"}, 5046000.0, one, parents=(lima.id,))
    quito = put(
        web_lookup,
        {"subject": "Quito", "find": "population"},
        page("https://true.example/quito", "2 million\x1b[31m\nand more"),
        other,
    )
    plain = put(calc, {"expression": "1+1"}, 2, other)
    store.used(Reading(lima.id, "20260101-a.2", 4, 2, 1.25, 300, 20))
    store.used(Reading(half.id, "20260103-c", 1, 0, 0.5, 0, 5))
    store.close()
    return {"lima": lima, "half": half, "quito": quito, "plain": plain}


def test_show_lists_one_entry_a_line(cli: Cli, entries: dict[str, Entry]) -> None:
    """Id, uses, call and value; what a page wrote cannot steer the terminal or add a line."""
    done = cli("memory", "show", "--bank", AT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == f"{entries['lima'].id[:12]}    1x  web_lookup: Lima, population = 10092000"
    assert lines[2].endswith("   0x  web_lookup: Quito, population = 2 million␛[31m and more")
    assert cli("memory", "show", "--bank", AT, "--namespace", "other").stdout == ""


def test_show_tells_all_of_one(cli: Cli, entries: dict[str, Entry]) -> None:
    """Value, sources, who brought and used it, what it was made of; by the beginning of its id."""
    lima, half = entries["lima"], entries["half"]
    told = cli("memory", "show", lima.id[:8], "--bank", AT).stdout
    for line in (
        f"entry       {lima.id}",
        "call        web_lookup: Lima, population",
        '              "value": 10092000',
        f"sources     {LIAR}",
        "brought by  run 20260101-a.1, task 2 of team 1",
        "used by     run 20260101-a.2, task 4 of team 2, spared 1.25 s and 300 tokens",
        "made of     nothing that was in the bank",
    ):
        assert line in told.splitlines()
    assert "in 1.25 s, 300 tokens; expires never" in told
    told = cli("memory", "show", half.id, "--bank", AT).stdout
    assert f"made of     {lima.id[:12]}  web_lookup: Lima, population = 10092000" in told


def test_show_as_json_has_it_all(cli: Cli, entries: dict[str, Entry]) -> None:
    """A list, or the one that is named."""
    listed = json.loads(cli("memory", "show", "--bank", AT, "--json").stdout)
    assert [one["id"] for one in listed] == [one.id for one in entries.values()]
    one = json.loads(cli("memory", "show", entries["lima"].id, "--bank", AT, "--json").stdout)
    assert one == listed[0]
    assert one["value"]["value"] == 10_092_000
    assert one["producers"] == [{"run": "20260101-a.1", "task": 2, "team": 1}]
    assert [use["run"] for use in one["readings"]] == ["20260101-a.2"]
    assert one["revoked"] is False


def test_json_is_not_obeyed_by_a_terminal_either(cli: Cli, entries: dict[str, Entry]) -> None:
    """What acts instead of showing is escaped, so it reads back as it was; half of a surrogate
    pair, which no stream takes, too."""
    value = "a\x9b31m b\u202ec \ud800 d\x7f"
    store = open_store(f"sqlite:///{cli.folder / 'bank.db'}")
    store.open()
    odd = store.put(
        entry_of(calc, {"expression": "odd"}, value, Producer("c", 1), namespace="geo")
    ).entry
    store.close()
    told = cli("memory", "show", odd.id, "--bank", AT, "--json").stdout
    assert not set("\x1b\x9b\u202e\x7f") & set(told)
    assert json.loads(told)["value"] == value


def test_a_forged_row_is_told_of_on_one_plain_line(
    cli: Cli, entries: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program's id of it may say anything."""
    with sqlite3.connect(cli.folder / "bank.db") as forger:
        forger.execute("UPDATE entries SET id = 'x' || char(27) || '[2J' || char(10) || 'y' || seq")
    forger.close()
    with memory.opened(f"sqlite:///{cli.folder / 'bank.db'}", None) as store:
        assert list(store.entries()) == []
    told = capsys.readouterr().err.splitlines()
    assert told
    assert all("x␛[2J y" in line for line in told)


def test_stats_count_in_all_and_by_tool(cli: Cli, entries: dict[str, Entry]) -> None:
    """What spared most stands first."""
    told = cli("memory", "stats", "--bank", AT).stdout.splitlines()
    assert told[0].startswith("entries   4 (")
    assert "readings  2" in told
    assert "spared    1.8 s, 300 tokens" in told
    assert [line.split() for line in told[-2:]] == [
        ["web_lookup", "2", "1", "1.2", "300"],
        ["calc", "2", "1", "0.5", "0"],
    ]
    data = json.loads(cli("memory", "stats", "--bank", AT, "--json").stdout)
    assert data["spared_seconds"] == 1.75
    assert data["tools"]["calc"]["entries"] == 2


def test_revoke_withdraws_a_source_and_all_made_of_it(cli: Cli, entries: dict[str, Entry]) -> None:
    """With each entry, and each answer by the id that its user knows, with those of its teams that
    brought or used one; a dry run only tells the same."""
    tried = cli("memory", "revoke", "https://liar.example", "--bank", AT, "--dry-run")
    assert tried.returncode == 0
    assert tried.stdout.splitlines() == [
        f"entry   {entries['lima'].id[:12]}  web_lookup: Lima, population = 10092000",
        f"entry   {entries['half'].id[:12]}  calc: 10092000/2 = 5046000.0",
        "answer  20260101-a (teams: 20260101-a.1, 20260101-a.2)",
        "answer  20260103-c",
    ]
    assert tried.stderr == (
        "would be withdrawn: 2 entries; answers that used or brought any of it: 2\n"
    )
    assert len(cli("memory", "show", "--bank", AT).stdout.splitlines()) == 4
    done = cli("memory", "revoke", LIAR, "--bank", AT, "--why", "it lies")
    assert done.stdout == tried.stdout
    assert done.stderr == "withdrawn: 2 entries; answers that used or brought any of it: 2\n"
    assert len(cli("memory", "show", "--bank", AT).stdout.splitlines()) == 2
    gone = cli("memory", "show", "--bank", AT, "--revoked").stdout.splitlines()
    assert [line.split()[0] for line in gone] == [
        entries[name].id[:12] for name in ("lima", "half")
    ]
    assert "(revoked)" in cli("memory", "show", entries["lima"].id[:8], "--bank", AT).stdout


def test_revoke_takes_an_id_or_a_run(cli: Cli, entries: dict[str, Entry]) -> None:
    """The beginning of an id as it is listed; the JSON has what was withdrawn."""
    done = cli("memory", "revoke", entries["plain"].id[:12], "--bank", AT, "--json")
    assert json.loads(done.stdout)["entries"] == [entries["plain"].id]
    done = cli("memory", "revoke", "20260102-b", "--bank", AT, "--json")
    data = json.loads(done.stdout)
    assert entries["quito"].id in data["entries"]
    assert (data["answers"], data["runs"]) == (["20260102-b"], ["20260102-b"])


def test_export_writes_every_entry_and_overwrites_nothing(
    cli: Cli, entries: dict[str, Entry]
) -> None:
    """To stdout or into a new file, a line each."""
    lines = cli("memory", "export", "--bank", AT).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [one.id for one in entries.values()]
    assert json.loads(lines[0])["readings"][0]["spared_tokens"] == 300
    done = cli("memory", "export", "--bank", AT, "-o", "out.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "4 entries written to out.jsonl\n"
    assert (cli.folder / "out.jsonl").read_text().splitlines() == lines
    (cli.folder / "out.jsonl").write_text("mine")
    done = cli("memory", "export", "--bank", AT, "-o", "out.jsonl")
    assert done.returncode == 2
    assert "'out.jsonl' is there already, and nothing is overwritten" in done.stderr
    assert (cli.folder / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "say which bank: --bank sqlite:///bank.db, or --agent"),
        (["show", "--bank", "sqlite:///none.db"], "there is no bank at 'none.db'"),
        (["stats", "--bank", "bank.db"], "a bank is at sqlite:///FILE or postgresql://…"),
        (["show", "Lima", "--bank", AT], "there is no entry 'Lima'; near to it are LIMA (web_loo"),
        (["show", "xyz", "--bank", AT], "no entry 'xyz': 'agentpar memory show' lists them"),
        (["show", "", "--bank", AT], "'' begins 4 entries: LIMA, "),
        (["revoke", "https://lair.example/lima", "--bank", AT], f"there are '{LIAR}'"),
        (["revoke", "zzz", "--bank", AT], "nothing in the bank comes from 'zzz': name an address"),
        (["revoke", "", "--bank", AT], "say what to revoke"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(
    cli: Cli, entries: dict[str, Entry], words: list[str], message: str
) -> None:
    """Exit 2, nothing on stdout, nothing withdrawn, and no file made."""
    done = cli("memory", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message.replace("LIMA", entries["lima"].id[:12]) in done.stderr
    assert not (cli.folder / "none.db").exists()
    assert len(cli("memory", "show", "--bank", AT).stdout.splitlines()) == 4


def test_an_empty_bank_is_said_to_be_empty(cli: Cli) -> None:
    """By each command, and it is no failure."""
    store = open_store(f"sqlite:///{cli.folder / 'bank.db'}")
    store.open()
    store.close()
    done = cli("memory", "show", "--bank", AT)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "the bank is empty: it holds no entries yet\n"
    assert "nothing was withdrawn" in cli("memory", "show", "--bank", AT, "--revoked").stderr
    assert cli("memory", "stats", "--bank", AT).stdout.startswith("entries   0 (0 bytes)\n")
    assert cli("memory", "export", "--bank", AT).stdout == ""
    done = cli("memory", "show", "abc", "--bank", AT)
    assert (done.returncode, "the bank is empty" in done.stderr) == (2, True)


def test_a_bank_that_cannot_be_read_is_told(cli: Cli, entries: dict[str, Entry]) -> None:
    """Of another version, of another kind, or damaged: exit 1, and it is left as it is."""
    (cli.folder / "noise.db").write_bytes(b"not a database " * 100)
    done = cli("memory", "show", "--bank", "sqlite:///noise.db")
    assert (done.returncode, "is no bank" in done.stderr) == (1, True)
    with sqlite3.connect(cli.folder / "bank.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    done = cli("memory", "stats", "--bank", AT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is of format 99, and this agentpar reads format 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_group_lists_its_commands(cli: Cli) -> None:
    """Without a command it is help, not an error message."""
    said = cli("memory")
    assert all(name in said.stdout + said.stderr for name in ("show", "stats", "revoke", "export"))


def test_a_bank_is_found_by_its_address_or_its_agent(cli: Cli, entries: dict[str, Entry]) -> None:
    """An absolute address has four slashes; in an agent's file it is seen from that file."""
    where: Path = cli.folder / "bank.db"
    done = cli("memory", "show", "--bank", f"sqlite:///{where}")
    assert len(done.stdout.splitlines()) == 4
    (cli.folder / "agents").mkdir()
    agent = cli.folder / "agents" / "agent.yaml"
    agent.write_text("version: 1\nname: geo\ntools: [other.tool]\nmemory: sqlite:///../bank.db\n")
    assert cli("memory", "show", "--agent", "agents/agent.yaml").stdout == done.stdout
    agent.write_text("version: 1\nname: geo\nmemory: {admission: rule}\n")
    none = cli("memory", "show", "--agent", "agents/agent.yaml")
    assert none.returncode == 2
    assert "'agents/agent.yaml' names no bank that outlives a run" in none.stderr
    agent.write_text("version: 1\nname: geo\nmemory: {admision: rule}\n")
    assert "agent.yaml:3" in cli("memory", "show", "--agent", "agents/agent.yaml").stderr
