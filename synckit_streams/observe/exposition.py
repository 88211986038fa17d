"""Metrics of several processes on one page: each gives what it has as plain values, and one of them shows all.

Every series gets a label that says whose it is, and nothing is added up. A process that is started anew begins at
zero; within a series of its own Prometheus sees that and goes on, while in a sum over processes it would look as if
everything had been counted once more. `sum without (worker) (rate(…))` gives the sum, and gives it right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from synckit_streams.errors import MissingDependency

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric


class Sample(NamedTuple):
    """One value of one series.

    Args:
        name: The family's, and what its kind appends, as in `…_bucket`.
        labels: The series'.
        value: It.
    """

    name: str
    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """One metric, with all its series.

    Args:
        name: Its name, without what its kind appends.
        text: What it says.
        kind: "counter", "gauge", "histogram", …
        unit: As OpenMetrics has it; commonly "".
        samples: What is counted.
    """

    name: str
    text: str
    kind: str
    unit: str
    samples: list[Sample]


def families(registry: CollectorRegistry | None = None) -> list[Family]:
    """What a registry holds just now.

    Args:
        registry: None takes the client's own; without the client that is nothing.
    """
    if registry is None:
        try:
            import prometheus_client
        except ModuleNotFoundError:
            return []
        registry = prometheus_client.REGISTRY
    return [
        Family(
            each.name,
            each.documentation,
            each.type,
            each.unit,
            [Sample(sample.name, dict(sample.labels), float(sample.value)) for sample in each.samples],
        )
        for each in registry.collect()
    ]


class Exposition:
    """Metrics, ready to be shown.

    Args:
        registry: What is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def asgi(self) -> Any:
        """An ASGI application that shows them in the format that is asked for, packed if that is wanted."""
        return _client().make_asgi_app(self.registry)


def together(parts: Mapping[str, Iterable[Family]], *, label: str) -> Exposition:
    """All parts on one page.

    Args:
        parts: By the value of the label.
        label: The name of the label that says whose a series is.

    Raises:
        MissingDependency: prometheus-client is not installed.
    """
    client = _client()
    registry: CollectorRegistry = client.CollectorRegistry(auto_describe=False)
    registry.register(_Parts(parts, label, client.Metric))
    return Exposition(registry)


class _Parts:
    """A collector over what other processes told."""

    def __init__(self, parts: Mapping[str, Iterable[Family]], label: str, metric: Any) -> None:
        self._parts = parts
        self._label = label
        self._metric = metric

    def describe(self) -> Sequence[Metric]:
        """Nothing: the registry is made for one look, and then thrown away."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Each family once, with the series of all parts: a page that had it twice would be refused."""
        found: dict[str, Any] = {}
        for part, told in self._parts.items():
            for each in told:
                metric = found.get(each.name)
                if metric is None:
                    metric = found[each.name] = self._metric(each.name, each.text, each.kind, each.unit)
                elif metric.type != each.kind:
                    continue  # while one worker runs an older program than the other
                for sample in each.samples:
                    metric.add_sample(sample.name, {**sample.labels, self._label: part}, sample.value)
        yield from found.values()


def _client() -> Any:
    try:
        import prometheus_client
    except ModuleNotFoundError:
        raise MissingDependency(
            "metrics need prometheus-client", hint="pip install 'synckit-streams[prometheus]'"
        ) from None
    return prometheus_client
