"""Watching runs from outside: OpenTelemetry spans and Prometheus metrics, from the events alone.

>>> agent = Agent(tools=…, model=…, watch=[OpenTelemetry(), Prometheus(port=9464)])

A watcher of your own is a context manager over one run (`Watch`):

>>> @contextmanager
... def failures(run: RunInfo):
...     def observe(event: Event) -> None:
...         if isinstance(event, TaskDone) and isinstance(event.outcome, Failed):
...             print(run.run_id, event.task_id, event.outcome.error)
...     yield observe
"""

from agentpar.ports import RunInfo, Watch
from agentpar.watch.otel import OpenTelemetry
from agentpar.watch.prometheus import Prometheus

__all__ = ["OpenTelemetry", "Prometheus", "RunInfo", "Watch"]
