"""The Prometheus observer, read back as Prometheus reads it: the text exposition, parsed."""

from __future__ import annotations

import re
import sys
import uuid
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from synckit_streams import ConfigError, Draft, MissingDependency, SyncNode, Unavailable
from synckit_streams.observe.prometheus import PrometheusObserver
from synckit_streams.ports.telemetry import Alarmed, Appended, Link, Projected, Published, Received, Synced

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(registry: CollectorRegistry) -> Samples:
    """Every sample of a scrape, by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_every_record_reaches_the_scrape() -> None:
    """One record of each kind, and the numbers that a person would expect from them."""
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    observer.observe(Appended(node="till", topics=("orders",), events=3, duration_s=0.003))
    observer.observe(
        Published(
            node="till",
            connector="nats://hub",
            topic="orders",
            events=5,
            messages=2,
            bytes=900,
            again=4,
            traceparents=(),
            traces=0,
            duration_s=0.2,
        )
    )
    observer.observe(
        Received(
            node="till",
            connector="nats://hub",
            topic="orders",
            messages=7,
            bytes=800,
            stored=6,
            duplicates=5,
            held=4,
            dropped=3,
            quarantined=2,
            skew_ms=1500,
            traceparents=(),
            traces=0,
            duration_s=0.02,
        )
    )
    observer.observe(Synced(node="till", pushed=5, pulled=6, conflicts=1, complete=True, error="", duration_s=0.4))
    observer.observe(Synced(node="till", pushed=0, pulled=0, conflicts=0, complete=False, error="", duration_s=0.4))
    observer.observe(Synced(node="till", pushed=0, pulled=0, conflicts=0, complete=False, error="SK401", duration_s=3))
    observer.observe(Projected(node="till", projection="stock", events=9, duration_s=0.1))
    observer.observe(Link(node="till", connector="nats://hub", up=True))
    observer.observe(Alarmed(node="till", kind="rewound", topic="orders", evidence="stood at 9, the log is 1..3"))

    samples = scrape(registry)
    node: dict[str, str] = {"node": "till"}
    there = {**node, "connector": "nats://hub", "topic": "orders"}
    assert value(samples, "synckit_events_appended_total", **node) == 3
    assert value(samples, "synckit_append_duration_seconds_sum", **node) == 0.003
    assert value(samples, "synckit_append_duration_seconds_bucket", le="0.0025", **node) == 0
    assert value(samples, "synckit_append_duration_seconds_bucket", le="0.005", **node) == 1
    assert value(samples, "synckit_events_published_total", **there) == 5
    assert value(samples, "synckit_events_republished_total", **there) == 4
    assert value(samples, "synckit_messages_published_total", **there) == 2
    assert value(samples, "synckit_published_bytes_total", **there) == 900
    assert value(samples, "synckit_messages_received_total", **there) == 7
    assert value(samples, "synckit_received_bytes_total", **there) == 800
    assert value(samples, "synckit_events_stored_total", **there) == 6
    assert value(samples, "synckit_events_duplicate_total", **there) == 5
    assert value(samples, "synckit_events_held_total", **there) == 4
    assert value(samples, "synckit_events_dropped_total", **there) == 3
    assert value(samples, "synckit_events_quarantined_total", **there) == 2
    assert value(samples, "synckit_clock_skew_seconds", **there) == 1.5
    assert value(samples, "synckit_sync_operations_total", result="complete", **node) == 1
    assert value(samples, "synckit_sync_operations_total", result="incomplete", **node) == 1
    assert value(samples, "synckit_sync_operations_total", result="failed", **node) == 1
    assert value(samples, "synckit_sync_errors_total", type="Unavailable", **node) == 1
    assert value(samples, "synckit_sync_duration_seconds_count", **node) == 3
    assert value(samples, "synckit_events_pushed_total", **node) == 5
    assert value(samples, "synckit_events_pulled_total", **node) == 6
    assert value(samples, "synckit_conflicts_resolved_total", **node) == 1
    assert value(samples, "synckit_events_projected_total", projection="stock", **node) == 9
    assert value(samples, "synckit_link_up", connector="nats://hub", **node) == 1
    assert value(samples, "synckit_alarms_total", kind="rewound", topic="orders", **node) == 1

    observer.observe(Link(node="till", connector="nats://hub", up=False, reason="gone"))
    samples = scrape(registry)
    assert value(samples, "synckit_link_up", connector="nats://hub", **node) == 0
    assert value(samples, "synckit_link_changes_total", connector="nats://hub", to="down", **node) == 1


async def test_two_nodes_that_sync_count_what_they_did() -> None:
    """Ten events go from one node to another; both tell one observer, and no id of anything becomes a label."""
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry, namespace="shop", labels={"site": "harbour"})
    broker = f"memory://{uuid.uuid4().hex}"
    async with (
        SyncNode("a", store="memory:", connectors=[broker], topics=["t"], observer=observer) as a,
        SyncNode("b", store="memory:", connectors=[broker], topics=["t"], observer=observer) as b,
    ):
        stored = await a.append_many([Draft("t", "made", f"aggregate-{n}") for n in range(10)])
        await a.sync()
        await b.sync()
    samples = scrape(registry)
    a_labels, b_labels = {"site": "harbour", "node": "a"}, {"site": "harbour", "node": "b"}
    assert value(samples, "shop_events_appended_total", **a_labels) == 10
    assert value(samples, "shop_events_pushed_total", **a_labels) == 10
    assert value(samples, "shop_events_pulled_total", **a_labels) == 0
    assert value(samples, "shop_events_pulled_total", **b_labels) == 10
    assert value(samples, "shop_events_stored_total", **b_labels, connector=broker, topic="t") == 10
    text = generate_latest(registry).decode()
    assert "aggregate-" not in text
    assert stored[0].event.id not in text
    assert stored[0].event.origin not in text


async def test_a_sync_that_reaches_nobody_is_counted_as_an_error() -> None:
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    from synckit_connectors.memory import memory_broker

    name = uuid.uuid4().hex
    async with SyncNode("a", store="memory:", connectors=[f"memory://{name}"], topics=["t"], observer=observer) as node:
        memory_broker(name).down = True
        with pytest.raises(Unavailable):
            await node.sync()
    samples = scrape(registry)
    assert value(samples, "synckit_sync_operations_total", result="failed", node="a") == 1
    assert value(samples, "synckit_sync_errors_total", type="Unavailable", node="a") == 1


def test_a_second_observer_on_one_registry_is_refused_with_a_hint() -> None:
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    with pytest.raises(ConfigError, match="one observer"):
        PrometheusObserver(registry)
    PrometheusObserver(registry, namespace="other")


@pytest.mark.parametrize("label", ["bad-name", "node"])
def test_a_label_that_cannot_be_one_is_refused(label: str) -> None:
    with pytest.raises(ConfigError):
        PrometheusObserver(CollectorRegistry(), labels={label: "x"})


def test_without_the_client_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependency) as raised:
        PrometheusObserver()
    assert raised.value.hint == "pip install 'synckit-streams[prometheus]'"


def test_the_how_to_names_every_metric_with_its_labels_and_no_other() -> None:
    """What an operator reads is what a scrape has."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "observe.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(synckit_\w+)` \| (.*?) \|", page, flags=re.MULTILINE)
    written = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    registry = CollectorRegistry()
    PrometheusObserver(registry)
    made = {}
    for metric in registry._collector_to_names:
        assert isinstance(metric, MetricWrapperBase)
        name = metric._name + ("_total" if metric._type == "counter" else "")
        made[name] = set(metric._labelnames) - {"node"}
    assert written == made
