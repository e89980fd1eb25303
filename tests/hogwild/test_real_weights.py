"""The reference engine with the real 135M weights: what holds for random ones holds for them."""

from __future__ import annotations

import pytest
import torch
from driving import compare_with_replay, finish, plain, writing

from agentpar.runtime import models
from agentpar.runtime.hogwild.engine import Engine

FOLDER = models.find("smollm2-135m")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="needs `agentpar weights smollm2-135m`"),
]


@pytest.fixture(scope="module")
def loaded() -> tuple[Engine, object]:
    """The engine, and the same model as transformers has it."""
    from transformers import AutoModelForCausalLM

    assert FOLDER
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return Engine.load(FOLDER, blocks=64), model


def test_one_worker_writes_what_transformers_writes(loaded: tuple[Engine, object]) -> None:
    """Greedy, in float32, token for token."""
    engine, model = loaded
    prompt = "A short list of countries and their capitals: France - Paris, Italy -"
    with engine.group(prompt[:44]) as group:
        alice = group.join("Alice", prompt[44:], writing(40))
        finish(group)
    assert alice.output == plain(model, [*group.prefix, *alice.head], 40)


def test_two_workers_are_their_transcript(loaded: tuple[Engine, object]) -> None:
    """Two workers and a text injected on the way, 30 layers deep: the same in one pass."""
    engine, _ = loaded
    engine_scores: dict[str, list[torch.Tensor]] = {}
    prefix = "Two friends, Alice and Bob, solve a riddle together. What has keys but no locks?\n\n"
    separators = engine.tokens_with("\n")
    with engine.group(prefix, layout="combined", separators=separators) as group:
        group.join("Alice", "Alice: I think", writing(24))
        group.join("Bob", "Bob: Let us", writing(16))
        for _ in range(8):
            for name in group.step():
                engine_scores.setdefault(name, []).append(group.logits[name])
        group.inject("tool", "The dictionary says: a piano has keys.\n\n")
        for name, found in finish(group).items():
            engine_scores.setdefault(name, []).extend(found)
    assert sum(map(len, engine_scores.values())) == 40
    compare_with_replay(engine, group, engine_scores, 5e-3)
