"""Groups in vLLM where memory, context or steps are short: each on an engine of its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
from adapters import RANK, adapted
from driving import finish, plain, writing
from served import HEADS, PREFIX, served, start
from tiny import VOCABULARY, ids, tiny

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.transcript import Transcript

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

AHEAD = pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "ahead"])


def test_chunked_prefill_changes_nothing_but_the_steps(tmp_path: Path) -> None:
    """With 48 tokens a step the prefix comes in pieces, heads too; every token is still exact."""
    with served(tiny(dtype=torch.float32), tmp_path, max_num_batched_tokens=48) as engine:
        heads = {"Alice": ids(100, seed=40), "Bob": ids(7, seed=41), "Carol": ids(60, seed=42)}
        rows = {
            name: engine.row("chunks", name, PREFIX, head, 15, size=3)
            for name, head in heads.items()
        }
        engine.run()
        transcript = engine.require_replay("chunks", rows)
        assert len([step for step in transcript.steps if step.wrote.get("Alice", 0) > 1]) > 2
        engine.require_clean()


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.bfloat16, 0.25), (torch.float16, 0.01)], ids=str
)
def test_half_precision_says_nearly_the_same(
    tmp_path: Path, dtype: torch.dtype, close: float
) -> None:
    """The numbers of such a server (bfloat16 kernels lay out blocks in another way) are close."""
    model = tiny(dtype=dtype)
    with served(model, tmp_path) as engine:
        rows = start(engine, "half", 10, logprobs=1)
        engine.run()
        engine.model = model.float()
        again = engine.reference().replay(engine.transcript("half"))
        off = []
        for worker, row in rows.items():
            expected = again.rows[worker][len(HEADS[worker]) - 1 :].log_softmax(-1)
            for found, position in zip(engine.written[row].logprobs or (), expected, strict=True):
                off += [abs(v.logprob - float(position[t])) for t, v in found.items()]
        assert sum(off) / len(off) < close
        engine.require_clean()


def test_a_setting_that_rules_sharing_out_stops_the_start(tmp_path: Path) -> None:
    """Before a weight is read."""
    refused = pytest.raises(CannotShare, match="--kv-cache-dtype is fp8")
    with refused, served(tiny(dtype=torch.bfloat16), tmp_path, kv_cache_dtype="fp8"):
        raise AssertionError("it has started")


def test_a_compiled_model_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is outside of what torch traces. Traced only: inductor takes a minute more."""
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    with served(tiny(dtype=torch.float32), tmp_path, enforce_eager=False) as engine:
        assert engine.core.vllm_config.compilation_config.mode
        rows = start(engine, "compiled", 10)
        engine.run()
        engine.require_replay("compiled", rows)
        engine.require_clean()


@AHEAD
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_ordinary_requests_make_room_for_a_group(tmp_path: Path, policy: str, ahead: bool) -> None:
    """In a full cache they are preempted, the rows never; all write what they write in peace."""
    prompts = [ids(40, seed=50 + k) for k in range(3)]
    model = tiny(dtype=torch.float32)
    with served(
        model, tmp_path, ahead=ahead, num_gpu_blocks_override=26, scheduling_policy=policy
    ) as engine:
        peace = []
        for prompt in prompts:
            peace.append(engine.add(prompt, 120))
            engine.run()
        busy = [
            engine.add(prompt, 120, priority=-1 if policy == "priority" else 0)
            for prompt in prompts
        ]
        engine.steps(20)
        rows = start(engine, "room", 110)
        preempted = 0
        while engine.engine.has_unfinished_requests():
            engine.step()
            preempted = max(
                preempted, *(r.num_preemptions for r in engine.scheduler.requests.values()), 0
            )
        engine.run()
        assert preempted
        transcript = engine.require_replay("room", rows)
        assert len(transcript.steps) == 110  # no step was lost to memory
        for quiet, loud in zip(peace, busy, strict=True):
            assert engine.written[loud].tokens == engine.written[quiet].tokens
        engine.require_clean()


@AHEAD
def test_fifteen_blocks_end_exactly(tmp_path: Path, ahead: bool) -> None:
    """The case in which one preemption used to stop everything for ever: rows of 199 tokens.

    Rows that find no block end with ``length``, what they wrote stays in sight, the others go on.
    """
    with served(
        tiny(dtype=torch.float32),
        tmp_path,
        ahead=ahead,
        num_gpu_blocks_override=15,
        max_model_len=256,
    ) as engine:
        rows = start(engine, "tight", 120)
        engine.run()
        transcript = engine.require_replay("tight", rows)
        written = {worker: engine.written[row] for worker, row in rows.items()}
        counts = {worker: len(found.tokens) for worker, found in written.items()}
        assert {found.finish for found in written.values()} == {"length"}
        assert min(counts.values()) < 120
        assert any("no block" in str(found.reason) for found in written.values())
        assert sum(len(t) for t in transcript.tokens.values()) > 300
        with engine.reference().group(PREFIX) as group:
            for worker, head in HEADS.items():
                group.join(worker, head, writing(counts[worker]))
            finish(group)
            expected = {name: member.output for name, member in group.members.items()}
        assert {worker: found.tokens for worker, found in written.items()} == expected
        engine.require_clean()


