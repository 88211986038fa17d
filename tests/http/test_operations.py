"""The operations of a process as a probe, Prometheus and a person ask for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from synckit_streams import MissingDependency, Unavailable
from synckit_streams.observe.exposition import Exposition
from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Check
from tests.http.conftest import Served


def health_of(*checks: Check) -> Health:
    async def tell() -> Sequence[Check]:
        return checks

    health = Health(lambda: {"app": tell})
    health.phase = "running"
    return health


@pytest.mark.parametrize(
    ("checks", "status", "code"),
    [
        ([Check("store", True)], "up", 200),
        ([Check("store", True), Check("nats", False, needed=False)], "degraded", 200),
        ([Check("store", False)], "down", 503),
    ],
    ids=["up", "a broker is away", "down"],
)
async def test_a_probe_hears_the_status_and_a_person_reads_why(
    served: Served, checks: list[Check], status: str, code: int
) -> None:
    async with served(health=health_of(*checks)) as ask:
        for path in ("/health", "/health/ready", "/health/components"):
            found = await ask("GET", path)
            assert (found.status, found.json["status"]) == (code, status), path
            assert found.json["summary"]["total"] == len(checks)
            assert found.headers["cache-control"] == "no-store"
        for path in ("/health/live", "/health/startup"):
            assert (await ask("GET", path)).status == 200, path
        assert (await ask("GET", "/health/components")).json["components"] == ["app"]
        assert (await ask("GET", "/ping")).body == b"pong"
        assert (await ask("HEAD", "/health/live")).status == 200


async def test_what_is_not_there_and_what_may_not_be_done_is_said_in_json(served: Served) -> None:
    async with served() as ask:
        missing = await ask("GET", "/metrics")  # none were given
        assert (missing.status, missing.error["code"]) == (404, "NOT_FOUND")
        wrong = await ask("POST", "/health")
        assert (wrong.status, wrong.error["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert "GET" in wrong.headers["allow"]


async def test_metrics_come_in_the_format_that_is_asked_for(served: Served) -> None:
    registry = CollectorRegistry()
    Counter("orders", "How many.", registry=registry).inc(7)

    async def metrics() -> Exposition:
        return Exposition(registry)

    async with served(metrics=metrics) as ask:
        plain = await ask("GET", "/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        (family,) = [each for each in text_string_to_metric_families(plain.body.decode()) if each.name == "orders"]
        assert [sample.value for sample in family.samples] == [7.0]
        modern = await ask("GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert modern.body.endswith(b"# EOF\n")
        assert [each.name for each in openmetrics(modern.body.decode())] == ["orders"]  # type: ignore[no-untyped-call]
        assert modern.headers["content-encoding"] == "gzip"  # which the client of this test offers


async def test_metrics_that_cannot_be_had_are_an_answer(served: Served) -> None:
    async def metrics() -> Exposition:
        raise MissingDependency("metrics need prometheus-client", hint="pip install 'synckit-streams[prometheus]'")

    async with served(metrics=metrics) as ask:
        found = await ask("GET", "/metrics")
        assert (found.status, found.error["code"]) == (501, "SK103")
        assert "pip install" in found.error["hint"]


async def test_a_fault_of_ours_is_an_answer_too_and_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text stays here: whoever asks need not read what stands in a traceback."""

    async def metrics() -> Exposition:
        raise ValueError("secret")

    async def away() -> Exposition:
        raise Unavailable("the worker has ended")

    async with served(metrics=metrics) as ask:
        found = await ask("GET", "/metrics")
        assert (found.status, found.error["code"], found.error["retryable"]) == (500, "INTERNAL", True)
        assert b"secret" not in found.body
    assert "ValueError: secret" in caplog.text
    async with served(metrics=away) as ask:
        found = await ask("GET", "/metrics")
        assert (found.status, found.error["code"], found.headers["retry-after"]) == (503, "SK401", "1")
