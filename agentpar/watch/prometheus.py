"""Prometheus: counters and histograms over all runs, from their events.

The only file that knows ``prometheus_client``. Labels hold names that a program chose (agent,
tool, kind of outcome), never what a model or a page wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from agentpar.errors import MissingPackage, UsageError
from agentpar.events import (
    ApprovalAsked,
    ApprovalGiven,
    BankFailed,
    EntryOffered,
    EntryUsed,
    Event,
    HostThrottled,
    LeaseAwaited,
    ModelUsed,
    PlanFault,
    RunFinished,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.plan import Failed, Ok, Outcome, Skipped
from agentpar.ports import RunInfo

if TYPE_CHECKING:  # loads when a watcher is made
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Prometheus:
    """Counts runs, calls, tokens and seconds in ``registry``, by default the process's own.

    With ``port`` the metrics are served at ``http://HOST:PORT/metrics`` from the first run on,
    until `close` or the end of the process. Watchers of one registry, and servers of one
    address, are shared: several agents may name the same. Without ``port``, expose the
    registry with what your program has.

    Needs the ``metrics`` extra. Raises `UsageError` for a port that is none.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        registry: CollectorRegistry | None = None,
    ) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise MissingPackage(
                "prometheus-client", extra="metrics", purpose="watching with Prometheus"
            ) from None
        if port is not None and not 0 < port < 65536:
            raise UsageError(f"port must be a number from 1 to 65535, got {port!r}")
        self._address = None if port is None else (host, port)
        self._registry = prometheus_client.REGISTRY if registry is None else registry
        self._metrics = _metrics_of(self._registry)

    @contextmanager
    def __call__(self, run: RunInfo) -> Iterator[Callable[[Event], None]]:
        """Count one run, or one part of it."""
        if self._address is not None:
            _serve(self._address, self._registry)
        counting = _Counting(self._metrics, run)
        try:
            yield counting.add
        finally:
            counting.close()

    def close(self) -> None:
        """End the server at this watcher's address; a later run starts it again."""
        if self._address is not None:
            _stop(self._address)


