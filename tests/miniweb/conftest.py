"""One library for all tests of the mini-web: building it takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentpar.miniweb.index import Library, open_library


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library in it."""
    folder = tmp_path_factory.mktemp("miniweb")
    open_library(folder).close()
    return folder


@pytest.fixture(scope="session")
def library(shelf: Path) -> Iterator[Library]:
    with open_library(shelf) as opened:
        yield opened
