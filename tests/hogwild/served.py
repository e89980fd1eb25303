"""A vLLM in this process with the plugin in it, driven step by step by a test.

Models are tiny and random, so an engine starts in seconds. What the plugin changes in vLLM is put
back when the last engine has gone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from tiny import ids

from agentpar.runtime.hogwild import plugin
from agentpar.runtime.hogwild.engine import Engine
from agentpar.runtime.hogwild.transcript import Transcript

SCHEDULER = "agentpar.runtime.hogwild.plugin.scheduler.HogwildScheduler"
AHEAD = "agentpar.runtime.hogwild.plugin.scheduler.HogwildAsyncScheduler"
WORKER = "agentpar.runtime.hogwild.plugin.cpu.worker.HogwildCPUWorker"


PREFIX = ids(70, seed=3)
HEADS = {"Alice": ids(5, seed=4), "Bob": ids(3, seed=5), "Carol": ids(9, seed=6)}


@dataclass
class Written:
    """What has come of one request."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    reason: int | str | None = None
    cached: int | None = None
    logprobs: list[Any] | None = None


class Served:
    """One engine. ``model`` is the transformers model that it serves."""

    def __init__(self, model: Any, folder: Path, **arguments: Any) -> None:
        from vllm import EngineArgs, LLMEngine

        self.model = model
        self.records = folder / "records"
        model.save_pretrained(folder / "model")
        settings: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "enforce_eager": True,
            "max_model_len": 512,
            "block_size": 32,
            "num_gpu_blocks_override": 256,
            "kv_cache_memory_bytes": 1 << 28,
            "enable_prefix_caching": True,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 1024,
            "scheduler_cls": SCHEDULER,
            "worker_cls": WORKER,
        }
        arguments = {key: value for key, value in (settings | arguments).items() if value}
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(model=str(folder / "model"), skip_tokenizer_init=True, **arguments)
        )
        self.written: dict[str, Written] = {}
        self._count = 0

    @property
    def core(self) -> Any:
        return self.engine.engine_core.engine_core

    @property
    def scheduler(self) -> Any:
        return self.core.scheduler

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def blocks(self) -> int:
        """All blocks but the one that stands for none."""
        return int(self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1

    def add(
        self,
        prompt: list[int],
        count: int,
        *,
        priority: int = 0,
        adapter: Any = None,
        salt: str | None = None,
        **settings: Any,
    ) -> str:
        """A request for ``count`` tokens, the likeliest each; its name.

        ``adapter``: a ``LoRARequest``. ``salt``: only requests with the same share cached prefixes.
        """
        from vllm import SamplingParams

        self._count += 1
        name = f"request-{self._count}"
        parameters = {"temperature": 0.0, "ignore_eos": True, "detokenize": False} | settings
        self.engine.add_request(
            name,
            {"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt else {}),
            SamplingParams(max_tokens=count, **parameters),
            lora_request=adapter,
            priority=priority,
        )
        self.written[name] = Written(prompt)
        return name

    def row(
        self,
        group: str,
        worker: str,
        prefix: list[int],
        head: list[int],
        count: int,
        *,
        size: int = 1,
        layout: str = "contiguous",
        steps: tuple[int, ...] = (),
        late: bool = False,
        hold: float = 0.0,
        **settings: Any,
    ) -> str:
        """A row of a group that is told ``head``; its name as a request."""
        arguments = {
            "hogwild_group": group,
            "hogwild_worker": worker,
            "hogwild_prefix": len(prefix),
            "hogwild_size": size,
            "hogwild_layout": layout,
            "hogwild_steps": list(steps),
            "hogwild_late": int(late),
            "hogwild_hold": hold,
        }
        return self.add([*prefix, *head], count, extra_args=arguments, **settings)

    def abort(self, name: str) -> None:
        self.engine.abort_request([name])

    def step(self) -> None:
        for output in self.engine.step():
            found = self.written[output.request_id]
            (sample,) = output.outputs
            found.tokens = list(sample.token_ids)
            found.finish, found.reason = sample.finish_reason, sample.stop_reason
            found.cached = output.num_cached_tokens
            found.logprobs = sample.logprobs

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def run(self, *, most: int = 2000) -> None:
        """Step until nothing is left to do, which takes ``most`` steps or fewer."""
        for _ in range(most):
            if not (self.engine.has_unfinished_requests() or self.scheduler.has_requests()):
                return
            self.step()
        states = {r: (q.status.name, q.num_tokens) for r, q in self.scheduler.requests.items()}
        raise AssertionError(f"after {most} steps there is still work: {states}, {self.free} free")

    def transcript(self, group: str) -> Transcript:
        """What the last group of that name left behind."""
        paths = self.records.glob(f"{quote(group, safe='')}.*.json")
        last = max(paths, key=lambda path: int(path.stem.rpartition(".")[2]))
        return Transcript.from_json(last.read_text())

    def reference(self, **settings: Any) -> Engine:
        """The reference engine with this model."""
        return Engine(self.model, **({"block_size": 16, "chunk": 4096} | settings))

    def require_clean(self) -> None:
        """Nothing is held, promised or remembered any more."""
        scheduler = self.scheduler
        assert self.free == self.blocks
        assert not scheduler.requests
        assert not any((scheduler._rows, scheduler._line, scheduler._groups, scheduler._due))
        worker = self.core.model_executor.driver_worker.worker
        assert not worker._groups
        assert not worker._groups._of

    def require_replay(self, group: str, rows: dict[str, str]) -> Transcript:
        """Each token that a row wrote is the likeliest in one dense pass over the transcript."""
        transcript = self.transcript(group)
        again = self.reference().replay(transcript)
        for worker, name in rows.items():
            written = self.written[name]
            told = len(written.prompt) - len(transcript.prefix)
            computed = transcript.tokens.get(worker, ())
            assert (
                computed[:told] == tuple(written.prompt[len(transcript.prefix) :])[: len(computed)]
            )
            own = again.rows.get(worker, again.prefix[:0])
            expected = torch.cat((again.prefix[-1:], own))[told:].argmax(-1).tolist()
            assert written.tokens == expected[: len(written.tokens)]
            if written.finish in {"stop", "length"}:  # else it may be ahead of its client
                assert len(computed) == told + max(0, len(written.tokens) - 1)
        return transcript


def start(engine: Served, group: str, count: int, **settings: Any) -> dict[str, str]:
    """Three rows that begin together, of ``count`` tokens each; their requests by worker."""
    return {
        worker: engine.row(group, worker, PREFIX, head, count, size=len(HEADS), **settings)
        for worker, head in HEADS.items()
    }


@contextmanager
def serving(
    record: Path, *, stock: bool = False, backend: str | None = None
) -> Iterator[ExitStack]:
    """The plugin is registered, and groups leave their transcripts in ``record``.

    ``stock``: it is not, and vLLM is as its makers left it.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.attention.selector import _cached_get_attn_backend

    from agentpar.runtime.hogwild.plugin.frontend import wraps

    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wraps()]
    threads = torch.set_num_threads  # which vLLM's worker replaces
    with quick_starts(), pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for key, value in {
            **plugin.environment(),
            plugin.RECORD: str(record),
            plugin.WAIT: "0.5",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_PLUGINS": "",
        }.items():
            patch.setenv(key, value)
        if not stock:
            plugin.register()
        if backend is not None:
            register_backend(AttentionBackendEnum.CPU_ATTN, backend)
        _cached_get_attn_backend.cache_clear()
        try:
            yield stack
        finally:
            AttentionBackendEnum.CPU_ATTN.clear_override()
            _cached_get_attn_backend.cache_clear()
            torch.set_num_threads = threads
            for owner, name, method in before:
                setattr(owner, name, method)


@contextmanager
def quick_starts() -> Iterator[None]:
    """vLLM starts and ends without what takes most of its time in a process with much in it:
    collecting the garbage of all of it, again and again, and looking for kernels in all modules."""
    from vllm.platforms.cpu import CpuPlatform

    find_kernels()
    gc.freeze()  # what was there before the engine is no garbage of it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gc, "unfreeze", lambda: None)
            patch.setattr(CpuPlatform, "register_triton_kernel_overrides", lambda *_: None)
            yield
    finally:
        gc.unfreeze()
        gc.collect()


@cache
def find_kernels() -> None:
    """As every engine would: what they put in the place of the kernels stays there."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.register_triton_kernel_overrides()


@contextmanager
def scheduling_ahead() -> Iterator[None]:
    """vLLM schedules a step while the one before runs, which it does on GPUs only by itself."""
    from vllm.platforms.cpu import CpuPlatform

    settle = CpuPlatform.check_and_update_config.__func__

    def settled(cls: type, config: Any) -> None:
        settle(cls, config)
        config.scheduler_config.async_scheduling = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPlatform, "check_and_update_config", classmethod(settled))
        yield


@contextmanager
def served(
    model: Any,
    folder: Path,
    *,
    ahead: bool = False,
    stock: bool = False,
    backend: str | None = None,
    **arguments: Any,
) -> Iterator[Served]:
    """An engine for ``model``, gone afterwards.

    ``ahead``: it schedules ahead. ``stock``: it is a vLLM without the plugin. ``backend``: another
    class that answers in ``CPU_ATTN``'s place.
    """
    with serving(folder / "records", stock=stock, backend=backend) as stack:
        if stock:
            arguments |= {"scheduler_cls": None, "worker_cls": "auto"}
        if ahead:
            stack.enter_context(scheduling_ahead())
            arguments["scheduler_cls"] = AHEAD
        engine = Served(model, folder, **arguments)
        assert engine.core.async_scheduling is ahead
        try:
            yield engine
        finally:
            engine.engine.engine_core.shutdown()
            del engine.engine
