"""OpenTelemetry: a span around every append, sync, publish, receive, call of a handler, page of a projection and
portion of a pipeline.

Hours may pass between a write and its arrival, so nothing is the parent of anything on another node: the context of the
writing travels inside the event, and whoever publishes or receives it *links* to it. Each sync is a trace of its own.

Attribute names are those of the semantic conventions for messaging (still "Development") where these have one, and
begin with `synckit.` where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from synckit_streams.errors import MissingDependency, SyncKitError
from synckit_streams.ports.telemetry import Appended, Detail, Handled, Moved, Projected, Published, Received, Synced

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer, TracerProvider

SCOPE = "synckit_streams"
SYSTEM = "synckit"

_OPERATION_TYPES = {
    "append": "create",
    "publish": "send",
    "receive": "receive",
    "handle": "process",
    "project": "process",
    "move": "process",
}
"""What the conventions call them; a sync is none of theirs."""


class OtelObserver:
    """An `Observer` that makes spans.

    Args:
        tracer_provider: None takes the global one, as `opentelemetry.trace.set_tracer_provider` has set it.

    Raises:
        MissingDependency: opentelemetry is not installed.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._otel = _Otel()
        self._tracer = self._otel.trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        # Which of our spans is open here. Not OpenTelemetry's current span: that may be the application's.
        self._open: ContextVar[tuple[str, Span] | None] = ContextVar("synckit_span", default=None)
        self._tells: dict[type[Detail], tuple[str, Callable[[Span, Any], None]]] = {
            Appended: ("append", self._appended),
            Published: ("publish", self._published),
            Received: ("receive", self._received),
            Synced: ("sync", self._synced),
            Handled: ("handle", self._handled),
            Projected: ("project", self._projected),
            Moved: ("move", self._moved),
        }

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        """See `Observer`."""
        return _Operation(self._otel, self._tracer, self._open, name, node)

    def observe(self, detail: Detail) -> None:
        """See `Observer`. The record of an operation completes its span; any other is an event on the span around."""
        name, span = self._open.get() or ("", None)
        if span is None or not span.is_recording():
            return
        wanted, tell = self._tells.get(type(detail), ("", None))
        if tell is not None and wanted == name:
            tell(span, detail)
        else:
            span.add_event(type(detail).__name__.lower(), _attributes(detail))

    # --- one for each record -----------------------------------------------------------------------------------------

    def _appended(self, span: Span, detail: Appended) -> None:
        span.set_attribute("messaging.batch.message_count", detail.events)
        if len(detail.topics) == 1:
            _name(span, "append", detail.topics[0])

    def _published(self, span: Span, detail: Published) -> None:
        _name(span, "publish", detail.topic)
        span.set_attribute("messaging.batch.message_count", detail.messages)
        span.set_attribute("messaging.message.body.size", detail.bytes)
        span.set_attributes(_attributes(detail))
        self._link(span, detail.traceparents, detail.traces)

    def _received(self, span: Span, detail: Received) -> None:
        _name(span, "receive", detail.topic)
        span.set_attribute("messaging.batch.message_count", detail.messages)
        span.set_attribute("messaging.message.body.size", detail.bytes)
        span.set_attributes(_attributes(detail))
        self._link(span, detail.traceparents, detail.traces)

    def _synced(self, span: Span, detail: Synced) -> None:
        span.set_attributes(_attributes(detail))

    def _handled(self, span: Span, detail: Handled) -> None:
        span.update_name(f"handle {detail.handler}")
        span.set_attribute("messaging.consumer.group.name", detail.group)
        span.set_attribute("messaging.batch.message_count", detail.events)
        span.set_attributes(_attributes(detail))
        self._link(span, detail.traceparents, detail.traces)
        if detail.error:
            span.set_attribute("error.type", detail.error)
            span.set_status(self._otel.trace.StatusCode.ERROR)

    def _projected(self, span: Span, detail: Projected) -> None:
        span.update_name(f"project {detail.projection}")
        span.set_attribute("messaging.batch.message_count", detail.events)
        span.set_attributes(_attributes(detail))
        self._link(span, detail.traceparents, detail.traces)

    def _moved(self, span: Span, detail: Moved) -> None:
        span.update_name(f"move {detail.pipeline}")
        span.set_attribute("messaging.batch.message_count", detail.records)
        span.set_attributes(_attributes(detail))
        self._link(span, detail.traceparents, detail.traces)

    def _link(self, span: Span, traceparents: Sequence[str], traces: int) -> None:
        for traceparent in traceparents:
            context = self._otel.span_context(traceparent)
            if context is not None:
                span.add_link(context)
        span.set_attribute("synckit.traces", traces)


