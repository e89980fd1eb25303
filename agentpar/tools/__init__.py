"""Tools: what a plan can call, and the ways to make one."""

from agentpar.tools.base import Effect, Tool
from agentpar.tools.data import to_data
from agentpar.tools.function import as_tool, tool, toolbox

__all__ = ["Effect", "Tool", "as_tool", "to_data", "tool", "toolbox"]
