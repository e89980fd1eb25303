"""Runtimes: what turns a request into text. `open_runtime` picks one from a model address."""

from __future__ import annotations

from agentpar.errors import UsageError
from agentpar.ports import Runtime
from agentpar.redact import public_url

__all__ = ["open_runtime"]


def open_runtime(
    model: str,
    *,
    model_id: str | None = None,
    api_key: str | None = None,
    max_connections: int = 64,
    sharing: bool | None = False,
) -> Runtime:
    """The runtime for ``model``: ``http(s)://HOST:PORT/v1``, ``vllm:PATH`` or ``torch:PATH``.

    ``model_id`` picks one of several models that the server offers. ``api_key`` goes to the
    HTTP server as a bearer token and nowhere else; at most ``max_connections`` requests to it are
    open at once. ``sharing`` is for an engine in this process, see `EngineRuntime`. Opening loads
    nothing and calls nobody; the first request does.

    Raises `UsageError` for any other form of ``model``.
    """
    if model.startswith(("http://", "https://")):
        from agentpar.runtime.client import OpenAIRuntime

        return OpenAIRuntime(
            model, model=model_id, api_key=api_key, max_connections=max_connections
        )
    if model.startswith("vllm:"):
        from agentpar.runtime.engine import EngineRuntime

        return EngineRuntime(model.removeprefix("vllm:"), sharing=sharing)
    if model.startswith("torch:"):
        from agentpar.runtime.hogwild.local import TorchRuntime

        return TorchRuntime(model.removeprefix("torch:"))
    raise UsageError(
        f"model {public_url(model)!r} is neither the address of an OpenAI-compatible server "
        "('http://localhost:8000/v1') nor a folder of weights for an engine in this process "
        "('vllm:/path/to/folder', or 'torch:/path/to/folder' for the slow reference engine)"
    )
