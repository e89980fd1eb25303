"""Files of ours that several processes open at the same instant, while they are still empty."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest

from agentpar.executor.journal import open_journal
from agentpar.langgraph_store import BankStore

PROCESSES, FILES = 4, 25


def open_bank(address: str) -> None:
    with BankStore(address):
        pass


def open_record(address: str) -> None:
    async def main() -> None:
        async with open_journal(address):
            pass

    asyncio.run(main())


def open_all(together: Any, folder: Path, opens: Any) -> None:
    for number in range(FILES):
        together.wait(100)
        opens(f"sqlite:///{folder}/{number}.db")


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
