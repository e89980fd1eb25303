"""What the whole suite shares: real vLLM servers, and a check that no process is left.

Light to import: nothing heavy loads before a test asks for it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never goes to the hub by chance

# Hypothesis measures each example, and a machine that does other things fails those by chance.
hypothesis.settings.register_profile("without a clock", deadline=None)
hypothesis.settings.load_profile("without a clock")


@pytest.fixture(scope="session")
def vllm_url() -> Iterator[str]:
    """A real vLLM with the 135M weights, for mechanics; never assert on what it says."""
    yield from _serve("smollm2-135m")


@pytest.fixture(scope="session")
def vllm_05b_url() -> Iterator[str]:
    """A real vLLM with the 0.5B weights, for behaviour; claim shares, never exact words."""
    yield from _serve("qwen2.5-coder-0.5b")


@pytest.fixture(scope="session")
def vllm_sharing_url() -> Iterator[str]:
    """A real vLLM with the 135M weights whose requests can share their cache."""
    yield from _serve("smollm2-135m", sharing=True)


def _serve(model: str, *, sharing: bool = False) -> Iterator[str]:
    """The address of a server for ``model``: the one that runs, else one for this session."""
    from agentpar.runtime import server

    handle = asyncio.run(server.ensure(model, sharing=sharing))
    yield handle.base_url
    if handle.started:
        server.stop(port=handle.port)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """A test that leaves a child process behind fails, and says which."""
    before = _children()
    yield
    deadline = time.monotonic() + 2.0  # one that was told to end may take a moment
    while (left := _children() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"processes left behind: {[_command(pid) for pid in left]}"


def _children() -> set[int]:
    pids: set[int] = set()
    for thread in Path("/proc/self/task").glob("*"):
        try:
            pids.update(map(int, (thread / "children").read_text().split()))
        except OSError:  # the thread has ended, or the system has no such file
            continue
    return {pid for pid in pids if not _is_helper(pid)}


def _is_helper(pid: int) -> bool:
    """Whether ``pid`` is multiprocessing's own tracker, which lives as long as Python does."""
    return "resource_tracker" in _command(pid)


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid} (ended)"
    return b" ".join(words).decode(errors="replace")[:200] or f"process {pid}"
