"""What vLLM's front end knows of groups: it refuses a mistaken request with HTTP 400.

A few of vLLM's methods are wrapped; an ordinary request passes them by with one look at its extra
arguments. The engine checks again, since not all requests come through this door.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from agentpar.errors import UsageError
from agentpar.runtime.hogwild.plugin.params import Member, check, is_member, parse

REFUSED = "hogwild refused: "
"""How the ``stop_reason`` of a request begins that the engine refused."""


def install() -> None:
    """Wrap the methods, once."""
    for owner, name, wrapped in wraps():
        if not hasattr(method := getattr(owner, name), _OURS):
            method = wrapped(method)
            setattr(method, _OURS, True)
            setattr(owner, name, method)


def wraps() -> tuple[tuple[type, str, Callable[[Any], Any]], ...]:
    """What is wrapped: a class of vLLM's, a method of it, and by what."""
    return (
        (InputProcessor, "process_inputs", _checked),
        (AsyncLLM, "generate", _told),
        (CompletionRequest, "to_beam_search_params", _beamless),
        (ChatCompletionRequest, "to_beam_search_params", _beamless),
    )


_OURS = "__hogwild__"  # marks a method that is wrapped already


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
            require_row(member, request)
        except UsageError as error:
            raise VLLMValidationError(str(error), parameter="vllm_xargs") from None
        return request

    return checked


def require_row(member: Member, request: Any) -> None:
    """Raise `UsageError` where ``request`` cannot be the row that it wants to be.

    ``request`` has sampling parameters: vLLM's ``Request``, or what the front end makes of one.
    """
    tokens, parameters = request.prompt_token_ids, request.sampling_params
    check(
        member,
        prompt=None if tokens is None or request.prompt_embeds is not None else len(tokens),
        samples=parameters.n,
        prompt_logprobs=parameters.prompt_logprobs is not None,
        cached=not parameters.skip_reading_prefix_cache,
        resumable=request.resumable,
    )


def _beamless(to_beam_search_params: Any) -> Any:
    @functools.wraps(to_beam_search_params)
    def beamless(self: Any, *rest: Any, **named: Any) -> Any:
        if is_member(self.vllm_xargs):  # which vLLM would drop, and answer without the group
            raise VLLMValidationError(
                "a row of a group writes one text, so it cannot search with beams; leave "
                "use_beam_search out",
                parameter="vllm_xargs",
            )
        return to_beam_search_params(self, *rest, **named)

    return beamless


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