class _Operation:
    """One span, from beginning to end."""

    def __init__(
        self, otel: _Otel, tracer: Tracer, open_: ContextVar[tuple[str, Span] | None], name: str, node: str
    ) -> None:
        self._otel = otel
        self._tracer = tracer
        self._open = open_
        self._name = name
        self._node = node

    def __enter__(self) -> str:
        otel, name = self._otel, self._name
        attributes = {"synckit.node": self._node}
        if name in _OPERATION_TYPES:
            attributes["messaging.system"] = SYSTEM
            attributes["messaging.operation.name"] = name
            attributes["messaging.operation.type"] = _OPERATION_TYPES[name]
        parent, links = None, []
        if name == "sync":
            # A trace of its own, also under auto-sync, whose starter has long gone on. Who called is a link.
            parent = otel.context.Context()
            caller = otel.trace.get_current_span().get_span_context()
            if caller.is_valid:
                links = [otel.trace.Link(caller)]
        self._span: Span = self._tracer.start_span(
            name, context=parent, kind=otel.kind(name), attributes=attributes, links=links
        )
        self._ambient = otel.context.attach(otel.trace.set_span_in_context(self._span))
        self._before = self._open.set((name, self._span))
        return otel.traceparent(self._span.get_span_context())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.reset(self._before)
        self._otel.context.detach(self._ambient)
        if isinstance(error, Exception):  # being cancelled is no error
            name = error.code if isinstance(error, SyncKitError) else type(error).__qualname__
            self._span.set_attribute("error.type", name)
            self._span.set_status(self._otel.trace.StatusCode.ERROR, str(error))
        self._span.end()


class _Otel:
    """The library, once it is known to be there."""

    def __init__(self) -> None:
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation import tracecontext
        except ModuleNotFoundError:
            raise MissingDependency(
                "the OpenTelemetry observer needs opentelemetry", hint="pip install 'synckit-streams[otel]'"
            ) from None
        self.context = context
        self.trace = trace
        self._propagator = tracecontext.TraceContextTextMapPropagator()

    def kind(self, name: str) -> SpanKind:
        """An append makes the message and its context: the producer. What carries it on is a client of the broker."""
        kinds = self.trace.SpanKind
        known = {"append": kinds.PRODUCER, "publish": kinds.CLIENT, "receive": kinds.CLIENT, "handle": kinds.CONSUMER}
        return known.get(name, kinds.INTERNAL)

    def traceparent(self, context: SpanContext) -> str:
        """A context as W3C writes it; "" if there is none (no provider is set)."""
        if not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def span_context(self, traceparent: str) -> SpanContext | None:
        """The reverse; None for what is no context: it came from another node, and is no reason to fail."""
        found = self._propagator.extract({"traceparent": traceparent}, context=self.context.Context())
        context = self.trace.get_current_span(found).get_span_context()
        return context if context.is_valid else None


def _name(span: Span, operation: str, topic: str) -> None:
    span.update_name(f"{operation} {topic}")
    span.set_attribute("messaging.destination.name", topic)


def _attributes(detail: Detail) -> dict[str, str | int | float | bool]:
    """The plain fields of a record, under names of our own."""
    fields = msgspec.structs.asdict(detail).items()
    return {
        f"synckit.{name}": value for name, value in fields if isinstance(value, str | int | float) and name != "node"
    }
