"""OpenTelemetry: a run's `SpanTree` told to a tracer.

The only file that knows the ``opentelemetry`` packages; what is in a span is decided in
`agentpar.watch.spans`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentpar.errors import MissingPackage
from agentpar.events import Event
from agentpar.ids import question_run
from agentpar.ports import RunInfo
from agentpar.watch.spans import ROOT, Change, Closed, Key, Noted, Opened, SpanTree, Value

if TYPE_CHECKING:  # loads when a watcher is made
    from opentelemetry.trace import Span, TracerProvider


class OpenTelemetry:
    """Traces each run as one tree of spans (see `agentpar.watch.spans`).

    Spans go to ``provider``, else to the tracer provider that the program has set, else to
    an OTLP/HTTP exporter that the ``OTEL_…`` variables of the environment configure. A run
    that begins inside a span of yours is its child. ``content`` adds arguments, results,
    texts and error messages; without it only names, numbers and kinds of error leave.
    ``wall`` is the clock of the spans, nanoseconds since 1970.

    Needs the ``otel`` extra.
    """

    def __init__(
        self,
        *,
        content: bool = False,
        provider: TracerProvider | None = None,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            import opentelemetry.trace  # noqa: F401 (a missing package is told at once)
        except ImportError:
            raise MissingPackage(
                "opentelemetry-sdk", extra="otel", purpose="watching with OpenTelemetry"
            ) from None
        self._content = content
        self._provider = provider
        self._wall = wall
        self._wholes: dict[str, _Writer] = {}
        """Runs of several teams at work, by id: the spans of their teams lie under theirs."""

    @contextmanager
    def __call__(self, run: RunInfo) -> Iterator[Callable[[Event], None]]:
        """Watch one run; its root span ends with the block, however that is left."""
        tree = SpanTree(run, content=self._content)
        whole = self._wholes.get(question_run(run.run_id, run.team)) if run.team else None
        writer = _Writer(self._tracer_provider(), self._wall, whole)
        if run.teams:
            self._wholes[run.run_id] = writer
            if run.history:  # carried on, it may tell nothing before its teams do
                begun = run.history[-1].at
                writer.write(tree.begin(begun), begun)

        def observe(event: Event) -> None:
            writer.write(tree.add(event), event.at)

        try:
            yield observe
        finally:
            if self._wholes.get(run.run_id) is writer:
                del self._wholes[run.run_id]
            writer.write(tree.end(), 0.0)

    def _tracer_provider(self) -> TracerProvider:
        from opentelemetry import trace

        if self._provider is None:
            chosen = trace.get_tracer_provider()
            if not isinstance(chosen, trace.ProxyTracerProvider):
                return chosen  # asked each time: a program may set it later
            self._provider = _exporting()
        return self._provider


def _exporting() -> TracerProvider:
    """A provider of our own, which sends what it has left when Python ends."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingPackage(
            "opentelemetry-exporter-otlp-proto-http", extra="otel", purpose="sending spans"
        ) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _Writer:
    """Writes the changes of one run's spans; the first event sets the clock."""

    def __init__(
        self, provider: TracerProvider, wall: Callable[[], int], whole: _Writer | None
    ) -> None:
        from opentelemetry import context
        from opentelemetry.trace import set_span_in_context

        self._tracer = provider.get_tracer("agentpar")
        self._around = context.get_current()  # the run may begin inside a span of the caller's
        if whole is not None and ROOT in whole._spans:
            self._around = set_span_in_context(whole._spans[ROOT], self._around)
        self._wall = wall
        self._zero: int | None = None
        self._spans: dict[Key, Span] = {}

    def write(self, changes: Iterable[Change], at: float) -> None:
        if self._zero is None:
            self._zero = self._wall() - round(at * 1e9)
        for change in changes:
            match change:
                case Opened():
                    self._open(change)
                case Closed():
                    self._close(change)
                case Noted(name, moment, attributes):
                    self._spans[ROOT].add_event(name, _sendable(attributes), self._time(moment))

    def _open(self, change: Opened) -> None:
        from opentelemetry.trace import Link, SpanKind, set_span_in_context

        parent = self._around
        if change.parent is not None:
            parent = set_span_in_context(self._spans[change.parent], self._around)
        self._spans[change.key] = self._tracer.start_span(
            _text(change.name),
            context=parent,
            kind=SpanKind.CLIENT if change.client else SpanKind.INTERNAL,
            attributes=_sendable(change.attributes),
            links=[Link(self._spans[key].get_span_context()) for key in change.links],
            start_time=self._time(change.at),
        )

    def _close(self, change: Closed) -> None:
        from opentelemetry.trace import Status, StatusCode

        span = self._spans[change.key]
        span.set_attributes(_sendable(change.attributes))
        if change.error:
            span.set_status(Status(StatusCode.ERROR, _text(change.message) or None))
        span.end(self._time(change.at))

    def _time(self, at: float) -> int:
        assert self._zero is not None
        return self._zero + round(at * 1e9)


def _sendable(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {name: _in_utf8(value) for name, value in attributes.items()}


def _in_utf8(value: Value) -> Value:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        return [_text(item) for item in value if isinstance(item, str)] or value
    return value


def _text(text: str) -> str:
    """``text`` without lone surrogates: a model may write them, UTF-8 has no word for them."""
    return text.encode("utf-8", "replace").decode("utf-8")