def test_groups_wait_for_the_memory_that_others_were_promised(tmp_path: Path) -> None:
    """Two groups that do not fit together run one after the other, neither cut short."""
    with served(
        tiny(dtype=torch.float32), tmp_path, num_gpu_blocks_override=20, max_model_len=400
    ) as engine:
        first, second = start(engine, "one", 90), start(engine, "two", 90)
        engine.steps(40)
        assert all(engine.written[row].tokens for row in first.values())
        assert not any(engine.written[row].tokens for row in second.values())
        engine.run()
        for group, rows in (("one", first), ("two", second)):
            engine.require_replay(group, rows)
            assert all(len(engine.written[row].tokens) == 90 for row in rows.values())
        engine.require_clean()


def test_who_waits_for_memory_and_goes_away_holds_nobody_up(tmp_path: Path) -> None:
    """Requests that came behind a group wait behind it, until its clients have gone."""
    with served(
        tiny(dtype=torch.float32), tmp_path, num_gpu_blocks_override=15, max_model_len=400
    ) as engine:
        before = engine.add(ids(300, seed=1), 40)  # 10 or 11 of the 14 blocks
        engine.steps(2)
        rows = [engine.row("gone", f"w{k}", PREFIX, ids(60, seed=k), 8, size=2) for k in range(2)]
        behind = engine.add(ids(20, seed=9), 5)
        engine.steps(3)
        assert not engine.written[behind].tokens
        for row in rows:
            engine.abort(row)
        engine.steps(8)
        assert len(engine.written[behind].tokens) == 5
        assert engine.written[before].finish is None
        engine.run()
        engine.require_clean()


def test_rows_that_have_ended_leave_room_for_who_comes_late(tmp_path: Path) -> None:
    """What they were promised and did not write is free; one that can never fit hears so."""
    small = {"num_gpu_blocks_override": 16, "max_model_len": 480}
    with served(tiny(dtype=torch.float32), tmp_path, **small) as engine:
        rows = start(engine, "late", 100, hold=30.0)
        engine.steps(5)
        for row in rows.values():
            engine.abort(row)
        engine.step()
        large = engine.row("late", "large", PREFIX, ids(400, seed=8), 4, late=True)
        engine.run()
        assert engine.written[large].finish == "error"
        assert "no room left for another row" in str(engine.written[large].reason)
        rows["answer"] = engine.row("late", "answer", PREFIX, ids(6, seed=9), 40, late=True)
        engine.run()
        assert len(engine.written[rows["answer"]].tokens) == 40
        engine.require_replay("late", rows)
        engine.require_clean()


def test_a_group_larger_than_memory_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """Each of its rows ends with an error at once; the server goes on."""
    with served(
        tiny(dtype=torch.float32), tmp_path, num_gpu_blocks_override=15, max_model_len=400
    ) as engine:
        rows = [engine.row("large", f"w{k}", PREFIX, ids(120, seed=k), 5, size=4) for k in range(4)]
        ordinary = engine.add(ids(20, seed=9), 5)
        engine.run()
        for row in rows:
            assert engine.written[row].finish == "error"
            assert "take 18 blocks of 32 tokens, the cache has 14" in str(
                engine.written[row].reason
            )
        assert len(engine.written[ordinary].tokens) == 5
        engine.require_clean()


def test_a_group_waits_for_a_place_of_its_adapter(tmp_path: Path) -> None:
    """With one place for adapters, it begins when the request with another one has ended."""
    from vllm.lora.request import LoRARequest

    model, prompt = tiny(dtype=torch.float32), ids(20, seed=9)
    names = {name: tmp_path / name for name in ("french", "german")}
    merged = {name: adapted(model, path, seed=k) for k, (name, path) in enumerate(names.items())}
    adapters = {n: LoRARequest(n, k, str(path)) for k, (n, path) in enumerate(names.items(), 1)}
    with served(
        model, tmp_path / "served", enable_lora=True, max_loras=1, max_lora_rank=RANK
    ) as engine:
        before = engine.add(prompt, 8, adapter=adapters["german"])
        engine.step()
        rows = start(engine, "waits", 8, adapter=adapters["french"])
        after = engine.add(prompt, 8, adapter=adapters["german"])
        engine.step()
        assert not any(engine.written[row].tokens for row in rows.values())
        engine.run()
        for name in (before, after):
            assert engine.written[name].tokens == plain(merged["german"], prompt, 8)
        engine.model = merged["french"]
        engine.require_replay("waits", rows)
        engine.require_clean()


