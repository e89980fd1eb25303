"""The reference engine against transformers, and against its own transcript in one dense pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import ids, tiny

from agentpar.runtime.hogwild.engine import Engine, Group, replay
from agentpar.runtime.hogwild.sampling import Sampling
from agentpar.runtime.hogwild.spans import Layout

LAYOUTS: tuple[Layout, ...] = ("contiguous", "interleaved", "combined")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only lose by threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def writing(count: int) -> Sampling:
    """``count`` tokens, the likeliest each."""
    return Sampling(max_tokens=count, ignore_eos=True)


def finish(group: Group) -> dict[str, list[torch.Tensor]]:
    """Step until nothing runs; the scores behind every token each worker picked."""
    scores: dict[str, list[torch.Tensor]] = {}
    while group.running:
        for name in group.step():
            scores.setdefault(name, []).append(group.logits[name])
    return scores


def plain(model: object, prompt: list[int], count: int) -> list[int]:
    """What transformers itself writes after ``prompt``."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)  # type: ignore[attr-defined]
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_one_worker_writes_what_transformers_writes(family: str) -> None:
    """Token for token, from the same weights, the prompt cut into prefix and head anywhere."""
    model = tiny(family, dtype=torch.float32)
    prompt = ids(42, 1)
    with Engine(model, chunk=16).group(prompt[:37]) as group:
        group.join("Alice", prompt[37:], writing(30))
        finish(group)
    assert group.members["Alice"].output == plain(model, prompt, 30)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_is_its_transcript_in_one_pass(layout: Layout) -> None:
    """Workers of different lengths and a tool's text: all scores as in one dense pass."""
    engine = Engine(tiny(), chunk=8)
    with engine.group(ids(37, 1), layout=layout, separators=range(40)) as group:
        for name, head, count in (("Alice", 5, 20), ("Bob", 3, 7), ("Carol", 19, 12)):
            group.join(name, ids(head, head), writing(count))
        scores = dict[str, list[torch.Tensor]]()
        while group.running:
            for name in group.step():
                scores.setdefault(name, []).append(group.logits[name])
            if group.members["Alice"].computed == 12:
                group.inject("tool", ids(11, 7))
    with torch.no_grad():
        again = replay(engine.decoder, group.transcript()).rows
    for name, found in scores.items():
        behind = len(group.members[name].head) - 1
        torch.testing.assert_close(again[name][behind:], torch.stack(found), rtol=0, atol=1e-10)
    assert engine.cache.pool.free == engine.cache.pool.count
