"""One of several processes that write to one bank at once: python bank_writer.py URL NUMBER.

It waits for a line on its input, proposes the entries 0 to 99 that all propose, and 25 of its own,
and prints which were new to the bank.
"""

from __future__ import annotations

import random
import sys

from banks import entry

from agentpar.memory.entry import Producer, Reading
from agentpar.memory.store import open_store

COMMON, OWN = 100, 25


def main(url: str, number: int) -> None:
    store = open_store(url)
    store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    todo = [*range(COMMON), *range(1000 * number, 1000 * number + OWN)]
    random.Random(number).shuffle(todo)
    new = []
    for n in todo:
        put = store.put(entry(n, producer=Producer(f"run{number}", n, number)), [1.0, n / 100])
        if put.new:
            new.append(n)
        if n % 10 == 0:
            store.used(Reading(f"id{n}", f"run{number}", n, number, spared_tokens=1))
            store.nearest("space", [1.0, 0.0], 3)
    store.close()
    print(*new, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
