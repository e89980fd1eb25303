"""A real Postgres server of one's own, on a unix socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_NAMES = count(1)


def programs() -> Path | None:
    """The folder of the newest installed ``initdb``; Debian keeps it off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    if found:
        return found[-1].parent
    which = shutil.which("initdb")
    return None if which is None else Path(which).resolve().parent


class Postgres:
    """One cluster; it may be stopped hard and started again."""

    def __init__(self, bin: Path, folder: Path, user: str | None) -> None:
        self._bin = bin
        self._folder = folder
        self._user = user  # Postgres refuses to run as root

    def start(self) -> None:
        # Nothing here claims to survive a power cut, so the disk need not be waited for.
        options = f"-F -c listen_addresses= -c unix_socket_directories={self._folder}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def stop(self) -> None:
        """At once, as in a crash: every connection breaks."""
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", "immediate")

    def make(self) -> None:
        self._run("initdb", "-D", self._data, "-U", "agentpar", "-A", "trust", "--no-sync")

    def new_database(self) -> str:
        """The address of a database with nothing in it."""
        import psycopg

        name = f"test{next(_NAMES)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://agentpar@/{database}?host={self._folder}"

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *words: str) -> None:
        # Into a file: the server keeps what it was given, and a pipe would never end.
        out = self._folder / "out"
        with out.open("ab") as file:
            done = subprocess.run(
                [str(self._bin / program), *words],
                user=self._user,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=60,
            )
        assert done.returncode == 0, out.read_text()


@contextmanager
def running(bin: Path) -> Iterator[Postgres]:
    """A server that is there for the block."""
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="agentpar-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        server = Postgres(bin, folder, user)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
