"""The runtime with vLLM inside this process, for embedding without a server.

Knows vLLM's asynchronous engine; loads it at the first request, since that takes half a
minute and gigabytes. For several agents at once, or several runs, a server is better.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from agentpar.errors import GrammarRefused, ModelServerError
from agentpar.events import Usage
from agentpar.ports import Capability, Message, ModelRequest
from agentpar.runtime import launch, models
from agentpar.runtime.hogwild.opening import OpensGroups
from agentpar.runtime.hogwild.plugin import engine_args
from agentpar.runtime.hogwild.rows import Row
from agentpar.runtime.hogwild.served import step_tokens, xargs
from agentpar.runtime.refusal import refusal
from agentpar.runtime.tokens import token_ids


class EngineRuntime(OpensGroups):
    """Streams from a vLLM engine that serves ``model``, a folder or a name as for `resolve`.

    ``sharing``: its requests may share one KV cache, as workers do (None: where model and machine
    allow it). ``engine_args`` go to
    ``vllm.AsyncEngineArgs``. The engine belongs to the event loop of the first request; `aclose`
    ends it.
    """

    def __init__(
        self, model: str | Path, *, sharing: bool | None = False, **engine_args: Any
    ) -> None:
        self._name = str(model)
        self._sharing = sharing
        self._engine_args = engine_args
        self._engine: Any = None
        self._refused_a_grammar = False
        self._starting = asyncio.Lock()  # the first requests may come together: one engine

    def __repr__(self) -> str:
        return f"EngineRuntime({self._name!r})"

    @property
    def provider(self) -> str:
        return "vllm"

    @property
    def model_name(self) -> str:
        return self._name

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """Yield text pieces, then one `Usage`; closing the generator aborts the request.

        Raises `ModelServerError` where the engine cannot start, refuses (`GrammarRefused`
        where it is about the grammar) or dies, and `MissingPackage` without vLLM.
        """
        tokens = await self.tokenize(request.messages)
        async with aclosing(self._generate(tokens, _sampling(request), request)) as pieces:
            async for piece in pieces:
                yield piece

    async def _generate(
        self, tokens: Sequence[int], sampling: Any, request: ModelRequest | None = None
    ) -> AsyncGenerator[str | Usage, None]:
        engine = await self._start()
        usage = Usage(prompt_tokens=len(tokens), calls=1)
        try:
            outputs = engine.generate(
                {"prompt_token_ids": list(tokens)},
                sampling,
                f"agentpar-{uuid.uuid4()}",
                priority=launch.BACKGROUND if request and request.background else 0,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    piece = output.outputs[0]
                    usage += Usage(
                        completion_tokens=len(piece.token_ids),
                        cached_tokens=(output.num_cached_tokens or 0) - usage.cached_tokens,
                        cut=piece.finish_reason == "length",
                    )
                    if piece.text:
                        yield piece.text
        except Exception as error:  # vLLM's own errors share no base class
            text = f"the vLLM engine of {self._name!r}: {error}"
            if request is None:
                raise ModelServerError(text) from error
            raised = refusal(request, text, begun=usage.completion_tokens > 0)
            self._refused_a_grammar |= isinstance(raised, GrammarRefused)
            raise raised from error
        yield usage

    def rows(self) -> EngineRuntime:
        """It writes rows itself, if it shares."""
        return self

    async def cannot_share(self) -> str:
        if self._sharing is False:
            return "this engine was opened without sharing=True"
        await self._start()
        return "" if self._sharing else "this model, or vLLM on this device, cannot share a cache"

    async def tokenize(self, text: str | Sequence[Message]) -> tuple[int, ...]:
        tokenizer = (await self._start()).get_tokenizer()
        return token_ids(tokenizer, text)

    async def step_tokens(self) -> tuple[int, ...]:
        return await step_tokens(self)

    def write(self, row: Row) -> AsyncGenerator[str | Usage, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=row.max_tokens,
            temperature=row.temperature,
            seed=row.seed,
            extra_args=xargs(row),
            output_kind=RequestOutputKind.DELTA,
        )
        return self._generate(row.tokens, sampling)

    async def capabilities(self) -> frozenset[Capability]:
        """All, as this is vLLM; no grammar any more once it refused one."""
        able: set[Capability] = {"grammar", "json_schema"}
        if self._refused_a_grammar:
            able.discard("grammar")
        if self._engine_args.get("enable_prefix_caching", True):
            able.add("prefill")
        return frozenset(able)

    async def aclose(self) -> None:
        """End the engine and its processes."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    async def _start(self) -> Any:
        async with self._starting:
            if self._engine is None:
                device = launch.engine().device
                folder = await asyncio.to_thread(models.resolve, self._name)
                if self._sharing is None:
                    self._sharing = launch.can_share(device, folder)
                # vLLM reads it when imported.
                os.environ.update(launch.environment(device, sharing=bool(self._sharing)))
                self._engine = await asyncio.to_thread(self._load, folder, device)
            return self._engine

    def _load(self, folder: Path, device: str) -> Any:
        """The loaded engine; it binds itself to the event loop at its first request."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        settings: dict[str, Any] = {
            "model": str(folder),
            "enable_prefix_caching": True,
            "scheduling_policy": "priority",
            "structured_outputs_config": launch.STRUCTURED,
        }
        if device == "cpu":
            settings |= {"max_model_len": 8192, "dtype": "bfloat16", "enforce_eager": True}
        if self._sharing:
            settings |= engine_args(device)
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**(settings | self._engine_args)))
        except Exception as error:  # vLLM's own errors share no base class
            raise ModelServerError(f"vLLM could not load {self._name!r}: {error}") from error


def _sampling(request: ModelRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    constraint = None
    if request.grammar is not None:
        constraint = StructuredOutputsParams(grammar=request.grammar)
    elif request.json_schema is not None:
        constraint = StructuredOutputsParams(json=dict(request.json_schema))
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        stop=list(request.stop),
        seed=request.seed,
        structured_outputs=constraint,
        output_kind=RequestOutputKind.DELTA,
    )