def test_a_group_ends_where_the_models_context_does(tmp_path: Path) -> None:
    """What a row sees of its group must lie within the context, not the row alone."""
    model = tiny(dtype=torch.float32, max_position_embeddings=160)
    with served(model, tmp_path, max_model_len=160) as engine:
        rows = start(engine, "context", 80)
        engine.run()
        transcript = engine.require_replay("context", rows)
        assert 150 < 70 + sum(map(len, transcript.tokens.values())) <= 160
        assert all("context" in str(engine.written[row].reason) for row in rows.values())
        engine.require_clean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ordinary_requests_write_what_they_write_without_the_plugin(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Token for token, scores to the last bit, with chunks, preemption and the prefix cache."""
    prompts = [ids(20 + 17 * k, seed=60 + k) for k in range(5)]
    found = []
    for stock in (True, False):
        with served(
            tiny(dtype=dtype),
            tmp_path / str(stock),
            stock=stock,
            num_gpu_blocks_override=20,
            max_num_batched_tokens=64,
        ) as engine:
            assert ("hogwild" in type(engine.scheduler).__module__) is not stock
            names = [engine.add(prompt, 60, logprobs=1) for prompt in (*prompts, *prompts)]
            engine.run()
            written = [engine.written[name] for name in names]
            found.append(
                [
                    (
                        w.tokens,
                        w.cached,
                        [[v.logprob for v in p.values()] for p in w.logprobs or ()],
                    )
                    for w in written
                ]
            )
    assert found[0] == found[1]


def test_without_a_prefix_cache_each_row_holds_its_own(tmp_path: Path) -> None:
    """Exact as well, only dearer."""
    with served(tiny(dtype=torch.float32), tmp_path, enable_prefix_caching=False) as engine:
        rows = start(engine, "apart", 12)
        engine.run()
        engine.require_replay("apart", rows)
        engine.require_clean()


@AHEAD
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_texts_are_exact_and_no_block_is_lost(
    tmp_path: Path, seed: int, ahead: bool
) -> None:
    """Groups of all layouts, late rows, ordinary requests and clients that leave, in 24 blocks."""
    draw = random.Random(seed)
    separators = tuple(token for token in range(VOCABULARY) if token % 5 < 3)
    with served(
        tiny(dtype=torch.float32),
        tmp_path,
        ahead=ahead,
        num_gpu_blocks_override=25,
        max_model_len=300,
        max_num_batched_tokens=draw.choice([40, 256]),
        max_num_seqs=6,
        scheduling_policy=draw.choice(["fcfs", "priority"]),
    ) as engine:
        rows: dict[str, str] = {}  # by worker, each of which has a name of its own
        groups: dict[str, tuple[list[int], str]] = {}
        going: list[str] = []
        for number in range(60):
            match draw.choice(["group", "row", "ordinary", "abort", "steps", "steps", "steps"]):
                case "group":
                    name = f"g{number}"
                    layout = draw.choice(["contiguous", "interleaved", "combined"])
                    groups[name] = (ids(draw.choice([20, 33, 64, 70]), number), layout)
                    size = draw.randint(1, 4)
                    joining = [(name, size)] * size
                case "row" if groups:
                    joining = [(draw.choice(list(groups)), 1)]
                case "ordinary":
                    prompt = ids(draw.randint(5, 90), number)
                    going.append(engine.add(prompt, draw.randint(1, 60)))
                    continue
                case "abort" if going:
                    engine.abort(going.pop(draw.randrange(len(going))))
                    continue
                case _:
                    engine.steps(draw.randint(1, 12))
                    continue
            for name, size in joining:
                prefix, layout = groups[name]
                worker = f"w{len(rows)}"
                rows[worker] = engine.row(
                    name,
                    worker,
                    prefix,
                    ids(draw.choice([0, 1, 7, 40]), len(rows)) if draw.random() < 0.9 else [],
                    draw.choice([1, 9, 60]),
                    size=size,
                    layout=layout,
                    steps=separators,
                )
                going.append(rows[worker])
        engine.run(most=10**5)
        engine.require_clean()
        reference = engine.reference()
        checked = 0
        for path in engine.records.glob("*.json"):
            transcript = Transcript.from_json(path.read_text())
            again = reference.replay(transcript)
            for worker in transcript.tokens:
                written = engine.written[rows[worker]]
                told = len(written.prompt) - len(transcript.prefix)
                behind = torch.cat((again.prefix[-1:], again.rows[worker]))[told:]
                assert written.tokens == behind.argmax(-1).tolist()[: len(written.tokens)]
                checked += len(written.tokens)
        assert checked > 100
