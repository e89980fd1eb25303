"""Processes that open the same new files at the same instants (for `test_sqlite_files.py`)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agentpar.executor.journal import open_journal
from agentpar.langgraph_store import BankStore

FILES = 25


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
