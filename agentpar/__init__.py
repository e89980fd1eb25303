"""Agents that work in parallel on your own machine: what a user needs, each loaded when used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # isort: off
    from agentpar.agent import Agent
    from agentpar.answer import Answer
    from agentpar.errors import AgentparError, BackendError, BankError, ConfigError, FetchError
    from agentpar.errors import JournalError, LeaseLost, MissingPackage, ModelServerError, PlanError
    from agentpar.errors import RunFailed, UsageError, WeightsError
    from agentpar.memory.settings import Memory
    from agentpar.permissions import Rule
    from agentpar.plan import Failed, Ok, Skipped
    from agentpar.planner.prompts import Example
    from agentpar.run import Run
    from agentpar.runtime.scripted import ScriptedRuntime
    from agentpar.teams import Teams
    from agentpar.tools.base import Tool
    from agentpar.tools.call import current_call, current_calls
    from agentpar.tools.function import tool
    from agentpar.tools.mcp import McpServer
    from agentpar.workers import Workers

__all__ = [
    "Agent", "AgentparError", "Answer", "BackendError", "BankError", "ConfigError", "Example",
    "Failed", "FetchError", "JournalError", "LeaseLost", "McpServer", "Memory", "MissingPackage",
    "ModelServerError", "Ok", "PlanError", "Rule", "Run", "RunFailed", "ScriptedRuntime", "Skipped",
    "Teams", "Tool", "UsageError", "WeightsError", "Workers", "current_call", "current_calls",
    "tool",
]  # fmt: skip
_HOMES = {
    "agent": "Agent", "answer": "Answer", "memory.settings": "Memory", "permissions": "Rule",
    "plan": "Failed Ok Skipped", "planner.prompts": "Example", "run": "Run", "teams": "Teams",
    "runtime.scripted": "ScriptedRuntime", "tools.base": "Tool", "workers": "Workers",
    "tools.call": "current_call current_calls", "tools.function": "tool", "tools.mcp": "McpServer",
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'agentpar' has no attribute {name!r}")
    return getattr(import_module(f"agentpar.{_HOME_OF.get(name, 'errors')}"), name)
