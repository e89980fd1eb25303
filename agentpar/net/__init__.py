"""The one door to addresses that a model, a page or a search engine has named.

A URL is judged twice: its text by `Guard.check` (guard.py), and the address that its name
resolves to by the client, which then connects to that very address (client.py). `Fetcher`
(fetch.py) puts bounds on what comes back.
"""

from agentpar.net.client import PinnedBackend, Resolver, open_client, system_resolver
from agentpar.net.fetch import Caps, Download, Fetcher, is_text
from agentpar.net.guard import Guard, origin, why_refused
from agentpar.net.retry import retry_after

__all__ = [
    "Caps",
    "Download",
    "Fetcher",
    "Guard",
    "PinnedBackend",
    "Resolver",
    "is_text",
    "open_client",
    "origin",
    "retry_after",
    "system_resolver",
    "why_refused",
]
