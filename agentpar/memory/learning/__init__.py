"""How admission is learned: a simulator, learners, and who may take the rule's place.

`train` makes a `Controller` of simulated episodes or of logged decisions, `evaluate` tries one.
Nothing here is needed to decide: that is `agentpar.memory.controller`.
"""

from agentpar.memory.controller import Controller, load, shipped
from agentpar.memory.learning.logs import Logged, read, write
from agentpar.memory.learning.simulator import OTHERS, REGIMES, Regime
from agentpar.memory.learning.training import Replay, Report, evaluate, train

__all__ = [
    "OTHERS",
    "REGIMES",
    "Controller",
    "Logged",
    "Regime",
    "Replay",
    "Report",
    "evaluate",
    "load",
    "read",
    "shipped",
    "train",
    "write",
]
