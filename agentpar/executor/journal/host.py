"""Which process this is, whether another one still lives, and a clock that no one sets.

Knows one machine and its kernel; must never know what a run is.
"""

from __future__ import annotations

import functools
import os
import platform
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NONE = "-"
_living: set[str] = set()
"""The tokens of this process's own holders."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One holder in one process; ``token`` tells it from every other holder anywhere.

    ``boot`` names the time since the machine started, ``namespace`` within which process ids
    are unique, ``start`` when the process began: ids are used again, an id with its start
    is not. Each is ``-`` where the system does not say.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: str
    token: str

    @classmethod
    def new(cls) -> Owner:
        """A new holder in this process; it lives until `end`, or with the process."""
        pid = os.getpid()
        host = platform.node().replace(" ", _NONE) or _NONE
        token = secrets.token_hex(4)
        _living.add(token)
        return cls(host, _boot(), _namespace(), pid, _start_of(pid), token)

    def end(self) -> None:
        """It works on nothing any more."""
        _living.discard(self.token)

    @classmethod
    def parse(cls, text: str) -> Owner:
        """What `str` gave; `ValueError` for any other text."""
        host, boot, namespace, pid, start, token = text.split(" ")
        return cls(host, boot, namespace, int(pid), start, token)

    def __str__(self) -> str:
        return " ".join(
            [self.host, self.boot, self.namespace, str(self.pid), self.start, self.token]
        )

    @property
    def of_this_boot(self) -> bool:
        """Whether it began since this machine started."""
        return self.boot == _boot()

    @property
    def is_gone(self) -> bool:
        """Whether it certainly lives no more; False where that cannot be seen from here."""
        if _NONE in (self.boot, self.namespace) or not self.of_this_boot:
            return False
        if self.namespace != _namespace():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it lives, and is another user's
        start = _start_of(self.pid)
        if start not in (_NONE, self.start):
            return True
        return self.pid == os.getpid() and self.token not in _living


def seconds() -> float:
    """Seconds on a clock that all processes of this machine share.

    Since the machine started, sleep included, so setting the time changes nothing. Without
    such a clock (not Linux) the time of day.
    """
    return time.time() if _boot() == _NONE else time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return _NONE


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return _NONE


def _start_of(pid: int) -> str:
    """When process ``pid`` began, in the kernel's ticks since it started; ``-`` if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _NONE
    state, *fields = stat.rpartition(")")[2].split()
    return "ended" if state in "ZX" else fields[18]  # a zombie does nothing more
