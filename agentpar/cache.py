"""Where agentpar keeps what is dear to make again: weights, the mini-web, server states, logs.

Knows folders, locks and whole-file writes; must never know what is in the files.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def home() -> Path:
    """The cache folder: ``AGENTPAR_HOME``, else ``agentpar`` in the user's XDG cache."""
    if own := os.environ.get("AGENTPAR_HOME"):
        return Path(own).expanduser()
    return user_cache() / "agentpar"


def user_cache() -> Path:
    """The folder in which every program of this user keeps a cache: ``XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def write_whole(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    A text is written as UTF-8. Folders above ``path`` are made.
    """
    content = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_nowait(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path``, or yield False at once where another process holds it.

    The kernel lets go when the holder ends, however it ends, so a lock is never stale.
    The file itself stays: removing it would let two holders in.
    """
    import fcntl  # POSIX only, and so is everything that needs a lock here (vLLM)

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
