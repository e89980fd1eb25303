"""Commands about what runs beside an agent: model servers, their weights, the mini-web."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from agentpar.cli.templates import DEFAULT_MODEL
from agentpar.errors import UsageError

if TYPE_CHECKING:
    from agentpar.runtime.server import ServerHandle


def serve(
    model: Annotated[
        str | None,
        typer.Option(help=f"A known name, a hub id or a folder. [default: {DEFAULT_MODEL}]"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="By default a free one.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop running servers instead.")] = False,
    status: Annotated[bool, typer.Option("--status", help="List running servers.")] = False,
    hogwild: Annotated[
        bool, typer.Option("--hogwild", help="Let groups of workers share one KV cache.")
    ] = False,
) -> None:
    """Start, stop and list model servers.

    A vLLM server that is started stays up, and runs use it; one that is up is found.
    """
    if stop and status:
        raise UsageError("--stop and --status exclude each other")
    if status:
        _list()
    elif stop:
        _stop(model, port)
    else:
        _start(model or DEFAULT_MODEL, port, hogwild)


def _list() -> None:
    from agentpar.runtime import server

    handles = server.running()
    for handle in handles:
        state = "healthy" if server.healthy(handle) else "starting, or stuck"
        typer.echo(f"{_line(handle)} ({state}; pid {handle.pid}, log {handle.log})")
    if not handles:
        typer.echo("no server runs; 'agentpar serve' starts one")


def _stop(model: str | None, port: int | None) -> None:
    from agentpar.runtime import server

    stopped = server.stop(model, port=port)
    for handle in stopped:
        typer.echo(f"stopped {_line(handle)}")
    if not stopped:
        others = ", ".join(map(_line, server.running()))
        typer.echo("no such server runs" + (f"; there is {others}" if others else ""))


def _start(model: str, port: int | None, hogwild: bool) -> None:
    from agentpar.display import progress_bar
    from agentpar.runtime.server import ensure

    with progress_bar("model") as progress:
        handle = asyncio.run(ensure(model, port=port, progress=progress, sharing=hogwild))
    typer.echo(f"{_line(handle)} ({state_of(handle)}; log {handle.log})")


def state_of(handle: ServerHandle) -> str:
    """Whether this command started the server, and how a server is ended from here."""
    if not handle.started:
        return "already up"
    program = "agentpar" if shutil.which("agentpar") else sys.argv[0]
    return f"started; '{program} serve --stop' ends it"


def _line(handle: ServerHandle) -> str:
    shares = ", with a shared KV cache" if handle.sharing else ""
    return f"{handle.model} at {handle.base_url}{shares}"


def weights(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME…", help="Without names: list them.")
    ] = None,
) -> None:
    """Fetch model weights, or list them.

    They go into the cache, as a run would put them there.
    """
    from agentpar.display import progress_bar
    from agentpar.runtime import models

    for name in names or ():
        with progress_bar("weights") as progress:
            folder = models.resolve(name, progress=progress)
        typer.echo(f"{name}: {folder}")
    if not names:
        for name in models.KNOWN:
            typer.echo(f"{name}: {models.find(name) or f'not here: agentpar weights {name}'}")


def miniweb(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="With switches as in an agent's file: 'miniweb://?latency=1s&broken=0.1'.",
        ),
    ] = "miniweb://",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8900,
) -> None:
    """Serve the simulated web, to look at or for another program."""
    import threading

    from agentpar.config.web import mini_web_options
    from agentpar.display import progress_bar
    from agentpar.miniweb.server import MiniWeb

    options = mini_web_options(address)
    with progress_bar("mini-web") as progress:
        web = MiniWeb(port=port, progress=progress, **options).start()
    try:
        typer.echo(f"{web.banner}\nCtrl-C ends it.")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass  # how it is meant to end
    finally:
        web.stop()
