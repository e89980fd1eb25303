"""The runtime behind any server that speaks the OpenAI chat API over HTTP.

Knows HTTP and the wire format; must never know how the server was started or what the
text means. The only file that talks to a model server through httpx.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import tenacity

from agentpar.errors import GrammarRefused, ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.net import retry_after
from agentpar.net.retry import Refused, is_worth_another_try
from agentpar.ports import Capability, ModelRequest
from agentpar.redact import HIDDEN, Redactor, public_url, url_credentials
from agentpar.runtime.hogwild.opening import OpensGroups
from agentpar.runtime.launch import BACKGROUND
from agentpar.runtime.refusal import refusal

if TYPE_CHECKING:
    from agentpar.runtime.hogwild.rows import RowServer

MAX_LINE = 16 << 20  # bytes; no honest piece of a stream is longer
_NO_SUCH_PAGE = frozenset({404, 405})
_HIDDEN = _NO_SUCH_PAGE | {400, 401, 403}  # what gateways answer about pages that they do not know


class OpenAIRuntime(OpensGroups):
    """Streams from ``{base_url}/chat/completions``.

    ``base_url`` usually ends in ``/v1``, which is added where there is no path. ``model``
    is the served name, by default the first one the server lists. ``timeout`` is the
    longest silence in seconds between two pieces of a stream (a first piece waits for the
    whole prompt); ``connect_timeout`` the time to reach the server. Up to ``retries``
    further attempts follow a failed connection, 429 and 5xx; ``Retry-After`` is honoured.
    At most ``max_connections`` requests are open at once, others wait their turn.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        connect_timeout: float = 5.0,
        max_connections: int = 64,
        retries: int = 3,
    ) -> None:
        url = _parse_url(base_url)
        # No secret in messages, nor in the log that httpx keeps of the addresses it asks.
        self.base_url = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._url = self.base_url
        self._auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        self._secrets = (*url_credentials(str(url)), *([api_key] if api_key else []))
        self._redactor = Redactor(self._secrets)
        self._model = model
        self._api_key = api_key
        self._timeout = httpx.Timeout(timeout, connect=connect_timeout, pool=None)
        self._limits = httpx.Limits(max_connections=max_connections)
        self._retries = retries
        self._enforces: frozenset[Capability] | None = None
        self._refused_a_grammar = False
        self._takes_priority = True
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def __repr__(self) -> str:
        return f"OpenAIRuntime({self.base_url!r}, model={self._model!r})"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no event of a run may show: the key, and the password of the address."""
        return self._secrets

    @property
    def provider(self) -> str:
        """``"vllm"`` once the server has said that it is one, else ``"openai"``: its protocol."""
        return "vllm" if self._enforces else "openai"

    @property
    def model_name(self) -> str:
        """The name the server knows the model by; empty until it is known."""
        return self._model or ""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """Yield text pieces, then one `Usage` (all zeros but ``calls`` if the server tells none).

        Closing the generator closes the connection, upon which the server stops writing.
        Raises `ModelServerError` with the server's own message where it gave one
        (`GrammarRefused` where it is about the grammar), and `UsageError` for a constraint
        this server cannot enforce.
        """
        body = await self._body(request)
        async with aclosing(self.post_stream("/chat/completions", body, request)) as pieces:
            async for piece in pieces:
                yield piece

    async def post_stream(
        self,
        path: str,
        body: dict[str, Any],
        request: ModelRequest | None = None,
        *,
        once: bool = False,
    ) -> AsyncGenerator[str | Usage, None]:
        """Yield the text, then the `Usage`, that ``{base_url}{path}`` streams for ``body``.

        ``path`` is that of chats or of completions. Raises as `stream`; ``request`` is what a
        refusal may be about. ``once``: it is not sent again where the server may have taken it.
        """
        begun = False

        def again(error: BaseException) -> bool:
            if begun or (once and not _is_unsent(error)):
                return False
            return self._drop_priority(body, error) or is_worth_another_try(error)

        try:
            async for attempt in self._attempts(again):
                with attempt:
                    async with aclosing(self._pieces(path, body)) as pieces:
                        async for piece in pieces:
                            begun = True
                            yield piece
        except Refused as error:
            if request is None:
                raise ModelServerError(str(error)) from None
            raised = refusal(request, str(error), begun=begun)
            self._refused_a_grammar |= isinstance(raised, GrammarRefused)
            raise raised from None
        except httpx.HTTPError as error:
            raise self._failed(error, begun=begun) from error

    async def capabilities(self) -> frozenset[Capability]:
        """What the server can do: all where it is vLLM, nothing where it is unknown.

        No prefill where it says that it caches no prefixes. No grammar any more once it has
        refused one, so that not every run asks in vain.
        """
        able = await self._constraints()
        return able - {"grammar"} if self._refused_a_grammar else able

    async def model(self) -> str:
        """The name the server knows the model by; asks the server if none was given."""
        if self._model is None:
            answer = await self._get(f"{self._url}/models")
            try:
                self._model = str(answer["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise ModelServerError(
                    f"{self.base_url}/models lists no model; is this an OpenAI-compatible "
                    "server? If it is, name the model it serves"
                ) from None
        return self._model

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers with at ``path`` below its root, beside ``/v1``.

        A GET, or with a ``body`` a POST. None where the server knows no such page, or shows it to
        nobody. Raises as `stream`.
        """
        absent = _HIDDEN if body is None else _NO_SUCH_PAGE
        try:
            root = self._url.removesuffix("/v1")
            return json.loads(await self._read(root + path, absent=absent, body=body) or "")
        except ValueError:
            return None

    def rows(self) -> RowServer:
        """Requests to this server as rows of one cache, where it shares one."""
        from agentpar.runtime.hogwild.served import ServedRows

        return ServedRows(self)

    async def aclose(self) -> None:
        """Close the connections of the running event loop. A later request opens new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _attempts(self, again: Callable[[BaseException], bool]) -> tenacity.AsyncRetrying:
        # Says nothing of a retry, where stamina would log it to whoever has set up no logging.
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(again),
            stop=tenacity.stop_after_attempt(1 + self._retries),
            wait=_pause,
            reraise=True,
        )

    def _http(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections cannot move to another one."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            # In a loop that was closed nothing can be awaited: its sockets go with their objects.
            self._clients = {at: own for at, own in self._clients.items() if not at.is_closed()}
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            host = httpx.URL(self._url).host
            self._clients[loop] = httpx.AsyncClient(
                headers=headers,
                auth=self._auth,
                timeout=self._timeout,
                limits=self._limits,
                trust_env=host not in {"localhost", "127.0.0.1", "::1"},  # no proxy to ourselves
            )
        return self._clients[loop]

    async def _body(self, request: ModelRequest) -> dict[str, Any]:
        messages = request.messages
        body: dict[str, Any] = {
            "model": await self.model(),
            "messages": [{"role": m.role, "content": _sendable(m.content)} for m in messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        if request.grammar is not None:
            await self._require("grammar")
            body["structured_outputs"] = {"grammar": request.grammar}
        if request.background and self._takes_priority and await self._constraints():
            body["priority"] = BACKGROUND
        if request.json_schema is not None:
            await self._require("json_schema")
            schema = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _constraints(self) -> frozenset[Capability]:
        """What the server has, whatever it refused."""
        if self._enforces is None:
            root = self._url.removesuffix("/v1")
            answer = await self._get(f"{root}/version", absent=_HIDDEN)
            if not isinstance(answer, dict) or not isinstance(answer.get("version"), str):
                self._enforces = frozenset()
            else:
                # vLLM caches prefixes unless told not to; where it shows no metrics, we trust that.
                metrics = await self._read(f"{root}/metrics", absent=_HIDDEN) or b""
                caches = b'enable_prefix_caching="False"' not in metrics
                self._enforces = frozenset({"grammar", "json_schema"})
                self._enforces |= {"prefill"} if caches else set()
        return self._enforces

    def _drop_priority(self, body: dict[str, Any], error: BaseException) -> bool:
        """Whether ``error`` is about the priority in ``body``, which then has none any more."""
        about = isinstance(error, Refused) and "priority" in str(error).lower()
        if not about or body.pop("priority", None) is None:
            return False
        self._takes_priority = False
        return True

    async def _require(self, capability: Capability) -> None:
        # Not `capabilities`: what another request was refused must not make this one a mistake.
        if capability not in await self._constraints():
            raise UsageError(
                f"the server at {self.base_url} is not known to enforce a {capability}; "
                "ask capabilities() before setting one"
            )

    async def _pieces(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[str | Usage, None]:
        usage = Usage(calls=1)
        ended = cut = False
        url = self._url + path
        async with self._http().stream("POST", url, json=body) as response:
            await self._check(response)
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise Refused(
                    f"{self.base_url}{path} sent {kind or 'no content type'!r} "
                    "instead of an event stream; is this an OpenAI-compatible server?"
                )
            async for line in _lines(response):
                if not line.startswith(b"data:"):
                    continue  # comments that keep the line open, event names
                if (data := line.removeprefix(b"data:").strip()) == b"[DONE]":
                    ended = True
                    break
                chunk = self._parse(data)
                try:
                    usage, said = _usage(chunk) or usage, list(_said(chunk))
                except (AttributeError, TypeError):
                    raise Refused(
                        f"{self.base_url} sent a piece that is none of an OpenAI-compatible "
                        f"server's: {data[:80]!r}"
                    ) from None
                for text, reason in said:
                    if text:
                        yield text
                    ended = ended or reason is not None
                    cut = cut or reason == "length"
        if not ended:
            raise httpx.RemoteProtocolError("the stream ended before the text did")
        yield replace(usage, cut=cut)

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(data.decode("utf-8"))
        except ValueError as error:
            raise Refused(
                f"{self.base_url} sent a line that is not JSON in UTF-8 ({error}): {data[:80]!r}"
            ) from None
        if not isinstance(chunk, dict) or "error" in chunk:
            raise Refused(f"{self.base_url} broke off: {self._public(_message(chunk))}")
        return chunk

    async def _get(self, url: str, *, absent: Collection[int] = _NO_SUCH_PAGE) -> Any:
        """The JSON that ``url`` answers with, None where its status is in ``absent``."""
        try:
            return json.loads(await self._read(url, absent=absent) or b"null")
        except ValueError:
            return None

    async def _read(
        self, url: str, *, absent: Collection[int], body: Mapping[str, Any] | None = None
    ) -> bytes | None:
        """What ``url`` answers with, None where its status is in ``absent``."""
        method = "GET" if body is None else "POST"
        try:
            async for attempt in self._attempts(is_worth_another_try):
                with attempt:
                    async with self._http().stream(method, url, json=body) as response:
                        if response.status_code in absent:
                            return None
                        await self._check(response)
                        return await response.aread()
        except Refused as error:
            raise ModelServerError(str(error)) from None
        except httpx.HTTPError as error:
            raise self._failed(error, begun=False) from error
        return None

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        text = await response.aread()
        try:
            said = _message(json.loads(text))
        except ValueError:
            said = text[:200].decode("utf-8", errors="replace")
        path = response.url.path
        raise Refused(
            f"{self.base_url}: HTTP {response.status_code} for {path}: {self._public(said)}",
            status=response.status_code,
            retry_after=retry_after(response.headers),
        )

    def _public(self, text: str) -> str:
        """``text`` without the key, which some servers repeat when they refuse it."""
        if self._api_key:  # however short: here it stands in a message about itself
            text = text.replace(self._api_key, HIDDEN)
        return self._redactor.text(text)

    def _failed(self, error: httpx.HTTPError, *, begun: bool) -> ModelServerError:
        match error:
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return ModelServerError(
                    f"no model server answers at {self.base_url} ({error or 'timed out'}): start "
                    "one with 'agentpar serve', or give the address of yours with --model-url"
                )
            case httpx.ReadTimeout():
                silence = f"{self._timeout.read:g} s"
                return ModelServerError(f"{self.base_url} sent nothing for {silence}")
            case _:
                when = "in the middle of the text" if begun else "before the first text"
                what = str(error) or type(error).__name__
                return ModelServerError(f"{self.base_url} broke off {when}: {what}")


def _is_unsent(error: BaseException) -> bool:
    """Whether no server has taken the request that failed with ``error``."""
    match error:
        case Refused(status=429):
            return True
        case _:
            return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


_backoff = tenacity.wait_random_exponential(multiplier=1.0, min=0.2, max=5.0)  # seconds


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the server asks for, else more each time."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Refused) and error.retry_after is not None:
        return error.retry_after
    return _backoff(state)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream, cut at newlines only.

    ``response.aiter_lines`` also cuts at U+2028 and its like, which stand unescaped inside
    JSON strings.
    """
    rest = bytearray()
    async for data in response.aiter_bytes():
        rest += data
        if b"\n" in data:
            *whole, tail = rest.split(b"\n")
            rest = tail
            for line in whole:
                yield bytes(line)
        if len(rest) > MAX_LINE:
            raise Refused(f"the server sent a line of more than {MAX_LINE} bytes")
    if rest:
        yield bytes(rest)


