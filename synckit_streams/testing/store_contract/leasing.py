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


async def only(store: EventStore, name: str, holder: str, *, ttl_s: float = LONG_S) -> Any:
    """One lease; None if it is not to be had."""
    found = await store.lease([name], holder, ttl_s=ttl_s)
    return found[0] if found else None


async def taken(store: EventStore, name: str, holder: str) -> Lease:
    """Ask until it is to be had."""
    async with asyncio.timeout(CLOSE_S):
        while True:
            found = await store.lease([name], holder, ttl_s=LONG_S)
            if found:
                return found[0]
            await asyncio.sleep(SOON_S / 4)


async def move(store: EventStore, consumer: str, position: int, *leases: Lease) -> None:
    """A transaction under leases."""
    async with store.transaction(leases) as tx:
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
                        await store.lease(["lane-1"], "a", ttl_s=LONG_S)
                    pytest.skip("this store declares that it has no leases")
                yield store

        return open_one

    async def test_a_lease_has_one_holder_at_a_time(self, leasing: Any) -> None:
        """Another one gets it when it is released; the same one gets it anew, and what he had before is void."""
        async with leasing() as store:
            first = await only(store, "lane-1", "a")
            assert (first.name, first.holder) == ("lane-1", "a")
            assert await only(store, "lane-1", "b") is None
            assert (await only(store, "lane-2", "b")).name == "lane-2"
            again = await only(store, "lane-1", "a")
            assert again.token > first.token
            assert list(await store.renew([again], ttl_s=LONG_S)) == [again]
            assert list(await store.renew([first, again], ttl_s=LONG_S)) == [again], "told apart by the token"
            await store.release([first])
            assert await only(store, "lane-1", "b") is None, "an old one releases nothing"
            await store.release([again])
            other = await only(store, "lane-1", "b")
            assert other.token > again.token
            assert list(await store.renew([again], ttl_s=LONG_S)) == []

    async def test_many_leases_are_asked_for_at_once(self, leasing: Any) -> None:
        """What is free is obtained, in the order of the names; what is kept and let go is told apart."""
        lanes = [f"lane-{number:02}" for number in range(64)]
        async with leasing() as store:
            theirs = await store.lease(["lane-03", "lane-40", "lane-03"], "b", ttl_s=LONG_S)
            assert [each.name for each in theirs] == ["lane-03", "lane-40"]
            mine = await store.lease(lanes[::-1], "a", ttl_s=LONG_S)
            assert [(each.name, each.holder) for each in mine] == [
                (name, "a") for name in lanes[::-1] if name not in ("lane-03", "lane-40")
            ]
            forged = Lease("lane-40", "a", theirs[1].token + 1)
            assert list(await store.renew([*mine, forged], ttl_s=LONG_S)) == list(mine)
            await store.release([mine[0], theirs[0], forged])
            again = await store.lease(lanes, "c", ttl_s=LONG_S)
            assert [each.name for each in again] == ["lane-03", "lane-63"]
            assert list(await store.lease([], "a", ttl_s=LONG_S)) == []
            assert list(await store.renew([], ttl_s=LONG_S)) == []
            await store.release([])

    async def test_everybody_can_see_who_has_what(self, leasing: Any) -> None:
        """Sorted by name; what has run out or was released is nobody's, and a prefix is taken letter by letter."""
        async with leasing() as store:
            mine = await store.lease(["mail|2", "mail|10", "mai%", "mail_", "\u00e9|1"], "a", ttl_s=LONG_S)
            theirs = await store.lease(["mail|1"], "b", ttl_s=LONG_S)
            gone = await store.lease(["mail|0"], "a", ttl_s=LONG_S)
            await store.release(gone)
            await store.lease(["mail|3"], "a", ttl_s=SOON_S)
            late = await taken(store, "mail|3", "b")
            assert list(await store.leases("mail|")) == [*theirs, mine[1], mine[0], late]
            assert list(await store.leases("mail_")) == [mine[3]]
            assert list(await store.leases("mai%")) == [mine[2]]
            assert list(await store.leases("")) == sorted([*mine, *theirs, late])
            assert list(await store.leases("nobody")) == []
            await store.lease(["soon"], "a", ttl_s=SOON_S)
            await store.lease(["later"], "a", ttl_s=SOON_S)
            await taken(store, "later", "b")  # so the other one, which is older, has run out too
            assert list(await store.leases("soon")) == []

    async def test_whoever_lost_his_lease_commits_nothing(self, leasing: Any) -> None:
        """It ran out, and somebody else has it: nothing of the block is written, and the store goes on."""
        async with leasing() as store:
            late = await only(store, "lane-1", "a", ttl_s=SOON_S)
            await move(store, "lane-1", 1, late)

            async def too_late() -> None:
                async with store.transaction([late]) as tx:
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
            await move(store, "lane-1", 5)

    async def test_one_lost_lease_of_many_is_enough(self, leasing: Any) -> None:
        """A block that needs several needs them all; the error names the one that is lost."""
        async with leasing() as store:
            mine = await store.lease([f"lane-{number}" for number in range(9)], "a", ttl_s=LONG_S)
            await move(store, "all", 1, *mine)
            await store.release([mine[4]])
            await move(store, "all", 2, *mine[:4], *mine[5:])
            await taken(store, "lane-4", "b")
            with pytest.raises(LeaseLost, match="lane-4"):
                await move(store, "all", 3, *mine)
            assert (await store.offset("all")).position == 2

    async def test_a_lease_that_nobody_took_is_still_good(self, leasing: Any) -> None:
        """It ran out, and no harm was done."""
        async with leasing() as store:
            mine = await only(store, "lane-1", "a", ttl_s=SOON_S)
            await store.lease(["watch"], "a", ttl_s=SOON_S)
            await taken(store, "watch", "b")  # so mine, which is older, has run out too
            await move(store, "lane-1", 1, mine)
            assert list(await store.renew([mine], ttl_s=LONG_S)) == [mine]
            assert await only(store, "lane-1", "b") is None

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), LEASE_S_MAX + 1])
    async def test_a_lease_is_for_a_time_that_makes_sense(self, leasing: Any, ttl_s: float) -> None:
        """Above nothing, and at most a day."""
        async with leasing() as store:
            with pytest.raises(Invalid):
                await store.lease(["lane-1"], "a", ttl_s=ttl_s)
            mine = await store.lease(["lane-1"], "a", ttl_s=LEASE_S_MAX)
            with pytest.raises(Invalid):
                await store.renew(mine, ttl_s=ttl_s)

    async def test_one_name_is_not_taken_for_one_of_each_letter(self, leasing: Any) -> None:
        """Nor one lease for three."""
        async with leasing() as store:
            with pytest.raises(Invalid):
                await store.lease("lane-1", "a", ttl_s=LONG_S)
            mine = await only(store, "lane-1", "a")
            with pytest.raises(Invalid):
                await store.transaction(mine).__aenter__()

    async def test_one_of_many_who_ask_gets_it(self, leasing: Any) -> None:
        """However they ask, and in whatever order they name what they want."""
        lanes = [f"lane-{number}" for number in range(8)]
        async with leasing() as store:
            found = await asyncio.gather(
                *(store.lease(lanes[n % 8 :] + lanes[: n % 8], f"worker-{n}", ttl_s=LONG_S) for n in range(20))
            )
            assert sorted(each.name for of_one in found for each in of_one) == lanes
