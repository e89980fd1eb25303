"""Files of ours: opened by several processes at the same instant, and what is told of bad ones."""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
from openers import open_all, open_bank, open_record

from agentpar.errors import BankError, JournalError, UsageError
from agentpar.executor.journal.sqlite import SqliteStore as JournalFile
from agentpar.memory.store.sqlite import SqliteStore as BankFile

PROCESSES = 4


@pytest.mark.parametrize("opens", [open_bank, open_record])
def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path, opens: Any) -> None:
    """Nobody is refused for what another is just making: neither "locked" nor "of another kind"."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(PROCESSES)
    processes: list[SpawnProcess] = [
        context.Process(target=open_all, args=(together, tmp_path, opens)) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES


def noise(path: Path) -> None:
    path.write_bytes(b"not a database " * 100)


def another_programs(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE dear_diary (line TEXT)")


def of_another_format(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [noise, another_programs, of_another_format, cut_off, a_folder])
def test_what_is_wrong_with_a_file_is_told_in_one_wording(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Of a journal as of a bank; what is left of it stays as it is."""
    told: list[str] = []
    for what, make in (("journal", JournalFile), ("bank", BankFile)):
        path = tmp_path / "x.db"
        if harm is not another_programs:
            store: Any = make(path)
            store.open()
            store.close()
        harm(path)
        before = None if path.is_dir() else path.read_bytes()
        with pytest.raises((BankError, JournalError, UsageError)) as caught:
            make(path).open()
        assert before is None or path.read_bytes() == before
        told.append(re.sub(r"of format 99, .* reads format \d|[\d,]+ of [\d,]+ bytes", "…",
                           str(caught.value).replace(what, "…")))  # fmt: skip
        for left in tmp_path.iterdir():
            left.rmdir() if left.is_dir() else left.unlink()
    assert told[0] == told[1]
