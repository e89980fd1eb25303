"""The runtime with vLLM inside this process, for embedding without a server.

Knows vLLM's asynchronous engine; loads it at the first request, since that takes half a
minute and gigabytes. For several agents at once, or several runs, a server is better.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from agentpar.errors import GrammarRefused, ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ports import Capability, ModelRequest
from agentpar.runtime import launch, models
from agentpar.runtime.refusal import refusal


class EngineRuntime:
    """Streams from a vLLM engine that serves ``model``, a folder or a name as for `resolve`.

    ``engine_args`` go to ``vllm.AsyncEngineArgs``. The engine belongs to the event loop of
    the first request; `aclose` ends it.
    """

    def __init__(self, model: str | Path, **engine_args: Any) -> None:
        self._name = str(model)
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
        engine = await self._start()
        prompt = {"prompt_token_ids": _token_ids(engine.get_tokenizer(), request)}
        usage = Usage(prompt_tokens=len(prompt["prompt_token_ids"]), calls=1)
        try:
            outputs = engine.generate(
                prompt,
                _sampling(request),
                f"agentpar-{uuid.uuid4()}",
                priority=launch.BACKGROUND if request.background else 0,
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
            raised = refusal(request, text, begun=usage.completion_tokens > 0)
            self._refused_a_grammar |= isinstance(raised, GrammarRefused)
            raise raised from error
        yield usage

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
                os.environ.update(launch.environment(device))  # vLLM reads it when imported
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
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**(settings | self._engine_args)))
        except Exception as error:  # vLLM's own errors share no base class
            raise ModelServerError(f"vLLM could not load {self._name!r}: {error}") from error


def _token_ids(tokenizer: Any, request: ModelRequest) -> list[int]:
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    if not tokenizer.chat_template:
        raise UsageError("the tokenizer of these weights has no chat template")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)  # the template has written them
    return list(ids)


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
