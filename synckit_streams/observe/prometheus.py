"""Prometheus: counters, histograms and gauges for everything that a node tells.

Labels are names that an operator chose (nodes, connectors, topics, projections) and kinds that this library defines; an
id of an event or an aggregate is never one, so the number of series does not grow with the data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from synckit_streams.errors import ConfigError, MissingDependency, SyncKitError
from synckit_streams.ports.telemetry import (
    Alarmed,
    Appended,
    Detail,
    Handled,
    Lagged,
    Link,
    Moved,
    Progressed,
    Projected,
    Published,
    Received,
    Stalled,
    Synced,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of a batch's duration: a durable commit takes half a millisecond on a good disk."""
SYNC_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

OUR_LABELS = frozenset({"node", "connector", "topic", "projection", "pipeline", "result", "type", "kind", "to", "le"})

_label = re.compile("[a-zA-Z][a-zA-Z0-9_]*").fullmatch

Tell = Callable[..., None]


class PrometheusObserver:
    """An `Observer` that keeps metrics in a registry, which the application exposes as it likes.

    Args:
        registry: None takes the client's own, which `prometheus_client.start_http_server` serves.
        namespace: What every name begins with.
        labels: Put on every series, for example `{"site": "harbour"}`.

    Raises:
        MissingDependency: prometheus-client is not installed.
        ConfigError: the registry has these metrics already, or a name is none. One observer serves many nodes.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        namespace: str = "synckit",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._metrics = _Metrics(registry, namespace, labels or {})
        self._tells: dict[type[Detail], Tell] = {
            Appended: self._appended(),
            Published: self._published(),
            Received: self._received(),
            Synced: self._synced(),
            Projected: self._projected(),
            Handled: self._handled(),
            Progressed: self._progressed(),
            Moved: self._moved(),
            Lagged: self._lagged(),
            Stalled: self._stalled(),
            Link: self._link(),
            Alarmed: self._alarmed(),
        }

    @contextmanager
    def operation(self, name: str, *, node: str) -> Iterator[str]:
        """See `Observer`. Metrics need no more than the records."""
        yield ""

    def observe(self, detail: Detail) -> None:
        """See `Observer`. A record that this release does not know is passed over."""
        tell = self._tells.get(type(detail))
        if tell is not None:
            tell(detail)

    # --- one for each record -----------------------------------------------------------------------------------------

    def _appended(self) -> Tell:
        make = self._metrics
        events = make.counter("events_appended", "Events written here and durable.")
        seconds = make.histogram("append_duration_seconds", "One append of any number of events.", SECONDS)

        def tell(each: Appended) -> None:
            events(each.events, each.node)
            seconds(each.duration_s, each.node)

        return tell

    def _published(self) -> Tell:
        make, labels = self._metrics, ("connector", "topic")
        events = make.counter("events_published", "Events in messages that the broker acknowledged.", *labels)
        again = make.counter("events_republished", "Of these, events that had been published before.", *labels)
        messages = make.counter("messages_published", "Messages that the broker acknowledged.", *labels)
        size = make.counter("published_bytes", "Their bodies.", *labels)
        seconds = make.histogram("publish_duration_seconds", "One batch, to its acknowledgement.", SECONDS, *labels)

        def tell(each: Published) -> None:
            where = (each.node, each.connector, each.topic)
            events(each.events, *where)
            again(each.again, *where)
            messages(each.messages, *where)
            size(each.bytes, *where)
            seconds(each.duration_s, *where)

        return tell

    def _received(self) -> Tell:
        make, labels = self._metrics, ("connector", "topic")
        messages = make.counter("messages_received", "Messages read and durably dealt with.", *labels)
        size = make.counter("received_bytes", "Their bodies.", *labels)
        stored = make.counter("events_stored", "Received events that entered the log.", *labels)
        duplicates = make.counter("events_duplicate", "Received events that were here already.", *labels)
        held = make.counter("events_held", "Received events that had to wait for a cause.", *labels)
        dropped = make.counter("events_dropped", "Let go because too many wait; they come again.", *labels)
        quarantined = make.counter("events_quarantined", "Arrivals that could not be taken.", *labels)
        skew = make.gauge("clock_skew_seconds", "How far the last batch's clocks were ahead of ours.", *labels)
        seconds = make.histogram("receive_duration_seconds", "One batch, to its durable commit.", SECONDS, *labels)

        def tell(each: Received) -> None:
            where = (each.node, each.connector, each.topic)
            messages(each.messages, *where)
            size(each.bytes, *where)
            stored(each.stored, *where)
            duplicates(each.duplicates, *where)
            held(each.held, *where)
            dropped(each.dropped, *where)
            quarantined(each.quarantined, *where)
            skew(each.skew_ms / 1000, *where)
            seconds(each.duration_s, *where)

        return tell

    def _synced(self) -> Tell:
        make, names = self._metrics, error_names()
        operations = make.counter("sync_operations", "Syncs, by how they ended.", "result")
        seconds = make.histogram("sync_duration_seconds", "One sync, whole.", SYNC_SECONDS)
        pushed = make.counter("events_pushed", "Own events that a broker acknowledged for the first time.")
        pulled = make.counter("events_pulled", "Events of other nodes that entered the log.")
        conflicts = make.counter("conflicts_resolved", "Aggregates in which concurrent events met.")
        errors = make.counter("sync_errors", "Syncs that an error ended, by its class.", "type")

        def tell(each: Synced) -> None:
            result = "failed" if each.error else "complete" if each.complete else "incomplete"
            operations(1, each.node, result)
            seconds(each.duration_s, each.node)
            pushed(each.pushed, each.node)
            pulled(each.pulled, each.node)
            conflicts(each.conflicts, each.node)
            if each.error:
                errors(1, each.node, names.get(each.error, each.error))

        return tell

    def _projected(self) -> Tell:
        make = self._metrics
        events = make.counter("events_projected", "Events that a projection took in.", "projection")
        seconds = make.histogram("projection_duration_seconds", "One batch, with its commit.", SECONDS, "projection")

        def tell(each: Projected) -> None:
            events(each.events, each.node, each.projection)
            seconds(each.duration_s, each.node, each.projection)

        return tell

    def _handled(self) -> Tell:
        make, labels = self._metrics, ("group", "handler")
        events = make.counter("events_handled", "Events in calls of a handler that succeeded.", *labels)
        failures = make.counter("handler_failures", "Calls that raised, by the exception.", *labels, "error")
        seconds = make.histogram("handler_duration_seconds", "One call.", SECONDS, *labels)

        def tell(each: Handled) -> None:
            who = (each.node, each.group, each.handler)
            seconds(each.duration_s, *who)
            if each.error:
                failures(1, *who, each.error)
            else:
                events(each.events, *who)

        return tell

    def _progressed(self) -> Tell:
        make = self._metrics
        answers = make.counter("events_answered", "Events that handlers returned, and dead letters.", "group")
        dead = make.counter("events_dead", "Events that were given up.", "group")
        parked = make.gauge("aggregates_parked", "Aggregates that wait for another attempt.", "group")
        lag = make.gauge("group_lag_events", "Events of the log that were not dealt with yet.", "group")
        lanes = make.gauge("group_lanes", "Lanes of the group that this worker has.", "group")
        seconds = make.histogram(
            "unit_duration_seconds", "One commit of effects, answers and places.", SECONDS, "group"
        )

        def tell(each: Progressed) -> None:
            who = (each.node, each.group)
            answers(each.answers, *who)
            dead(each.dead, *who)
            parked(each.parked, *who)
            lag(each.lag, *who)
            lanes(each.lanes, *who)
            seconds(each.duration_s, *who)

        return tell

    def _moved(self) -> Tell:
        make = self._metrics
        read = make.counter("pipeline_records_read", "Records that the source gave.", "pipeline")
        delivered = make.counter("pipeline_records_delivered", "Records that the sink took.", "pipeline")
        dead = make.counter("pipeline_records_dead", "Records that went to the dead letter.", "pipeline")
        seconds = make.histogram(
            "pipeline_move_duration_seconds", "One portion, until its position has moved.", SECONDS, "pipeline"
        )

        def tell(each: Moved) -> None:
            who = (each.node, each.pipeline)
            read(each.records, *who)
            delivered(each.delivered, *who)
            dead(each.dead, *who)
            seconds(each.duration_s, *who)

        return tell

    def _lagged(self) -> Tell:
        lag = self._metrics.gauge("pipeline_lag_records", "Records that were not delivered yet.", "pipeline")

        def tell(each: Lagged) -> None:
            lag(each.records, each.node, each.pipeline)

        return tell

    def _stalled(self) -> Tell:
        names = error_names()
        failures = self._metrics.counter(
            "pipeline_failures", "Times that it failed and tried again, by the error's class.", "pipeline", "type"
        )

        def tell(each: Stalled) -> None:
            failures(1, each.node, each.pipeline, names.get(each.error, each.error))

        return tell

    def _link(self) -> Tell:
        make = self._metrics
        up = make.gauge("link_up", "1 while the connection to the broker stands.", "connector")
        changes = make.counter("link_changes", "How often it came and went.", "connector", "to")

        def tell(each: Link) -> None:
            up(float(each.up), each.node, each.connector)
            changes(1, each.node, each.connector, "up" if each.up else "down")

        return tell

    def _alarmed(self) -> Tell:
        alarms = self._metrics.counter("alarms", "What must not be passed over in silence.", "topic", "kind")

        def tell(each: Alarmed) -> None:
            alarms(1, each.node, each.topic, each.kind)

        return tell


class _Metrics:
    """Makes metrics, and gives what counts on them: `tell(value, node, *labels)`."""

    def __init__(self, registry: CollectorRegistry | None, namespace: str, labels: Mapping[str, str]) -> None:
        self._client = _client()
        self._registry = registry if registry is not None else self._client.REGISTRY
        for name in (namespace, *labels):
            # The client itself takes any text, which then has to be quoted in every query.
            if not _label(name) or name in OUR_LABELS:
                raise ConfigError(
                    f"{name!r} cannot be the name of a metric or label",
                    hint=f"letters, digits and underscores, and none of {', '.join(sorted(OUR_LABELS))}",
                )
        self._namespace = namespace
        self._names = (*labels, "node")
        self._values = tuple(labels.values())

    def _make(self, cls: Any, name: str, text: str, labels: tuple[str, ...], **more: Any) -> Any:
        try:
            return cls(name, text, (*self._names, *labels), self._namespace, registry=self._registry, **more)
        except ValueError as error:
            raise ConfigError(
                f"the metric {self._namespace}_{name} cannot be made: {error}",
                hint="give all nodes of a process one observer, or each observer a registry or namespace of its own",
            ) from error

    def counter(self, name: str, text: str, *labels: str) -> Tell:
        metric, values = self._make(self._client.Counter, name, text, labels), self._values

        def add(amount: float, *labels: str) -> None:
            metric.labels(*values, *labels).inc(amount)

        return add

    def gauge(self, name: str, text: str, *labels: str) -> Tell:
        metric, values = self._make(self._client.Gauge, name, text, labels), self._values

        def put(value: float, *labels: str) -> None:
            metric.labels(*values, *labels).set(value)

        return put

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Tell:
        metric, values = self._make(self._client.Histogram, name, text, labels, buckets=buckets), self._values

        def note(value: float, *labels: str) -> None:
            metric.labels(*values, *labels).observe(value)

        return note


def _client() -> Any:
    try:
        import prometheus_client
    except ModuleNotFoundError:
        raise MissingDependency(
            "the Prometheus observer needs prometheus-client", hint="pip install 'synckit-streams[prometheus]'"
        ) from None
    return prometheus_client


def error_names() -> dict[str, str]:
    """Each error's code and the name of its class, which says more on a dashboard."""
    names: dict[str, str] = {}
    classes = [SyncKitError]
    while classes:
        cls = classes.pop()
        if "code" in vars(cls):  # and not one that has its code from the class it is a kind of
            names[cls.code] = cls.__name__
        classes += cls.__subclasses__()
    return names
