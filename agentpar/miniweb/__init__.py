"""A small web that ships: real pages, a real server, a real search index, on loopback."""

from agentpar.miniweb.faults import Faults
from agentpar.miniweb.server import MiniWeb, Statistics

__all__ = ["Faults", "MiniWeb", "Statistics"]
