"""The reference engine: workers that share one cache, in plain torch, to prove the others by.

Importing it loads torch. `Engine` holds a loaded transformers model and its cache, `Group` the
workers on it; `replay` computes a group's transcript again in one dense pass.
"""

from agentpar.errors import MissingPackage

try:
    import torch as _torch  # noqa: F401 - all files here need it; this one says so
except ImportError as error:
    raise MissingPackage("torch", extra="cpu", purpose="the reference engine") from error

from agentpar.runtime.hogwild.engine.engine import Engine
from agentpar.runtime.hogwild.engine.group import Group, Member
from agentpar.runtime.hogwild.engine.replay import replay

__all__ = ["Engine", "Group", "Member", "replay"]
