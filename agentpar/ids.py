"""Names for runs."""

from __future__ import annotations

import secrets
import time


def new_run_id() -> str:
    """Sorts by time, and two runs in one second differ: ``20260131-142500-9f3a1c``."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
