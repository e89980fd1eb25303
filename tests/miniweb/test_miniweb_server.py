"""The mini-web over real HTTP."""

import asyncio
import os
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from agentpar.errors import UsageError
from agentpar.miniweb import Faults, MiniWeb

CHILE = "/atlas/country/chile"


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "mini-web"]


def test_search_answers_in_the_shape_of_searxng(shelf: Path) -> None:
    """The fields that clients of SearXNG read, with addresses that can be fetched."""
    with MiniWeb(latency=0, folder=shelf) as web, httpx.Client(base_url=web.origin) as client:
        asked = {"q": "population of Chile", "format": "json"}
        reply = client.get("/search", params=asked).json()
        assert reply["query"] == "population of Chile"
        assert reply["answers"] == reply["suggestions"] == reply["unresponsive_engines"] == []
        first = reply["results"][0]
        assert {"url", "title", "content", "engine", "score", "category"} <= first.keys()
        assert first["url"] == web.origin + CHILE
        assert "18,729,160" in first["content"]
        page = client.get(first["url"])
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "18,729,160" in page.text
        assert client.post("/search", data=asked).json() == reply
        second = client.get("/search", params=asked | {"pageno": "2"}).json()["results"]
        assert {r["url"] for r in second}.isdisjoint(r["url"] for r in reply["results"])


def test_people_in_a_browser_are_served_too(shelf: Path) -> None:
    """A front door, a search page, a style sheet, the licences."""
    with MiniWeb(latency=0, folder=shelf) as web, httpx.Client(base_url=web.origin) as client:
        for path in ("/", "/search?q=Chile", "/about", "/atlas/", "/gazetteer/", "/airports/"):
            reply = client.get(path)
            assert reply.status_code == 200, path
            assert "<h1>" in reply.text
        assert client.get("/style.css").headers["content-type"].startswith("text/css")
        assert "Allow: /" in client.get("/robots.txt").text


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/nowhere", 404),
        ("/atlas/country/chile/", 404),
        ("/search", 400),
        ("/search?q=%20", 400),
        ("/search?q=x&format=rss", 403),
        ("/search?q=x&pageno=0", 400),
        ("/search?q=x&pageno=many", 400),
        ("/search?q=<script>alert(1)</script>", 200),
        ("/notes/country/chile", 404),
    ],
)
def test_bad_requests_are_told_what_is_wrong(shelf: Path, address: str, status: int) -> None:
    """Each with its status, and no markup of the asker's in the reply."""
    with MiniWeb(latency=0, folder=shelf) as web:
        reply = httpx.get(web.origin + address)
        assert reply.status_code == status
        assert "<script>" not in reply.text


async def test_the_latency_is_real_and_requests_overlap(shelf: Path) -> None:
    """Twenty requests of 1 s each take far less than 20 s."""
    async with (
        MiniWeb(latency=1.0, folder=shelf) as web,
        httpx.AsyncClient(base_url=web.origin) as client,
    ):
        began = time.perf_counter()
        replies = await asyncio.gather(*(client.get(CHILE) for _ in range(20)))
        took = time.perf_counter() - began
        assert all(r.status_code == 200 for r in replies)
        assert all(r.elapsed.total_seconds() >= 1.0 for r in replies)
        assert took < 10
        counted = web.statistics()
        assert counted.requests == counted.pages == 20
        assert counted.peak > 5
        assert counted.statuses == {200: 20}
        web.reset()
        assert web.statistics().requests == 0


def test_the_banner_says_all_that_is_simulated(shelf: Path) -> None:
    """Pages, address, delay, faults."""
    faults = Faults(too_many=0.25, retry_after=2, drip=0.1, injections=True)
    with MiniWeb(latency=0.08, jitter=0.04, faults=faults, folder=shelf) as web:
        assert "simulated pages at " + web.origin in web.banner
        assert "each reply delayed 80 to 120 ms" in web.banner
        assert "25% of replies are 429 (Retry-After 2 s)" in web.banner
        assert "prompt-injection pages are served" in web.banner
    with MiniWeb(latency=0, folder=shelf) as web:
        assert web.banner.endswith("replies not delayed")
    assert web.banner == "mini-web: simulated pages on this machine, replies not delayed"


def test_faults_are_what_was_asked_for(shelf: Path) -> None:
    """429 with Retry-After, 503, a redirect that ends, a slow body."""

    def get(faults: Faults, **options: bool) -> httpx.Response:
        with MiniWeb(latency=0, faults=faults, folder=shelf) as web:
            return httpx.get(web.origin + CHILE, **options)

    limited = get(Faults(too_many=1, retry_after=3))
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
    assert get(Faults(broken=1)).status_code == 503
    assert get(Faults(redirect=1)).status_code == 302
    landed = get(Faults(redirect=1), follow_redirects=True)
    assert landed.status_code == 200
    assert len(landed.history) == 1
    dripped = get(Faults(drip=1, drip_seconds=0.3))
    assert dripped.elapsed.total_seconds() >= 0.2
    assert dripped.text == get(Faults()).text


