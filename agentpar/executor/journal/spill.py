"""Large texts in files beside the database, named by what is in them.

It knows bytes and their hash; it must never know what they mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from agentpar.errors import JournalError

LIMIT = 64 * 1024
"""Most characters of a text that stays in the database."""


class Spill:
    """Files in ``folder``: ``ab/abcd…``. A text is there, whole and on disk, when `put` returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, text: str) -> str:
        """The name of the file that holds ``text`` (ASCII); written unless it is there."""
        data = text.encode("ascii")
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if path.is_file():  # its name was given only once it was whole
            return name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{name}.{os.getpid()}")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        for folder in (path.parent, self.folder, self.folder.parent):
            _sync(folder)
        return name

    def get(self, name: str) -> str:
        """The text that `put` named so; `JournalError` where it is gone or has changed."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise JournalError(f"a large result of the journal cannot be read: {error}") from None
        if hashlib.sha256(data).hexdigest() != name:
            raise JournalError(f"a large result of the journal is damaged: {path}")
        return data.decode("ascii")

    def sweep(self, kept: Collection[str]) -> int:
        """Remove what is not ``kept``, and what a process left behind that died while writing;
        how many texts went. Nobody may `put` meanwhile."""
        gone = 0
        for path in self.folder.glob("??/*"):
            if path.name not in kept:
                path.unlink(missing_ok=True)
                gone += not path.name.startswith(".")
        return gone

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name


def _sync(folder: Path) -> None:
    """A new name in ``folder`` survives a power cut only once the folder is on disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
