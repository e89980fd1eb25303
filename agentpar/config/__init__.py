"""An agent as a YAML file: `load` it; every mistake comes with file, line, column and key.

>>> from agentpar.config import load
>>> spec = load("agent.yaml")  # doctest: +SKIP
>>> Agent(**spec.arguments())  # doctest: +SKIP
"""

from __future__ import annotations

from agentpar.config.document import json_schema
from agentpar.config.reader import AgentSpec, load, load_journal, load_memory

__all__ = ["AgentSpec", "json_schema", "load", "load_journal", "load_memory"]
