"""The reference engine against transformers, and against its own transcript in one dense pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from driving import compare_with_replay, finish, plain, step, writing
from tiny import VOCABULARY, ids, tiny

from agentpar.errors import CannotShare, UsageError
from agentpar.runtime.hogwild.engine import Engine
from agentpar.runtime.hogwild.engine.attention import Piece, attend
from agentpar.runtime.hogwild.engine.rotary import Rotary
from agentpar.runtime.hogwild.spans import Span, rotation
from agentpar.workers import Layout

LAYOUTS: tuple[Layout, ...] = ("contiguous", "interleaved", "combined")
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama, biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, tied": {"family": "llama", "tie_word_embeddings": True},
    "llama 3": {
        "family": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen2": {"family": "qwen2"},
    "qwen2, YaRN": {
        "family": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3": {"family": "qwen3"},
    "qwen3, linear": {
        "family": "qwen3",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_one_worker_writes_what_transformers_writes(name: str) -> None:
    """Token for token, from the same weights, in each layout."""
    model = tiny(**MODELS[name], dtype=torch.float32)
    prompt = ids(42, 1)
    expected = plain(model, prompt, 30)
    engine = Engine(model, chunk=16)
    for layout in LAYOUTS:
        with engine.group(prompt[:37], layout=layout, separators=range(60)) as group:
            group.join("Alice", prompt[37:], writing(30))
            finish(group)
        assert group.members["Alice"].output == expected


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 41, 42])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_where_a_prompt_is_cut_makes_no_difference(cut: int, chunk: int) -> None:
    """Into prefix and head, into chunks, into blocks: one worker writes the same."""
    model = tiny(layers=2)
    prompt = ids(42, 1)
    with Engine(model, chunk=chunk).group(prompt[:cut]) as group:
        group.join("Alice", prompt[cut:], writing(10))
        scores = finish(group)["Alice"]
    with torch.no_grad():
        text = torch.tensor([prompt + group.members["Alice"].output[:-1]])
        expected = model(text).logits[0, 41:]
    # transformers takes norms and angles in float32.
    torch.testing.assert_close(torch.stack(scores), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_in_one_layer_a_view_is_the_text_that_stands_in_it(family: str, layout: Layout) -> None:
    """Keys of the first layer depend on no view: transformers, given the view as one text,
    finds the same scores."""
    model = tiny(family, layers=1)
    compared = 0
    with Engine(model).group(ids(37, 1), layout=layout, separators=range(60)) as group:
        for name in ("Alice", "Bob", "Carol"):
            group.join(name, ids(len(name), len(name)), writing(12))
        while group.running:
            scores: dict[str, list[torch.Tensor]] = {}
            step(group, scores)
            transcript = group.transcript()
            views: dict[str, tuple[Span, ...]] = {}
            for _, board in transcript.boards():  # the last one is this step's
                views = {name: board.view(name) for name in scores}
            rows = {name: transcript.prefix + own for name, own in transcript.tokens.items()}
            for name, view in views.items():
                text = [token for span in view for token in rows[span.row][span.start : span.stop]]
                with torch.no_grad():
                    expected = model(torch.tensor([text])).logits[0, -1]
                torch.testing.assert_close(scores[name][0], expected, rtol=0, atol=1e-4)
                compared += 1
    assert compared == 36


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_group_is_its_transcript_in_one_pass(layout: Layout, workers: int) -> None:
    """Heads and ends of different lengths, a tool's text in the middle, four layers deep."""
    engine = Engine(tiny(), chunk=8)
    scores: dict[str, list[torch.Tensor]] = {}
    with engine.group(ids(37, 1), layout=layout, separators=range(40)) as group:
        for name, head, count in (("A", 5, 18), ("B", 0, 7), ("C", 19, 12), ("D", 1, 1))[:workers]:
            group.join(name, ids(head, head), writing(count))
        while group.running:
            step(group, scores)
            if group.members["A"].computed == 12:
                group.inject("tool", ids(11, 7))
    compare_with_replay(engine, group, scores, 1e-10)
    assert len(scores["A"]) == 18
    assert "tool" in group.transcript().tokens


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_heads_of_any_size_that_share_keys(kv_heads: int, head_dim: int) -> None:
    """Eight query heads over 1 to 8 key heads: engine and replay, in float64 and float32."""
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        model = tiny(heads=8, kv_heads=kv_heads, head_dim=head_dim, layers=2, dtype=dtype)
        engine = Engine(model)
        with engine.group(ids(21, 1), layout="combined", separators=range(40)) as group:
            group.join("Alice", ids(4, 2), writing(8))
            group.join("Bob", ids(9, 3), writing(8))
            scores = finish(group)
        compare_with_replay(engine, group, scores, atol)


@pytest.mark.parametrize("name", MODELS)
def test_each_family_shares_exactly(name: str) -> None:
    """Biases, norms of query and key, scaled rotations: engine and replay."""
    engine = Engine(tiny(**MODELS[name], layers=2))
    with engine.group(ids(45, 1)) as group:
        group.join("Alice", ids(4, 2), writing(10))
        group.join("Bob", ids(9, 3), writing(10))
        scores = finish(group)
    compare_with_replay(engine, group, scores, 1e-10)