def _sendable(text: str) -> str:
    """``text`` without lone surrogates: a page may hold them, UTF-8 has no word for them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _said(chunk: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The text of each choice in a piece, and why it ended, if it did."""
    for choice in chunk.get("choices") or ():
        text = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
        if not isinstance(text, str):
            raise TypeError
        yield text, choice.get("finish_reason")


def _usage(chunk: Mapping[str, Any]) -> Usage | None:
    told = chunk.get("usage")
    if not told:
        return None
    details = told.get("prompt_tokens_details") or {}
    counts = (
        told.get("prompt_tokens") or 0,
        told.get("completion_tokens") or 0,
        details.get("cached_tokens") or 0,
    )
    if not all(isinstance(count, int) for count in counts):
        raise TypeError
    return Usage(*counts, calls=1)


def _message(answer: Any) -> str:
    """The words in an error answer: ``{"error": {"message": …}}`` and its common variants."""
    match answer:
        case {"error": {"message": str(text)}} | {"message": str(text)} | {"detail": str(text)}:
            return text
        case {"error": str(text)}:
            return text
        case _:
            return json.dumps(answer)[:200]


def _parse_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        shown = public_url(base_url)
        raise UsageError(f"model server address {shown!r} is no URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageError(
            f"model server address {public_url(base_url)!r} is no http(s) URL; "
            "it looks like 'http://localhost:8000/v1'"
        )
    if url.query or url.fragment:
        raise UsageError(
            f"model server address {public_url(base_url)!r} has more than a path: leave out '?' "
            "and '#', and give a key as api_key"
        )
    for tail in ("/chat/completions", "/completions", "/models"):
        if url.path.rstrip("/").endswith(tail):
            raise UsageError(
                f"model server address {public_url(base_url)!r} is that of one kind of request: "
                f"leave out {tail!r}"
            )
    return url.copy_with(path="/v1") if url.path in {"", "/"} else url
