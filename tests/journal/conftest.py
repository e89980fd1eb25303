"""Journals to test with: a new SQLite file, and a new database of a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Postgres, programs, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres of this session's own; skips where none is installed."""
    pytest.importorskip(
        "psycopg", reason="psycopg is not installed: pip install agentpar[postgres]"
    )
    bin = programs()
    if bin is None:
        pytest.skip("no Postgres is installed (no initdb): apt-get install postgresql")
    with running(bin) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new journal, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'j.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
