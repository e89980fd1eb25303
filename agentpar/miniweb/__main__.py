"""``python -m agentpar.miniweb``: the mini-web on its own, for a browser or another program."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from agentpar.errors import AgentparError
from agentpar.miniweb.faults import Faults
from agentpar.miniweb.server import MiniWeb


def main() -> int:
    """Serve until interrupted. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agentpar.miniweb", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.08, help="seconds before each reply")
    parser.add_argument("--jitter", type=float, default=0.0, help="up to so many seconds more")
    parser.add_argument("--too-many", type=float, default=0.0, help="share of replies: 429")
    parser.add_argument("--broken", type=float, default=0.0, help="share of replies: 503")
    parser.add_argument("--redirect", type=float, default=0.0, help="share of replies: 302")
    parser.add_argument("--drip", type=float, default=0.0, help="share of replies: sent slowly")
    parser.add_argument("--injections", action="store_true", help="serve hostile pages too")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    # A polite kill ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        web = MiniWeb(
            latency=chosen.latency,
            jitter=chosen.jitter,
            host=chosen.host,
            port=chosen.port,
            faults=Faults(
                too_many=chosen.too_many,
                broken=chosen.broken,
                redirect=chosen.redirect,
                drip=chosen.drip,
                injections=chosen.injections,
                seed=chosen.seed,
            ),
            progress=_say,
        )
        with web:
            print(web.banner, flush=True)
            signal.pause()
    except AgentparError as error:
        print(f"miniweb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(what: str, done: int, total: int) -> None:
    share = f" {done:,} of {total:,}" if total else ""
    print(f"\r{what}{share}", end="" if not total or done < total else "\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