def test_in_bfloat16_a_group_is_near_its_replay() -> None:
    """Half precision runs, and differs from float64 by its rounding alone."""
    exact, rough = (tiny(dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    exact.load_state_dict(rough.state_dict())  # the same weights, in both
    engine = Engine(rough)
    with engine.group(ids(37, 1)) as group:
        group.join("Alice", ids(5, 2), writing(12))
        group.join("Bob", ids(3, 3), writing(12))
        scores = finish(group)
    with torch.no_grad():
        again = Engine(exact).replay(group.transcript())
    for name, found in scores.items():
        expected = again.rows[name][len(group.members[name].head) - 1 :]
        near = torch.nn.functional.cosine_similarity(torch.stack(found).double(), expected)
        assert near.min() > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_a_gpu_a_group_is_its_replay(dtype: torch.dtype) -> None:
    """The same code where the model lies on a GPU."""
    engine = Engine(tiny(dtype=dtype).to("cuda"))
    with engine.group(ids(37, 1), layout="combined", separators=range(40)) as group:
        group.join("Alice", ids(5, 2), writing(12))
        group.join("Bob", ids(3, 3), writing(12))
        scores = finish(group)
    if dtype != torch.bfloat16:
        compare_with_replay(engine, group, scores, 1e-10 if dtype == torch.float64 else 1e-3)


def test_pieces_merge_to_one_softmax() -> None:
    """Attention by pieces, each query rotated on for each, is attention over moved keys."""
    rotary = Rotary(Engine(tiny(layers=1)).decoder.rotary.rope, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    heads, kv_heads, size, block = 4, 2, 32, 4
    raw = torch.randn(6 * block, kv_heads, size, dtype=torch.float64, generator=generator)
    values = torch.randn(6 * block, kv_heads, size, dtype=torch.float64, generator=generator)
    query = torch.randn(1, heads, size, dtype=torch.float64, generator=generator)
    # Two rows in three blocks each; the view: 0-4 of the first, 5-11 of the second, 5-9 of it.
    view = (Span("A", 0, 5, 0), Span("B", 5, 11, 5), Span("A", 5, 10, 11))
    tables = {"A": torch.tensor([4, 0, 3]), "B": torch.tensor([1, 5, 2])}

    def turned(x: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        return rotary.rotate(x, rotary.turn(torch.tensor(positions), torch.float64))

    keys = torch.zeros_like(raw)
    index = {
        row: (table[:, None] * block + torch.arange(block)).flatten()
        for row, table in tables.items()
    }
    for slots in index.values():
        keys[slots] = turned(raw[slots], range(12))
    pieces = [
        Piece(
            tables[span.row],
            span.start,
            span.stop,
            index[span.row][span.start : span.stop],
            queries=torch.tensor([0]),
            turn=rotary.turn(torch.tensor([rotation(span, view[-1])]), torch.float64),
        )
        for span in view
    ]
    shape = (6, block, kv_heads, size)
    found = attend(turned(query, [9]), keys.view(shape), values.view(shape), pieces, rotary, 0.3)

    slots = torch.cat([index[span.row][span.start : span.stop] for span in view])
    k = turned(raw[slots], range(16)).repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", turned(query, [15]), k) * 0.3
    expected = torch.einsum(
        "hqk,khd->qhd", scores.softmax(-1), values[slots].repeat_interleave(2, 1)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_another_attention_can_take_the_place_of_the_plain_one() -> None:
    """An `Attend` is handed each step's pieces: the prefix is read once for all workers."""
    seen: list[list[tuple[int, int, int]]] = []

    def counted(q: Any, k: Any, v: Any, pieces: Sequence[Piece], *rest: Any) -> torch.Tensor:
        seen.append([(piece.start, piece.stop, len(piece.queries)) for piece in pieces])
        return attend(q, k, v, pieces, *rest)

    with Engine(tiny(layers=1), attention=counted).group(ids(37, 1)) as group:
        for name in ("Alice", "Bob", "Carol"):
            group.join(name, ids(3, 2), writing(3))
        finish(group)
    assert seen[-1] == [(0, 37, 3), (37, 42, 3), (37, 42, 3), (37, 42, 3)]


def test_a_model_of_another_family_is_refused() -> None:
    """Its keys could be shared, but nobody wrote its forward pass here."""
    model = tiny("glm", layers=1, pad_token_id=0)
    with pytest.raises(CannotShare, match=r"computes llama, qwen2, qwen3, and no model .* 'glm'"):
        Engine(model)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    """A wrong tokenizer is told of at once, and not by an index error in the depth."""
    with pytest.raises(UsageError, match=f"{VOCABULARY} is no token of this model"):
        Engine(tiny(layers=1)).group([1, VOCABULARY])
    with pytest.raises(UsageError, match="no tokenizer"):
        Engine(tiny(layers=1)).group("text")
