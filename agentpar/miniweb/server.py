"""The mini-web's server: real HTTP on loopback, in a thread of its own.

Search answers in SearXNG's JSON shape, so that whatever reads the mini-web reads the
real web by changing one URL. How it is slower or worse than a disk is set by the caller
and said in `MiniWeb.banner`; this file knows nothing of who asks or why.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlparse

from agentpar.errors import BackendError, MissingPackage, UsageError
from agentpar.miniweb.faults import Faults, chance
from agentpar.miniweb.index import Hit, Library, open_library
from agentpar.miniweb.pages import NOTES, STYLE, home_page, message_page, results_page
from agentpar.ports import Progress, silent

RESULTS_PER_PAGE = 10
_DRIP_PIECES = 20
_MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Requests since the start, or since `MiniWeb.reset`.

    ``statuses`` counts replies by HTTP status, ``faults`` those spoiled on purpose by kind,
    ``peak`` is the most requests that were in flight at once.
    """

    requests: int = 0
    searches: int = 0
    pages: int = 0
    peak: int = 0
    statuses: Mapping[int, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


class MiniWeb:
    """A small simulated web at ``origin``.

    ``latency`` and ``jitter`` are seconds: each reply waits ``latency`` plus a share of
    ``jitter`` drawn from ``faults.seed``. Port 0 takes a free one. The first start builds
    the library (seconds; ``progress`` is told), later ones open it. Use it as ``async with``,
    as ``with``, or by `start` and `stop`. Show ``banner`` to whoever reads the results.

    Raises `MissingPackage` without the ``miniweb`` extra, `UsageError` where the port is taken.

    >>> async with MiniWeb(latency=0.08) as web:  # doctest: +SKIP
    ...     httpx.get(f"{web.origin}/search", params={"q": "Chile", "format": "json"})
    """

    def __init__(
        self,
        *,
        latency: float = 0.08,
        jitter: float = 0.0,
        faults: Faults | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        for name, seconds in (("latency", latency), ("jitter", jitter)):
            if not 0.0 <= seconds < 3600.0:
                raise UsageError(f"MiniWeb({name}={seconds!r}): seconds lie between 0 and 3600")
        self.latency = latency
        self.jitter = jitter
        self.faults = faults or Faults()
        self._host = host
        self._port = port
        self._folder = folder
        self._progress = progress or silent
        self._left = threading.Event()  # whoever waits for the start has gone
        self._library: Library | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._origin = ""
        self._size = 0
        # The server's thread counts, other threads read and reset.
        self._lock = threading.Lock()
        self._zero()

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:43121``: scheme, host and port, without a slash at the end."""
        if not self._origin:
            raise UsageError("the mini-web is not running: start() it, or enter it with 'with'")
        return self._origin

    @property
    def banner(self) -> str:
        """One sentence that says what is simulated. Whoever shows results shows it.

        While the mini-web runs, its address and size are in it too.
        """
        low, high = round(self.latency * 1000), round((self.latency + self.jitter) * 1000)
        delay = f"{low} ms" if low == high else f"{low} to {high} ms"
        running = f"{self._size:,} simulated pages at {self._origin}"
        said = f"mini-web: {running if self._origin else 'simulated pages on this machine'}, "
        said += f"each reply delayed {delay}" if high else "replies not delayed"
        wrong = self.faults.sentence()
        return f"{said}; {wrong}" if wrong else said

    def start(self) -> MiniWeb:
        """Open the library, listen, and serve from a thread; returns once requests are taken."""
        if self._thread is not None:
            raise UsageError(f"the mini-web already runs at {self._origin}: stop() it first")
        uvicorn, starlette = _uvicorn(), _starlette()
        library = open_library(self._folder, progress=self._report)
        try:
            listener = _listen(self._host, self._port)
        except BaseException:
            library.close()
            raise
        host, port = listener.getsockname()[:2]
        self._library = library
        self._size = len(library)
        self._origin = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        ready = threading.Event()
        config = uvicorn.Config(
            self._app(starlette, ready),
            lifespan="on",
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=_serve, args=(self._server, listener, ready), name="mini-web", daemon=True
        )
        self._thread.start()
        try:
            ready.wait()
        except BaseException:
            self.stop()
            raise
        if not self._thread.is_alive():
            self.stop()
            raise BackendError("the mini-web's server ended as it started; see the log of uvicorn")
        return self

    def stop(self) -> None:
        """End the server. Afterwards no thread runs and the port is free. Twice is harmless."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        if self._library is not None:
            self._library.close()
        self._thread = self._server = self._library = None
        self._origin = ""

    def __enter__(self) -> MiniWeb:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> MiniWeb:
        self._left.clear()
        try:
            await _to_the_end(self.start, leave=self._left.set)
        except asyncio.CancelledError:
            await _to_the_end(self.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _to_the_end(self.stop)

    def _report(self, step: str, done: float, total: float) -> None:
        if self._left.is_set():
            raise _Left
        self._progress(step, done, total)

    def statistics(self) -> Statistics:
        """What has been asked so far."""
        with self._lock:
            return Statistics(
                requests=self._counts["requests"],
                searches=self._counts["searches"],
                pages=self._counts["pages"],
                peak=self._counts["peak"],
                statuses=dict(self._statuses),
                faults=dict(self._spoiled),
            )

    def reset(self) -> None:
        """Begin a new run: counters at zero, and every address as if never visited."""
        with self._lock:
            self._zero()

    def _zero(self) -> None:
        self._counts: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._spoiled: Counter[str] = Counter()
        self._visits: Counter[str] = Counter()

    # --- the application ---------------------------------------------------------------

    def _app(self, starlette: Any, ready: threading.Event) -> Any:
        respond = starlette.responses
        in_flight = 0

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            # The socket listens already: from here on a request waits at most for the loop.
            ready.set()
            yield

        async def endpoint(request: Any) -> Any:
            nonlocal in_flight
            in_flight += 1
            try:
                with self._lock:
                    self._counts["requests"] += 1
                    self._counts["peak"] = max(self._counts["peak"], in_flight)
                reply = await self._reply(request, respond)
            finally:
                in_flight -= 1
            with self._lock:
                self._statuses[reply.status_code] += 1
            return reply

        async def style(_: Any) -> Any:
            return respond.Response(STYLE, media_type="text/css")

        async def robots(_: Any) -> Any:
            return respond.PlainTextResponse("User-agent: *\nAllow: /\n")

        route = starlette.routing.Route
        return starlette.applications.Starlette(
            routes=[
                route("/style.css", style),
                route("/robots.txt", robots),
                route("/{path:path}", endpoint, methods=["GET", "POST"]),
            ],
            lifespan=lifespan,
        )

    async def _reply(self, request: Any, respond: Any) -> Any:
        path = request.url.path
        asked = parse_qs(request.url.query, keep_blank_values=True)
        if request.method == "POST":
            asked |= parse_qs((await request.body()).decode("utf-8", "replace"))
        address = f"{path}?{urlencode(sorted(asked.items()), doseq=True)}"
        with self._lock:
            visit = self._visits[address]
            self._visits[address] += 1
        seed = self.faults.seed
        await asyncio.sleep(self.latency + self.jitter * chance(seed, "jitter", address, visit))

        def struck(name: str, share: float) -> bool:
            if not share or chance(seed, name, address, visit) >= share:
                return False
            with self._lock:
                self._spoiled[name] += 1
            return True

        if struck("too_many", self.faults.too_many):
            page = message_page("Too many requests", "Ask again a little later.")
            wait = {"Retry-After": f"{self.faults.retry_after:g}"}
            return respond.HTMLResponse(page, status_code=429, headers=wait)
        if struck("broken", self.faults.broken):
            page = message_page("Service unavailable", "This failure is simulated.")
            return respond.HTMLResponse(page, status_code=503)
        # Once redirected is enough: a page that always redirects could never be read.
        if (
            request.method == "GET"
            and _MOVED not in asked
            and struck("redirect", self.faults.redirect)
        ):
            there = urlencode([*((k, v) for k, vs in asked.items() for v in vs), (_MOVED, "1")])
            return respond.RedirectResponse(f"{path}?{there}", status_code=302)
        reply = self._search(asked, respond) if path == "/search" else self._page(path, respond)
        if reply.status_code == 200 and struck("drip", self.faults.drip):
            return respond.StreamingResponse(
                _drip(reply.body, self.faults.drip_seconds), media_type=reply.media_type
            )
        return reply

    def _page(self, path: str, respond: Any) -> Any:
        library = self._library
        assert library is not None, "requests are only taken while the library is open"
        if path == "/":
            return respond.HTMLResponse(home_page(self._size))
        page = library.page(path)
        if page is None or (page.site == NOTES.key and not self.faults.injections):
            missing = message_page("Not found", f"There is no page at {path}.")
            return respond.HTMLResponse(missing, status_code=404)
        with self._lock:
            self._counts["pages"] += 1
        return respond.HTMLResponse(page.html)

    def _search(self, asked: Mapping[str, list[str]], respond: Any) -> Any:
        library = self._library
        assert library is not None, "requests are only taken while the library is open"

        def last(name: str, default: str) -> str:
            return asked.get(name, [default])[-1]

        query, shape, number = last("q", ""), last("format", "html"), last("pageno", "1")
        if not query.strip():
            return respond.PlainTextResponse("No query: say what to search for in q", 400)
        if shape not in ("html", "json"):
            return respond.PlainTextResponse(
                f"format={shape!r} is not served: html and json are", 403
            )
        if not number.isascii() or not number.isdigit() or not 1 <= int(number[:6]) <= 1000:
            return respond.PlainTextResponse(f"pageno={number!r} is no number from 1 to 1000", 400)
        with self._lock:
            self._counts["searches"] += 1
        hits = library.search(
            query,
            limit=RESULTS_PER_PAGE,
            offset=RESULTS_PER_PAGE * (int(number) - 1),
            hostile=self.faults.injections,
        )
        if shape == "json":
            return respond.JSONResponse(_searxng(query, hits, self._origin))
        return respond.HTMLResponse(
            results_page(query, [(h.path, h.title, h.snippet) for h in hits])
        )


def _searxng(query: str, hits: tuple[Hit, ...], origin: str) -> dict[str, Any]:
    """A reply with the fields that SearXNG's ``format=json`` has."""
    return {
        "query": query,
        "number_of_results": len(hits),
        "results": [
            {
                "url": origin + hit.path,
                "title": hit.title,
                "content": hit.snippet,
                "publishedDate": None,
                "thumbnail": "",
                "engine": "mini-web",
                "template": "default.html",
                "parsed_url": list(urlparse(origin + hit.path)),
                "engines": ["mini-web"],
                "positions": [position],
                "score": hit.score,
                "category": "general",
            }
            for position, hit in enumerate(hits, 1)
        ],
        "answers": [],
        "corrections": [],
        "infoboxes": [],
        "suggestions": [],
        "unresponsive_engines": [],
    }


async def _drip(body: bytes, seconds: float) -> AsyncIterator[bytes]:
    size = max(1, -(-len(body) // _DRIP_PIECES))
    for start in range(0, len(body), size):
        await asyncio.sleep(seconds / _DRIP_PIECES)
        yield body[start : start + size]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"the mini-web cannot listen on {host!r}, port {port!r}: {error}"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(
            f"the mini-web cannot listen on {host}, port {port}: {error}; "
            "choose another port, or 0 for any that is free"
        ) from error
    return listener


def _serve(server: Any, listener: socket.socket, ready: threading.Event) -> None:
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        ready.set()


class _Left(Exception):
    """Raised by the progress of a start that nobody waits for any more, to end it."""


async def _to_the_end(
    work: Callable[[], object], *, leave: Callable[[], object] = lambda: None
) -> None:
    """Run ``work`` in a thread. A cancelled caller waits for it too: a thread cannot be stopped.

    ``leave`` is called then, so that ``work`` can end early.
    """
    running = asyncio.create_task(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        leave()
        await asyncio.wait([running])
        running.exception()  # nobody is left to hear of it
        raise


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ImportError as error:
        raise MissingPackage("uvicorn", extra="miniweb", purpose="the mini-web") from error
    return uvicorn


def _starlette() -> Any:
    try:
        import starlette.applications
        import starlette.responses
        import starlette.routing
    except ImportError as error:
        raise MissingPackage("starlette", extra="miniweb", purpose="the mini-web") from error
    return starlette
