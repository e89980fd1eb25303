"""Several processes on one bank: nothing is lost, nothing doubled, and who dies is taken over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bank_writer
import pytest
from banks import Place

from agentpar.memory.store import open_store

HERE = Path(__file__).parent
PROCESSES = 8


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python that finds agentpar and this folder."""
    import agentpar

    paths = [str(Path(agentpar.__file__).parents[1]), str(HERE)]
    with subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_eight_that_write_at_once_lose_and_double_nothing(shared: Place) -> None:
    """100 entries that all propose and 25 of each: every one is new to exactly one of them, and
    has all who brought it as its producers."""
    running = []
    with ExitStack() as stack:
        for number in range(1, PROCESSES + 1):
            word = str(HERE / "bank_writer.py")
            running.append(stack.enter_context(process(word, shared.url, str(number))))
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        new = [int(n) for one in running for n in one.communicate(timeout=100)[0].split()]
        assert [one.returncode for one in running] == [0] * PROCESSES
    own = {1000 * number + n for number in range(1, 9) for n in range(bank_writer.OWN)}
    wanted = {*range(bank_writer.COMMON), *own}
    assert sorted(new) == sorted(wanted)  # each once
    store = open_store(shared.url)
    store.open()
    assert sorted(one.id for one in store.entries()) == sorted(f"id{n}" for n in wanted)
    for n in range(bank_writer.COMMON):
        brought = {run for run, _, _ in store.producers(f"id{n}")}
        assert brought == {f"run{number}" for number in range(1, PROCESSES + 1)}
    readings = sum(n % 10 == 0 for n in range(bank_writer.COMMON)) * PROCESSES
    readings += sum(n % 10 == 0 for n in own)
    assert store.statistics().readings == readings
    near = [one.id for one, _ in store.nearest("space", [1.0, 0.0], 5)]
    assert near == [f"id{n}" for n in range(5)]
    store.close()


HOLDER = """
import sys
from agentpar.memory.store import open_store
store = open_store(sys.argv[1])
store.open()
print(store.lease("space", "l", "dead", 1, 1, 1.0).fence, flush=True)
sys.stdin.readline()
"""


def test_a_process_that_dies_with_a_lease_is_taken_over(shared: Place) -> None:
    """Its lease runs out, and the next holder has a higher fence."""
    with process("-c", HOLDER, shared.url) as holder:
        assert holder.stdout is not None
        fence = int(holder.stdout.readline())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    store = open_store(shared.url)
    store.open()
    for _ in range(100):
        lease = store.lease("space", "l", "next", 1, 2, 60)
        if lease.holder.run_id == "next":
            break
        assert lease.fence == fence
        time.sleep(0.05)
    assert lease.holder.run_id == "next"
    assert lease.fence > fence
    store.close()
