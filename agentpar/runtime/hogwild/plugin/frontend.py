"""What vLLM's front end knows of groups: it refuses a mistaken request with HTTP 400.

Two of vLLM's methods are wrapped; an ordinary request passes them by with one look at its extra
arguments. The engine checks again, since not all requests come through this door.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from agentpar.errors import UsageError
from agentpar.runtime.hogwild.plugin.params import check, is_member, parse

REFUSED = "hogwild refused: "
"""How the ``stop_reason`` of a request begins that the engine refused."""


def install() -> None:
    """Wrap the methods, once."""
    if not hasattr(InputProcessor.process_inputs, "__wrapped__"):
        InputProcessor.process_inputs = _checked(InputProcessor.process_inputs)
        AsyncLLM.generate = _told(AsyncLLM.generate)


def _checked(process_inputs: Any) -> Any:
    @functools.wraps(process_inputs)
    def checked(
        self: Any, request_id: str, prompt: Any, params: Any, *rest: Any, **named: Any
    ) -> Any:
        request = process_inputs(self, request_id, prompt, params, *rest, **named)
        arguments = getattr(params, "extra_args", None)
        if not is_member(arguments):
            return request
        try:
            member = parse(arguments)
            if member is None or request.sampling_params is None:
                raise UsageError("a pooling request cannot be a row of a group; leave hogwild_ out")
            tokens = request.prompt_token_ids
            check(
                member,
                prompt=None if tokens is None or request.prompt_embeds is not None else len(tokens),
                samples=params.n,
                prompt_logprobs=params.prompt_logprobs is not None,
                resumable=request.resumable,
            )
        except UsageError as error:
            raise VLLMValidationError(str(error), parameter="vllm_xargs") from None
        return request

    return checked


def _told(generate: Any) -> Any:
    @functools.wraps(generate)
    def told(self: Any, prompt: Any, sampling_params: Any, *rest: Any, **named: Any) -> Any:
        outputs = generate(self, prompt, sampling_params, *rest, **named)
        if is_member(getattr(sampling_params, "extra_args", None)):
            return _raising(outputs)
        return outputs

    return told


async def _raising(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """``outputs``, but what the engine refused raises with its reason."""
    try:
        async for output in outputs:
            for sample in output.outputs:
                reason = sample.stop_reason
                if isinstance(reason, str) and reason.startswith(REFUSED):
                    raise VLLMValidationError(reason.removeprefix(REFUSED), parameter="vllm_xargs")
            yield output
    finally:
        await outputs.aclose()
