"""The key of a bank's seals: from the environment, or from a file beside the bank.

It must never be written into the bank, nor into a message.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from agentpar.errors import BankError, UsageError

VARIABLE = "AGENTPAR_BANK_KEY"
_LEAST = 16


def from_environment() -> bytes | None:
    """The key that `VARIABLE` gives, if it does."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if len(text) < _LEAST:
        raise UsageError(
            f"{VARIABLE} has {len(text)} characters; a key that nobody guesses has {_LEAST} at "
            "least: openssl rand -hex 32"
        )
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def from_file(path: Path, *, make: bool) -> bytes:
    """The key in ``path``; where there is no such file and ``make`` is set, a new one, which only
    its owner can read."""
    try:
        if make:
            _make(path)
        text = path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except FileNotFoundError:
        raise BankError(
            f"the key of the bank is gone: put {path.name} back beside it, or set {VARIABLE}; "
            "without it nothing in the bank can be told from a forgery"
        ) from None
    except (OSError, ValueError) as error:
        raise BankError(f"the key of the bank, {path}, cannot be read: {error}") from None
    if len(key) != 32:
        raise BankError(f"{path} is no key of a bank: it has to be 64 hexadecimal digits")
    return key


def _make(path: Path) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        os.write(file, secrets.token_hex(32).encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
