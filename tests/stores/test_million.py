"""A log of a million events: it is written, read and opened by a process whose memory does not grow with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stores.kinds import KINDS, place_of
from tests.stores.processes import child, end, line

EVENTS = 1_000_000
GROWTH_MIB_MAX = 64


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_million_events(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """100,000 aggregates; the mirror keeps some of them, and a summary is a mark an origin."""
    url, _ = place_of(kind, request, tmp_path)
    for job in ("write_many", "read_many"):
        process = child(f"asyncio.run({job}(sys.argv[1], int(sys.argv[2])))", url, EVENTS)
        try:
            said = json.loads(line(process))
        finally:
            end(process)
        assert said["events"] == EVENTS
        assert said["ranges"] == [[1, EVENTS]]
        assert said["grown_mib"] < GROWTH_MIB_MAX, said
