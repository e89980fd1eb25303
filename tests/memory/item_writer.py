"""What one of several processes does that put items into one bank at once."""

from __future__ import annotations

from agentpar.langgraph_store import BankStore


def put_many(address: str, who: int) -> None:
    """25 items of its own, and 25 where all put theirs."""
    with BankStore(address) as store:
        for at in range(25):
            store.put(("t", str(who)), str(at), {"who": who})
            store.put(("shared",), str(at), {"who": who})
