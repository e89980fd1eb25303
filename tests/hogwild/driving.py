"""What tests of the reference engine do with a group again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from agentpar.runtime.hogwild.engine import Engine, Group, replay
from agentpar.runtime.hogwild.sampling import Sampling

Scores = dict[str, list[torch.Tensor]]


def writing(count: int) -> Sampling:
    """``count`` tokens, the likeliest each."""
    return Sampling(max_tokens=count, ignore_eos=True)


def step(group: Group, scores: Scores) -> Mapping[str, int]:
    """One step, whose scores are kept."""
    picked = group.step()
    assert picked.keys() == group.logits.keys()
    for name in picked:
        scores.setdefault(name, []).append(group.logits[name])
    return picked


def finish(group: Group) -> Scores:
    """Step until nothing runs; the scores behind every token each worker picked."""
    scores: Scores = {}
    while group.running:
        step(group, scores)
    return scores


def plain(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers itself writes after ``prompt``."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


def compare_with_replay(engine: Engine, group: Group, scores: Scores, atol: float) -> float:
    """Hold all scores against one dense pass; the largest difference.

    Where a worker was told nothing, its first token came from the last of the prefix.
    """
    with torch.no_grad():
        again = replay(engine.decoder, group.transcript())
    largest = 0.0
    for name, found in scores.items():
        head = len(group.members[name].head)
        rows = again.rows.get(name, again.prefix[:0])
        expected = rows[head - 1 :] if head else torch.cat((again.prefix[-1:], rows))
        assert len(expected) == len(found)
        largest = max(largest, float((expected - torch.stack(found)).abs().max()))
        picks = torch.stack(found).argmax(-1)
        assert torch.equal(expected.argmax(-1), picks)
        sampling = group.members[name].sampling
        assert sampling
        if not sampling.temperature:
            assert group.members[name].output == picks.tolist()
    assert largest <= atol
    return largest


def held(engine: Engine, groups: list[Group]) -> bool:
    """Whether each block has as many holders as tables it stands in, and is free without any."""
    pool = engine.cache.pool
    tables = [block for group in groups for table in group.blocks for block in table]
    return all(
        pool.holders(block) == tables.count(block) for block in range(pool.count)
    ) and pool.free == pool.count - len(set(tables))
