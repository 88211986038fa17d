"""What pipelines tell whoever watches: counts, lag, failures and spans, beside those of their nodes."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from synckit_streams import Draft, SyncNode
from synckit_streams.connect.runner import Runner
from synckit_streams.observe.otel import OtelObserver
from synckit_streams.observe.prometheus import PrometheusObserver
from synckit_streams.ports.telemetry import Observer
from tests.connect.kit import declare, from_file, order, until, write_lines

LABELS = {"node": "connect", "pipeline": "in"}


async def moved_once(file: Path, observer: Observer) -> None:
    runner = Runner([file], once=True, observer=observer)
    await runner.start()
    await runner.wait()
    await runner.stop()


async def test_records_dead_letters_and_lag_are_counted(tmp_path: Path) -> None:
    """Ten lines, of which a filter passes over three, and one that is no JSON."""
    registry = CollectorRegistry()
    write_lines(tmp_path / "orders.jsonl", [order(n, test=n < 3) for n in range(10)])
    with (tmp_path / "orders.jsonl").open("a") as file:
        file.write("nonsense\n")
    transforms = [{"kind": "filter", "field": "/test", "op": "eq", "value": False}]
    await moved_once(declare(tmp_path, from_file(transforms=transforms)), PrometheusObserver(registry))
    counted = {
        name: registry.get_sample_value(f"synckit_pipeline_records_{name}_total", LABELS)
        for name in ("read", "delivered", "dead")
    }
    assert counted == {"read": 11, "delivered": 7, "dead": 1}
    assert registry.get_sample_value("synckit_pipeline_lag_records", LABELS) == 0
    assert registry.get_sample_value("synckit_pipeline_move_duration_seconds_count", LABELS) == 1


async def test_failures_are_counted_by_their_class(tmp_path: Path) -> None:
    """The dead letter cannot be written; the pipeline tries again, and says each time why."""
    registry = CollectorRegistry()
    (tmp_path / "orders.jsonl").write_text("nonsense\n")
    (tmp_path / "no").write_text("a file, where a folder should be")
    file = declare(tmp_path, from_file(dead_letter={"kind": "file", "path": "no/dead.jsonl"}))
    runner = Runner([file], observer=PrometheusObserver(registry))
    await runner.start()
    labels = {**LABELS, "type": "ConfigError"}
    await until(lambda: (registry.get_sample_value("synckit_pipeline_failures_total", labels) or 0) >= 2)
    await runner.stop()
    assert registry.get_sample_value("synckit_pipeline_records_read_total", LABELS) is None


async def test_a_portion_is_a_span_around_what_its_sink_does(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(4)])
    sink = {"kind": "topic", "connector": "memory://observed-pipeline", "topic": "orders"}
    await moved_once(declare(tmp_path, from_file(sink=sink)), OtelObserver(provider))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    move, append = spans["move in"], spans["append orders"]
    assert append.parent is not None
    assert move.context is not None
    assert append.parent.span_id == move.context.span_id
    attributes = move.attributes or {}
    assert (attributes["synckit.records"], attributes["synckit.delivered"], attributes["synckit.dead"]) == (4, 4, 0)
    assert "publish orders" in spans


async def test_a_trace_goes_on_from_the_event_that_a_pipeline_took_along(tmp_path: Path) -> None:
    """By a link, as everywhere: hours may lie between."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OtelObserver(provider)
    async with SyncNode("till-7", store=f"sqlite:///{tmp_path}/till.db", observer=observer) as node:
        await node.append(Draft("orders", "order.placed", "o-1", {"n": 1}))
    source = {"kind": "outbox", "store": "sqlite:///till.db"}
    await moved_once(declare(tmp_path, from_file(source=source)), observer)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    (link,) = spans["move in"].links
    written = spans["append orders"].context
    assert written is not None
    assert (link.context.trace_id, link.context.span_id) == (written.trace_id, written.span_id)
