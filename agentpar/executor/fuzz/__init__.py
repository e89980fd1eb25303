"""Fuzzing a recorded run: the same results in other orders and with faults; what is decided?

`material` takes a record apart, a `Disturbance` is what a seed changes, `fuzz` runs it all again,
and the `Report` says what came of it.
"""

from agentpar.executor.fuzz.disturbance import BLOCK, WITHOUT, Disturbance, first_of
from agentpar.executor.fuzz.material import Recorded, Result, Said, call_text, material
from agentpar.executor.fuzz.report import Decided, FaultSet, Group, Report
from agentpar.executor.fuzz.rerun import Rules, fuzz

__all__ = [
    "BLOCK",
    "WITHOUT",
    "Decided",
    "Disturbance",
    "FaultSet",
    "Group",
    "Recorded",
    "Report",
    "Result",
    "Rules",
    "Said",
    "call_text",
    "first_of",
    "fuzz",
    "material",
]
