"""Names for runs."""

from __future__ import annotations

import secrets
import time


def new_run_id() -> str:
    """Sorts by time, and two runs in one second differ: ``20260131-142500-9f3a1c``."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def team_run(run_id: str, team: int) -> str:
    """The id of the run of team number ``team``."""
    return f"{run_id}.{team}"


def question_run(run_id: str, team: int) -> str:
    """The run whose answer a user has: that of all teams where ``run_id`` is one team's (R of R.2),
    else itself."""
    return run_id.removesuffix(f".{team}") if team else run_id