class _Metrics:
    """The metrics of one registry, which takes each name only once; see `_metrics_of`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"agentpar_{name}", what, ("agent", *labels), registry=registry)

        def seconds(name: str, what: str, *labels: str) -> Histogram:
            labels = ("agent", *labels)
            return Histogram(f"agentpar_{name}", what, labels, registry=registry, buckets=SECONDS)

        self.runs = counter("runs", "Runs that ended, by status", "status")
        self.run_seconds = seconds("run_seconds", "Wall seconds of a run, by status", "status")
        self.team_runs = counter("team_runs", "Runs of single teams that ended", "status")
        self.team_seconds = seconds("team_run_seconds", "Wall seconds of a team's run", "status")
        self.runs_in_flight = Gauge(
            "agentpar_runs_in_flight", "Runs at work now", ("agent",), registry=registry
        )
        self.calls = counter(
            "tool_calls", "Calls that ended: ok, or why there is no value", "tool", "outcome"
        )
        self.call_seconds = seconds("tool_seconds", "Seconds of one tool call", "tool")
        self.calls_in_flight = Gauge(
            "agentpar_tool_calls_in_flight",
            "Tool calls at work now",
            ("agent", "tool"),
            registry=registry,
        )
        self.retries = counter("tool_retries", "Calls made again after one failed", "tool")
        self.throttles = counter(
            "hosts_throttled", "Times that a host asked a call for fewer requests", "tool"
        )
        self.faults = counter("plan_faults", "Lines of plans that could not be used")
        self.tokens = counter(
            "tokens",
            "Tokens of model calls; cached are those of prompt that a prefix cache had",
            "purpose",
            "kind",
        )
        self.model_seconds = seconds("model_seconds", "Seconds of one model call", "purpose")
        self.first_token = seconds(
            "time_to_first_token_seconds", "Seconds to the first piece of text", "purpose"
        )
        self.approvals = counter(
            "approvals", "Risky calls: asked, then allowed or denied", "tool", "verdict"
        )
        self.bank_hits = counter("bank_hits", "Calls whose result others had found", "tool")
        self.bank_waits = counter("bank_waits", "Calls that waited for an equal one", "tool")
        self.bank_spared = counter(
            "bank_spared_seconds", "Seconds that what others had found took them", "tool"
        )
        self.bank_offers = counter(
            "bank_offers", "Results offered to the bank: admitted or refused", "tool", "verdict"
        )
        self.bank_failures = counter("bank_failures", "Runs that went on without the bank")


class _Counting:
    """One run being counted; nothing of it is left in a gauge after `close`."""

    def __init__(self, metrics: _Metrics, run: RunInfo) -> None:
        self._metrics = metrics
        self._agent = run.agent
        planned = (e.task for e in run.history if isinstance(e, TaskPlanned | TaskReplaced))
        self._tools = {task.id: task.tool for task in planned}
        self._started: dict[int, float] = {}
        self._is_team = bool(run.team)  # the run that it is for is counted, and has its own watcher
        if not self._is_team:
            metrics.runs_in_flight.labels(run.agent).inc()

    def add(self, event: Event) -> None:
        agent, metrics = self._agent, self._metrics
        match event:
            case TaskPlanned(task=task):
                self._tools[task.id] = task.tool
            case TaskReplaced(task=task):
                if task.id in self._started:  # the call that ran has been stopped
                    self._ended(task.id, "cancelled", event.at)
                self._tools[task.id] = task.tool
            case TaskStarted(id, at=at):
                tool = self._tool(id)
                if id in self._started:
                    metrics.retries.labels(agent, tool).inc()
                else:
                    metrics.calls_in_flight.labels(agent, tool).inc()
                self._started[id] = at
            case TaskDone(id, outcome, at=at, via=via):
                if id in self._tools:  # else a line that was no call: a fault of the plan
                    self._ended(id, _kind(outcome), at, called=via != "bank")
            case HostThrottled(id):
                metrics.throttles.labels(agent, self._tool(id)).inc()
            case PlanFault():
                metrics.faults.labels(agent).inc()
            case ModelUsed(purpose, usage=usage):
                for kind, tokens in (
                    ("prompt", usage.prompt_tokens),
                    ("completion", usage.completion_tokens),
                    ("cached", usage.cached_tokens),
                ):
                    metrics.tokens.labels(agent, purpose, kind).inc(tokens)
                metrics.model_seconds.labels(agent, purpose).observe(event.seconds)
                metrics.first_token.labels(agent, purpose).observe(event.first_token)
            case ApprovalAsked(id):
                metrics.approvals.labels(agent, self._tool(id), "asked").inc()
            case ApprovalGiven(id, allowed):
                verdict = "allowed" if allowed else "denied"
                metrics.approvals.labels(agent, self._tool(id), verdict).inc()
            case EntryUsed(id, spared=spared):
                metrics.bank_hits.labels(agent, self._tool(id)).inc()
                metrics.bank_spared.labels(agent, self._tool(id)).inc(max(0.0, spared))
            case LeaseAwaited(id):
                metrics.bank_waits.labels(agent, self._tool(id)).inc()
            case EntryOffered(id, admitted=admitted):
                verdict = "admitted" if admitted else "refused"
                metrics.bank_offers.labels(agent, self._tool(id), verdict).inc()
            case BankFailed():
                metrics.bank_failures.labels(agent).inc()
            case RunFinished(status, at=at):
                for id in list(self._started):
                    self._ended(id, "cancelled", at)
                runs, seconds = metrics.runs, metrics.run_seconds
                if self._is_team:
                    runs, seconds = metrics.team_runs, metrics.team_seconds
                runs.labels(agent, status).inc()
                seconds.labels(agent, status).observe(at)

    def close(self) -> None:
        for id in list(self._started):
            self._metrics.calls_in_flight.labels(self._agent, self._tool(id)).dec()
        self._started.clear()
        if not self._is_team:
            self._metrics.runs_in_flight.labels(self._agent).dec()

    def _tool(self, id: int) -> str:
        return self._tools.get(id, "?")

    def _ended(self, id: int, outcome: str, at: float, *, called: bool = True) -> None:
        tool = self._tool(id)
        self._metrics.calls.labels(self._agent, tool, outcome).inc()
        started = self._started.pop(id, None)
        if started is not None:
            self._metrics.calls_in_flight.labels(self._agent, tool).dec()
            if called:  # else it waited for another's call at most
                self._metrics.call_seconds.labels(self._agent, tool).observe(at - started)


def _kind(outcome: Outcome) -> str:
    match outcome:
        case Ok():
            return "ok"
        case Failed(kind=kind):
            return kind
        case Skipped():
            return "skipped"


# What is the process's own, as a registry and a port are. Agents of two threads may open at
# once: the lock is for both tables.
_metrics: WeakKeyDictionary[CollectorRegistry, _Metrics] = WeakKeyDictionary()
_servers: dict[tuple[str, int], tuple[WSGIServer, threading.Thread]] = {}
_sharing = threading.Lock()


def _metrics_of(registry: CollectorRegistry) -> _Metrics:
    with _sharing:
        if registry not in _metrics:
            _metrics[registry] = _Metrics(registry)
        return _metrics[registry]


def _serve(address: tuple[str, int], registry: CollectorRegistry) -> None:
    from prometheus_client import start_http_server

    host, port = address
    with _sharing:
        if address in _servers:
            return
        try:
            _servers[address] = start_http_server(port, host, registry)
        except OSError as error:
            raise UsageError(
                f"metrics cannot be served at {host}:{port} ({error.strerror or error}): "
                "give Prometheus another port"
            ) from None


def _stop(address: tuple[str, int]) -> None:
    with _sharing:
        server, thread = _servers.pop(address, (None, None))
    if server is not None and thread is not None:
        server.shutdown()
        server.server_close()
        thread.join()
