"""The OpenTelemetry observer, against the real SDK with an exporter in memory."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from synckit_connectors.memory import memory_broker
from synckit_streams import Draft, IdReused, MissingDependency, SyncNode, Unavailable
from synckit_streams.observe.otel import OtelObserver
from synckit_streams.ports.telemetry import Alarmed, Received


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def the(exporter: InMemorySpanExporter, name: str, node: str) -> ReadableSpan:
    (span,) = [each for each in named(exporter, name) if (each.attributes or {})["synckit.node"] == node]
    return span


async def test_a_trace_is_followed_from_the_writing_to_the_receiving_by_a_link(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    """A appends, publishes and is gone; B receives, in a trace of its own that links to A's append."""
    broker = f"memory://{uuid.uuid4().hex}"
    observer = OtelObserver(provider)
    async with (
        SyncNode("a", store="memory:", connectors=[broker], topics=["t"], observer=observer) as a,
        SyncNode("b", store="memory:", connectors=[broker], topics=["t"], observer=observer) as b,
    ):
        with provider.get_tracer("shop").start_as_current_span("checkout") as checkout:
            stored = await a.append(Draft("t", "made", "x"))
        await a.sync()
        await b.sync()
        (received,) = await b.aggregate("t", "x")

    append = the(exporter, "append t", "a")
    assert append.context is not None
    assert append.kind is SpanKind.PRODUCER
    assert append.parent == checkout.get_span_context()  # a local call: an ordinary parent
    ids = format_trace_id(append.context.trace_id), format_span_id(append.context.span_id)
    traceparent = f"00-{ids[0]}-{ids[1]}-{append.context.trace_flags:02x}"
    assert stored.event.traceparent == traceparent
    assert received.traceparent == traceparent  # it travelled inside the event

    publish = the(exporter, "publish t", "a")
    receive = the(exporter, "receive t", "b")
    for span in (publish, receive):
        assert [link.context.span_id for link in span.links] == [append.context.span_id]
        assert [link.context.trace_id for link in span.links] == [append.context.trace_id]
        assert span.context is not None
        assert span.context.trace_id != append.context.trace_id
        assert span.kind is SpanKind.CLIENT
    attributes = receive.attributes or {}
    assert attributes["messaging.system"] == "synckit"
    assert attributes["messaging.operation.name"] == "receive"
    assert attributes["messaging.operation.type"] == "receive"
    assert attributes["messaging.destination.name"] == "t"
    assert attributes["messaging.batch.message_count"] == 1
    assert attributes["synckit.stored"] == 1
    assert (publish.attributes or {})["messaging.operation.type"] == "send"

    # Each sync is a trace of its own, and what happened in it lies under it.
    syncs = {(span.attributes or {})["synckit.node"]: span for span in named(exporter, "sync")}
    assert set(syncs) == {"a", "b"}
    assert all(span.parent is None for span in syncs.values())
    assert receive.parent == syncs["b"].context
    assert publish.parent == syncs["a"].context
    assert (syncs["b"].attributes or {})["synckit.pulled"] == 1
    assert (syncs["b"].attributes or {})["synckit.complete"] is True


async def test_a_sync_links_to_whoever_called_it(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    broker = f"memory://{uuid.uuid4().hex}"
    async with SyncNode(
        "a", store="memory:", connectors=[broker], topics=["t"], observer=OtelObserver(provider)
    ) as node:
        with provider.get_tracer("shop").start_as_current_span("button") as button:
            await node.sync()
    (sync,) = named(exporter, "sync")
    assert sync.parent is None
    assert [link.context for link in sync.links] == [button.get_span_context()]


async def test_many_writings_in_one_batch_are_capped_and_the_rest_is_counted(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    broker = f"memory://{uuid.uuid4().hex}"
    observer = OtelObserver(provider)
    async with (
        SyncNode("a", store="memory:", connectors=[broker], topics=["t"], observer=observer) as a,
        SyncNode("b", store="memory:", connectors=[broker], topics=["t"], observer=observer) as b,
    ):
        for n in range(40):
            await a.append(Draft("t", "made", f"x{n}"))
        await a.sync()
        await b.sync()
    publish = the(exporter, "publish t", "a")
    assert len(publish.links) == 32
    assert (publish.attributes or {})["synckit.traces"] == 40


async def test_an_operation_that_fails_says_so(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    """The error's code is on the span; a broker that is away is an error of the sync, not of the append."""
    name = uuid.uuid4().hex
    async with SyncNode(
        "a", store="memory:", connectors=[f"memory://{name}"], topics=["t"], observer=OtelObserver(provider)
    ) as node:
        await node.append(Draft("t", "made", "x", id="1"))
        with pytest.raises(IdReused):
            await node.append(Draft("t", "other", "x", id="1"))
        memory_broker(name).down = True
        with pytest.raises(Unavailable):
            await node.sync()
    good, bad = sorted(
        (span for span in exporter.get_finished_spans() if span.name.startswith("append")),
        key=lambda span: span.start_time or 0,
    )
    assert good.status.status_code is StatusCode.UNSET
    assert bad.status.status_code is StatusCode.ERROR
    assert (bad.attributes or {})["error.type"] == "SK304"
    (sync,) = named(exporter, "sync")
    assert (sync.attributes or {})["error.type"] == "SK401"
    assert (sync.attributes or {})["synckit.error"] == "SK401"


def test_an_alarm_is_an_event_on_the_span_around_it(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    observer = OtelObserver(provider)
    with observer.operation("receive", node="a"):
        observer.observe(Alarmed(node="a", kind="twins", topic="t", evidence="the id 1"))
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "alarmed"
    assert (event.attributes or {})["synckit.kind"] == "twins"


def test_a_span_of_the_application_is_left_alone(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    """Outside of an operation of ours there is nothing to add to, whatever the application has open."""
    observer = OtelObserver(provider)
    with provider.get_tracer("shop").start_as_current_span("theirs"):
        observer.observe(Alarmed(node="a", kind="twins", topic="t", evidence="the id 1"))
    (span,) = exporter.get_finished_spans()
    assert not span.events
    assert not span.attributes


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-ff\x00"])
def test_a_trace_context_that_is_none_makes_no_link(
    exporter: InMemorySpanExporter, provider: TracerProvider, traceparent: str
) -> None:
    """It came from another node; it is no reason to fail."""
    observer = OtelObserver(provider)
    with observer.operation("receive", node="a"):
        observer.observe(
            Received(
                node="a",
                connector="c",
                topic="t",
                messages=1,
                bytes=1,
                stored=1,
                duplicates=0,
                held=0,
                dropped=0,
                quarantined=0,
                skew_ms=0,
                traceparents=(traceparent,),
                traces=1,
                duration_s=0.1,
            )
        )
    (span,) = exporter.get_finished_spans()
    assert not span.links


async def test_without_a_provider_events_carry_no_context() -> None:
    """The API alone, as an application without an SDK has it: nothing is stored, nothing fails."""
    async with SyncNode("a", store="memory:", observer=OtelObserver()) as node:
        stored = await node.append(Draft("t", "made", "x"))
    assert stored.event.traceparent == ""


def test_without_the_library_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingDependency) as raised:
        OtelObserver()
    assert raised.value.hint == "pip install 'synckit-streams[otel]'"
