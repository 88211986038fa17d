"""The metrics of several processes on one page, parsed as Prometheus parses it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from synckit_streams import Draft, SyncNode
from synckit_streams.observe.exposition import Family, Sample, families, together
from synckit_streams.observe.prometheus import PrometheusObserver


async def counted(node: str, events: int) -> list[Family]:
    """What a process tells in which a node wrote so many events."""
    registry = CollectorRegistry()
    async with SyncNode(node, store="memory:", observer=PrometheusObserver(registry)) as writer:
        for number in range(events):
            await writer.append(Draft("orders", "placed", f"o-{number}"))
    return families(registry)


async def test_every_series_says_whose_it_is_and_nothing_is_added_up() -> None:
    exposition = together({"1": await counted("a", 2), "2": await counted("a", 5)}, label="worker")
    found = list(text_string_to_metric_families(generate_latest(exposition.registry).decode()))
    assert len({each.name for each in found}) == len(found), "a family stands twice, and Prometheus refuses the page"
    values = {
        sample.labels["worker"]: sample.value
        for family in found
        for sample in family.samples
        if sample.name == "synckit_events_appended_total"
    }
    assert values == {"1": 2.0, "2": 5.0}


def test_buckets_sums_and_counts_come_through() -> None:
    registry = CollectorRegistry()
    Histogram("took_seconds", "How long.", registry=registry, buckets=(1.0, 2.0)).observe(1.5)
    Counter("done", "How many.", registry=registry).inc(3)
    before = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    shown = together({"1": families(registry)}, label="worker").registry
    after = [
        (sample.name, {name: value for name, value in sample.labels.items() if name != "worker"}, sample.value)
        for family in text_string_to_metric_families(generate_latest(shown).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    assert after == before


def test_two_programs_that_differ_do_not_spoil_the_page() -> None:
    """While workers are restarted one after another, one of them may know a metric as something else."""
    old = [Family("load", "Old.", "counter", "", [Sample("load_total", {}, 1.0)])]
    new = [Family("load", "New.", "gauge", "", [Sample("load", {}, 2.0)])]
    text = generate_latest(together({"1": old, "2": new}, label="worker").registry).decode()
    assert 'load_total{worker="1"} 1.0' in text
    assert 'worker="2"' not in text
