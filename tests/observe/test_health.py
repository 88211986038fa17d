"""How parts become a whole: the worst of them counts, and whoever does not answer is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Check, Checks

UP = Check("store", True)
AWAY = Check("nats://broker:4222", False, needed=False, detail="connection refused")
BROKEN = Check("store", False, detail="no room on the disk")


def telling(*checks: Check) -> Checks:
    async def tell() -> Sequence[Check]:
        return checks

    return tell


def running(answer_s: float = 5.0, **sources: Checks) -> Health:
    health = Health(lambda: sources, answer_s=answer_s)
    health.phase = "running"
    return health


@pytest.mark.parametrize(
    ("checks", "status", "serving"),
    [
        ([], "up", True),
        ([UP], "up", True),
        ([UP, AWAY], "degraded", True),
        ([AWAY, BROKEN], "down", False),
    ],
    ids=["a service without parts", "all is well", "a broker is away", "the store is broken"],
)
async def test_the_worst_part_is_the_whole(checks: list[Check], status: str, serving: bool) -> None:
    """A broker may be away: then the whole is degraded, and ready. A store may not."""
    health = running(app=telling(*checks))
    report = await health.ready()
    assert (report.status, report.serving) == (status, serving)
    assert (await health.live()).status == "up"  # a restart would bring neither of them back


async def test_the_body_has_what_go_sync_kit_tells() -> None:
    """Counted by hand: three parts of two sources, one of them away."""
    health = running(app=telling(UP, AWAY), relay=telling(UP))
    body = (await health.report()).body()
    assert set(body) == {"status", "check_type", "results", "summary", "timestamp", "duration"}
    assert body["summary"] == {"total": 3, "up": 2, "down": 0, "degraded": 1, "unknown": 0}
    assert set(body["results"]) == {"app/store", "app/nats://broker:4222", "relay/store"}
    away = body["results"]["app/nats://broker:4222"]
    assert {"status", "component", "message", "details", "timestamp", "duration"} == set(away)
    assert (away["status"], away["component"], away["message"]) == ("degraded", "app", "connection refused")
    assert body["timestamp"].endswith("Z")
    assert isinstance(body["duration"], int)


async def test_one_source_needs_no_prefix_and_equal_names_hide_nothing() -> None:
    report = await running(app=telling(UP, BROKEN)).report()
    assert [each.status for each in report.results.values()] == ["up", "down"]
    assert "store" in report.results


async def test_what_has_not_started_is_unknown_and_what_ends_is_not_ready() -> None:
    """And both live: neither is helped by a kill."""
    health = running(app=telling(UP))
    health.phase = "starting"
    for report in (await health.ready(), await health.startup(), await health.report()):
        assert (report.status, report.serving) == ("unknown", False)
    assert (await health.live()).serving
    health.phase = "stopping"
    assert (await health.ready()).status == "down"
    assert (await health.startup()).serving
    assert (await health.live()).serving


async def test_a_source_that_hangs_is_down_in_time_and_hides_no_other() -> None:
    """Also one that will not be cancelled; and it is asked once, however often a probe comes."""
    asked = 0
    let_go = asyncio.Event()

    async def hang() -> Sequence[Check]:
        nonlocal asked
        asked += 1
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return [UP]

    health = running(answer_s=0.1, slow=hang, app=telling(UP))
    began = time.monotonic()
    for _ in range(3):
        report = await health.report()
        assert report.status == "down"
        assert report.results["slow"].message == "no answer within 0.1 s"
        assert report.results["app/store"].status == "up"
    assert time.monotonic() - began < 5
    assert asked == 1
    let_go.set()
    report = await health.report()
    assert report.results["slow/store"].status == "up"


async def test_a_source_that_tells_nonsense_is_down() -> None:
    async def nonsense() -> Sequence[Check]:
        return None  # type: ignore[return-value]

    report = await running(app=nonsense).report()
    assert report.status == "down"
    assert "TypeError" in report.results["app"].message
