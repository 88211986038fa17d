"""What becomes of connections: cut, refused, slow, half-open, one-way. 0 lost, 0 doubled, 0 diverged on each server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from synckit_streams.testing import FaultProxy
from synckit_streams.testing.server import Server
from tests.faults.fleet import Fleet

pytestmark = pytest.mark.timeout(900)


def fleet_of(tmp_path: Path, topic: str, server: Server, proxy: FaultProxy, seed: int) -> Fleet:
    """Three nodes. One of them does not come through the proxy, but for Kafka, which sends everybody there."""
    return Fleet(tmp_path, topic, [proxy.url, server.url, proxy.url], seed)


async def carried(fleet: Fleet, proxy: FaultProxy, amount: int) -> None:
    """Wait until so many bytes more went either way."""
    end = proxy.bytes_up + proxy.bytes_down + amount
    await fleet.until(lambda: proxy.bytes_up + proxy.bytes_down >= end, what=f"{amount} bytes carried")


async def noticed(fleet: Fleet, proxy: FaultProxy, accepted: int) -> None:
    """Wait until somebody comes anew, by himself."""
    await fleet.until(lambda: proxy.accepted > accepted, what="somebody gives his connection up")


async def test_connections_that_are_cut_again_and_again(
    tmp_path: Path, topic: str, server: Server, proxy: FaultProxy, seed: int, strikes: int
) -> None:
    """In the middle of whatever is under way; every other time nobody is let in for a while."""
    async with fleet_of(tmp_path, topic, server, proxy, seed) as fleet:
        for strike in range(strikes * 2):
            await carried(fleet, proxy, fleet.dice.randrange(1_000, 60_000))
            if strike % 2:
                proxy.refuse()
            assert proxy.cut() or proxy.accepted
            if strike % 2:
                await fleet.write_on()
                proxy.heal()
                await fleet.flow()
        await fleet.settle()


async def test_a_slow_line(
    tmp_path: Path, topic: str, server: Server, proxy: FaultProxy, seed: int, strikes: int
) -> None:
    """Delays that change, and little bandwidth."""
    async with fleet_of(tmp_path, topic, server, proxy, seed) as fleet:
        for _ in range(strikes):
            proxy.slow(
                delay_ms=fleet.dice.randrange(5, 150),
                jitter_ms=fleet.dice.randrange(100),
                bytes_per_s=fleet.dice.choice([0, 50_000, 500_000]),
            )
            await carried(fleet, proxy, 30_000)
        proxy.heal()
        await fleet.settle()


@pytest.mark.parametrize("direction", ["both", "up", "down"], ids=["half-open", "one-way-down", "one-way-up"])
async def test_connections_that_carry_nothing_in_a_direction(
    tmp_path: Path,
    topic: str,
    server: Server,
    proxy: FaultProxy,
    seed: int,
    strikes: int,
    direction: Literal["both", "up", "down"],
) -> None:
    """For a moment, or until somebody notices by himself and comes anew: a silent server is told from a quiet one."""
    async with fleet_of(tmp_path, topic, server, proxy, seed) as fleet:
        for strike in range(strikes // 2):
            await fleet.flow()
            accepted = proxy.accepted
            proxy.freeze(direction)
            if strike % 2:
                await noticed(fleet, proxy, accepted)
            else:
                await fleet.write_on()
            proxy.heal()
        await fleet.settle()
