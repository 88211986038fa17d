"""The contract, part five: what one holder has to himself for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from synckit_streams.errors import FeatureUnsupported, Invalid, LeaseLost
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import LEASE_S_MAX, EventStore, Lease
from synckit_streams.testing.store_contract.kit import CLOSE_S, NOW_MS, Bench, draft

SOON_S = 0.02
LONG_S = 600.0


async def taken(store: EventStore, name: str, holder: str) -> Lease:
    """Ask until it is to be had."""
    async with asyncio.timeout(CLOSE_S):
        while True:
            lease = await store.lease(name, holder, ttl_s=LONG_S)
            if lease is not None:
                return lease
            await asyncio.sleep(SOON_S / 4)


async def move(store: EventStore, consumer: str, position: int, lease: Lease | None) -> None:
    """A transaction under a lease."""
    async with store.transaction(lease) as tx:
        await tx.set_offset(consumer, Offset(store.id, position))


class Leasing(Bench):
    """Who has it, for how long, and whose commit is refused."""

    @pytest.fixture
    def leasing(self, opened: Any) -> Any:
        """As `opened`, for stores that have leases; of the others that they say so."""

        @asynccontextmanager
        async def open_one() -> AsyncIterator[EventStore]:
            async with opened() as store:
                if not store.features.leases:
                    with pytest.raises(FeatureUnsupported):
                        await store.lease("lane-1", "a", ttl_s=LONG_S)
                    pytest.skip("this store declares that it has no leases")
                yield store

        return open_one

    async def test_a_lease_has_one_holder_at_a_time(self, leasing: Any) -> None:
        """Another one gets it when it is released; the same one gets it anew, and what he had before is void."""
        async with leasing() as store:
            first = await store.lease("lane-1", "a", ttl_s=LONG_S)
            assert (first.name, first.holder) == ("lane-1", "a")
            assert await store.lease("lane-1", "b", ttl_s=LONG_S) is None
            assert (await store.lease("lane-2", "b", ttl_s=LONG_S)).name == "lane-2"
            again = await store.lease("lane-1", "a", ttl_s=LONG_S)
            assert again.token > first.token
            assert await store.renew(again, ttl_s=LONG_S)
            assert not await store.renew(first, ttl_s=LONG_S)
            await store.release(first)
            assert await store.lease("lane-1", "b", ttl_s=LONG_S) is None, "an old one releases nothing"
            await store.release(again)
            other = await store.lease("lane-1", "b", ttl_s=LONG_S)
            assert other.token > again.token
            assert not await store.renew(again, ttl_s=LONG_S)

    async def test_whoever_lost_his_lease_commits_nothing(self, leasing: Any) -> None:
        """It ran out, and somebody else has it: nothing of the block is written, and the store goes on."""
        async with leasing() as store:
            late = await store.lease("lane-1", "a", ttl_s=SOON_S)
            await move(store, "lane-1", 1, late)

            async def too_late() -> None:
                async with store.transaction(late) as tx:
                    await tx.set_offset("lane-1", Offset(store.id, 2))
                    present.append(await taken(store, "lane-1", "b"))

            present: list[Lease] = []
            with pytest.raises(LeaseLost) as raised:
                await too_late()
            assert not raised.value.retryable
            assert (await store.offset("lane-1")).position == 1
            await move(store, "lane-1", 3, present[0])
            with pytest.raises(LeaseLost):
                await move(store, "lane-1", 4, late)
            with pytest.raises(LeaseLost):
                await move(store, "lane-1", 4, Lease("never-taken", "a", 1))
            assert (await store.offset("lane-1")).position == 3
            await store.append([draft()], now_ms=NOW_MS)
            await move(store, "lane-1", 5, None)

    async def test_a_lease_that_nobody_took_is_still_good(self, leasing: Any) -> None:
        """It ran out, and no harm was done."""
        async with leasing() as store:
            mine = await store.lease("lane-1", "a", ttl_s=SOON_S)
            await store.lease("watch", "a", ttl_s=SOON_S)
            await taken(store, "watch", "b")  # so mine, which is older, has run out too
            await move(store, "lane-1", 1, mine)
            assert await store.renew(mine, ttl_s=LONG_S)
            assert await store.lease("lane-1", "b", ttl_s=LONG_S) is None

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), LEASE_S_MAX + 1])
    async def test_a_lease_is_for_a_time_that_makes_sense(self, leasing: Any, ttl_s: float) -> None:
        """Above nothing, and at most a day."""
        async with leasing() as store:
            with pytest.raises(Invalid):
                await store.lease("lane-1", "a", ttl_s=ttl_s)
            mine = await store.lease("lane-1", "a", ttl_s=LEASE_S_MAX)
            with pytest.raises(Invalid):
                await store.renew(mine, ttl_s=ttl_s)

    async def test_one_of_many_who_ask_gets_it(self, leasing: Any) -> None:
        """However they ask."""
        async with leasing() as store:
            found = await asyncio.gather(*(store.lease("lane-1", f"worker-{n}", ttl_s=LONG_S) for n in range(20)))
            assert sum(lease is not None for lease in found) == 1
