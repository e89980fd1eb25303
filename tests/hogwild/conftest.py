"""What the tests of shared caches have in common."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

if find_spec("torch") is None or find_spec("transformers") is None:
    collect_ignore = [
        "test_rope.py",
        "test_engine.py",
        "test_group.py",
        "test_local.py",
        "test_real_weights.py",
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose by threads that wait for each other. Before any engine of the
    module starts: once a vLLM runs, it lets nobody change their number."""
    if find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
