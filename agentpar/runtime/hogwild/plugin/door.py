"""A door on the HTTP server by which clients learn that its requests can share a cache.

An ASGI middleware, as vLLM's ``--middleware`` takes it. Must never look at another request.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agentpar.runtime.hogwild.plugin.params import FORMAT, LAYOUTS

PATH = "/hogwild"
ANSWER = json.dumps({"format": FORMAT, "layouts": LAYOUTS}).encode()

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Door:
    """Answers ``GET /hogwild`` and hands everything else on."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})