def test_fate_does_not_depend_on_the_order_of_requests(shelf: Path) -> None:
    """The same seed spoils the same replies; another seed spoils others."""
    paths = [f"/airports/{code}" for code in ("scl", "lim", "uio", "bog", "ccs", "gru", "eze")]

    def fates(order: list[str], seed: int) -> dict[str, list[int]]:
        met: dict[str, list[int]] = {path: [] for path in paths}
        faults = Faults(broken=0.5, seed=seed)
        with MiniWeb(latency=0, faults=faults, folder=shelf) as web, httpx.Client() as client:
            for path in order:
                met[path].append(client.get(web.origin + path).status_code)
        return met

    once = fates(paths * 3, seed=1)
    assert {code for codes in once.values() for code in codes} == {200, 503}
    assert once == fates(paths[::-1] * 3, seed=1)
    assert once != fates(paths * 3, seed=2)


def test_injection_pages_are_served_on_request(shelf: Path) -> None:
    """They order the reader about, state a wrong figure, and are found by search."""
    with MiniWeb(latency=0, faults=Faults(injections=True), folder=shelf) as web:
        page = httpx.get(web.origin + "/notes/country/chile")
        assert "Ignore all previous instructions" in page.text
        asked = {"q": "Chile population travellers", "format": "json"}
        results = httpx.get(web.origin + "/search", params=asked).json()["results"]
        assert any("/notes/country/chile" in r["url"] for r in results)


def test_stopping_leaves_no_thread_and_frees_the_port(shelf: Path) -> None:
    """Twice, with a request under way, and the same port serves again."""
    web = MiniWeb(latency=0, folder=shelf, faults=Faults(drip=1, drip_seconds=30)).start()
    port = int(web.origin.rsplit(":", 1)[1])
    with httpx.Client(timeout=5) as client, client.stream("GET", web.origin + CHILE) as reply:
        assert reply.status_code == 200
        began = time.perf_counter()
        web.stop()
        assert time.perf_counter() - began < 5
    web.stop()
    assert threads() == []
    with pytest.raises(UsageError, match="not running"):
        _ = web.origin
    with MiniWeb(latency=0, folder=shelf, port=port) as again:
        assert again.origin.endswith(f":{port}")
    assert threads() == []


def test_a_taken_port_is_named(shelf: Path) -> None:
    """With what to do about it; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}: .*choose another port"):
            MiniWeb(folder=shelf, port=port).start()
    assert threads() == []


async def test_a_cancelled_user_leaves_nothing_running(shelf: Path) -> None:
    """Cancelled in the middle of a request."""
    asking = asyncio.Event()

    async def use() -> None:
        async with MiniWeb(latency=5, folder=shelf) as web, httpx.AsyncClient() as client:
            asking.set()
            await client.get(web.origin + CHILE, timeout=30)

    task = asyncio.create_task(use())
    await asking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threads() == []


async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(shelf: Path) -> None:
    """From before the first step to after the last."""

    async def use() -> None:
        async with MiniWeb(latency=0, folder=shelf):
            await asyncio.sleep(10)

    for step in range(6):
        task = asyncio.create_task(use())
        await asyncio.sleep(step * 0.012)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads() == []


async def test_cancelling_while_the_library_is_built_ends_the_build(tmp_path: Path) -> None:
    """The build is not finished for nobody, and nothing of it stays."""
    loop, building = asyncio.get_running_loop(), asyncio.Event()

    def progress(step: str, done: float, total: float) -> None:
        if done:
            loop.call_soon_threadsafe(building.set)

    task = asyncio.create_task(MiniWeb(folder=tmp_path, progress=progress).__aenter__())
    await building.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threads() == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: MiniWeb(latency=-1),
        lambda: MiniWeb(jitter=float("nan")),
        lambda: Faults(broken=1.5),
        lambda: Faults(retry_after=-1),
        lambda: MiniWeb(host="no.such.host.invalid").start(),
    ],
)
def test_senseless_switches_are_refused(
    make: object, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with the value."""
    (tmp_path / "miniweb").symlink_to(shelf)
    monkeypatch.setenv("AGENTPAR_HOME", str(tmp_path))
    assert callable(make)
    with pytest.raises(UsageError):
        make()
