"""What an app does can be watched: metrics count it, and one trace leads from the writer to the read model."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from prometheus_client import CollectorRegistry

from synckit_streams import App, Batch, Draft, HandlerContext, Retry
from synckit_streams.observe.otel import OtelObserver
from synckit_streams.observe.prometheus import PrometheusObserver
from synckit_streams.testing import TestApp


def named(context: Any) -> str:
    """A span as W3C names it, without the flags."""
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"


async def test_one_trace_leads_from_the_writer_over_the_handler_to_the_read_model() -> None:
    """The order's writing is linked by the handler's call, and the call by the projection of what it returned."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = App("billing", store="memory:", observer=OtelObserver(provider))
    calls = 0

    @app.handler("orders", retry=Retry(max_attempts=2, base_ms=1))
    async def bill(order: dict[str, Any], ctx: HandlerContext) -> Draft:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("once")
        return Draft("invoices", "invoice.written", ctx.event.aggregate_id)

    @app.projection("billed", topics=["invoices"])
    async def billed(batch: Batch, tx: Any) -> None:
        assert len(batch.stored) == 1

    async with TestApp(app) as t:
        written = await app.node.append(Draft("orders", "order.placed", "o-1", {}))
        await t.drain()
        (invoice,) = t.published("invoices")
        await app.node.project()

    spans = {span.name: span for span in exporter.get_finished_spans()}
    failed, done = [span for span in exporter.get_finished_spans() if span.name == "handle bill"]
    for span in (failed, done):
        assert span.kind is SpanKind.CONSUMER
        assert [named(link.context) for link in span.links] == [written.event.traceparent[:-3]]
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "ValueError"
    assert done.status.status_code is StatusCode.UNSET
    assert invoice.traceparent[:-3] == named(done.get_span_context())
    projected = spans["project billed"]
    assert [named(link.context) for link in projected.links] == [invoice.traceparent[:-3]]


async def test_what_handlers_do_is_counted() -> None:
    registry = CollectorRegistry()
    app = App("billing", store="memory:", observer=PrometheusObserver(registry))

    @app.handler("orders", group="mail", retry=Retry(max_attempts=3, base_ms=1))
    async def mail(order: dict[str, int], ctx: HandlerContext) -> Draft | None:
        if order["n"] % 10 == 0:
            raise ValueError("no")
        return Draft("mails", "mail.sent", ctx.event.aggregate_id) if order["n"] % 2 else None

    async with TestApp(app) as t:
        await t.publish(*(Draft("orders", "order.placed", f"o-{n}", {"n": n}) for n in range(100)))
        await t.drain()

    who = {"node": "billing", "group": "mail"}
    by = {**who, "handler": "mail"}
    assert registry.get_sample_value("synckit_events_handled_total", by) == 90
    assert registry.get_sample_value("synckit_handler_failures_total", {**by, "error": "ValueError"}) == 30
    assert registry.get_sample_value("synckit_handler_duration_seconds_count", by) == 120
    assert registry.get_sample_value("synckit_events_answered_total", who) == 50 + 10
    assert registry.get_sample_value("synckit_events_dead_total", who) == 10
    assert registry.get_sample_value("synckit_aggregates_parked", who) == 0
    assert registry.get_sample_value("synckit_group_lag_events", who) == 0
    assert registry.get_sample_value("synckit_group_lanes", who) == 64
