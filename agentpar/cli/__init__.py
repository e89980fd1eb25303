"""The ``agentpar`` command.

Each command lives in a file by theme and imports what is heavy when it runs, so that
``agentpar --help`` answers at once.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line; exits with 0, 1 (failed), 2 (the caller's mistake) or 130."""
    try:
        # A polite kill ends a command as Ctrl-C does. Where Ctrl-C is ignored (a shell's
        # background job), a kill keeps its own meaning.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        from agentpar.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
