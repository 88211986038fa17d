"""What an append of received events does."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from synckit_streams.model.clock import VersionVector
from synckit_streams.model.codec import event_hash, node_of
from synckit_streams.model.event import Event, Offset
from synckit_streams.model.exchange import Arrival, Place
from synckit_streams.ports.store import QUARANTINED_MAX
from synckit_streams.testing.store_contract.kit import (
    NOW_MS,
    Bench,
    Reader,
    StoreModelOf,
    Writer,
    arrivals,
    audit,
    draft,
    read,
    variant,
)


class Receiving(Bench):
    """What is received, what is held, and one key for two events."""

    # --- received ----------------------------------------------------------------------------------------------------

    async def test_what_is_here_already_is_a_duplicate(self, opened: Any) -> None:
        """In one batch, in a later one, after a restart; also the echo of one's own."""
        async with opened() as store:
            events = [(peer := Writer("b@1")).write(), peer.write()]
            mine = (await store.append([draft("o-9")], now_ms=NOW_MS)).appended[0].event
            one = await store.append(received=arrivals(events[0], *events, mine), now_ms=NOW_MS)
            assert (len(one.stored), one.duplicates) == (2, 2)
            assert one.reused == ()
            two = await store.append(received=arrivals(*events), now_ms=NOW_MS)
            assert (len(two.stored), two.duplicates) == (0, 2)
        async with opened() as store:
            three = await store.append(received=arrivals(*events, mine), now_ms=NOW_MS)
            assert (len(three.stored), three.duplicates) == (0, 3)
            assert len(await read(store)) == 3

    async def test_unreadable_arrivals_are_set_aside(self, opened: Any) -> None:
        """Their neighbours are stored, the reader moves on, the bytes are kept, and the key is not refused."""
        async with opened() as store:
            peer = Writer("b@1")
            first, second = peer.write("o-1"), peer.write("o-2")
            bad = Arrival(None, b"", Place("link", 7), b"\xff\0raw", "cut off")
            torn = Arrival(second, event_hash(second), Place("link", 8), b"raw2", "does not match its hash")
            result = await store.append(
                received=[bad, *arrivals(first), torn], offsets={"link": Offset("log", 8)}, now_ms=NOW_MS
            )
            assert result.quarantined == ("cut off", "does not match its hash")
            assert [each.event for each in result.stored] == [first]
            assert await store.offset("link") == Offset("log", 8)
            one = await store.quarantine(after=0, limit=1)
            two = await store.quarantine(after=one[-1].position, limit=10)
            assert [(each.reason, each.reader, each.place, each.raw) for each in (*one, *two)] == [
                ("cut off", "link", 7, b"\xff\0raw"), ("does not match its hash", "link", 8, b"raw2"),
            ]  # fmt: skip
            summary = await store.summary("orders")
            assert (len(summary.seen), summary.refused) == (1, {})
            healed = await store.append(received=arrivals(second), now_ms=NOW_MS)
            assert [each.event for each in healed.stored] == [second]

    async def test_what_cannot_be_read_does_not_fill_the_disk(self, opened: Any) -> None:
        """The last ones are kept, and all that were refused for good."""
        refused = msgspec.structs.replace(Writer("b@1").write("o-1"), aggregate_id="")
        async with opened() as store:
            await store.append(received=arrivals(refused), now_ms=NOW_MS)
            for first in range(0, QUARANTINED_MAX + 200, 400):
                foreign = [
                    Arrival(None, b"", Place("link", at), b"%d" % at, "not ours") for at in range(first, first + 400)
                ]
                await store.append(received=foreign, now_ms=NOW_MS)
        async with opened() as store:
            kept = await store.quarantine(after=0, limit=10 * QUARANTINED_MAX)
            assert len(kept) == QUARANTINED_MAX + 1
            last = [each.place for each in kept[1:]]
            assert last == list(range(last[-1] - QUARANTINED_MAX + 1, last[-1] + 1))
            assert [each.position for each in kept] == sorted({each.position for each in kept})
            assert set((await store.summary("orders")).refused) == {refused.key}
            assert await store.quarantine(after=kept[3].position, limit=2) == kept[4:6]

    @pytest.mark.parametrize(
        "fields",
        [
            {"aggregate_id": ""},
            {"aggregate_id": "x" * 10_001},
            {"aggregate_id": "a\0b"},
            {"type": ""},
            {"payload": b"x" * 1_000_001},
            {"metadata_json": b"{" + b" " * 20_000 + b"}"},
            {"metadata_json": b"[1"},
            {"context_bytes": b"\xff"},
            {"context_bytes": VersionVector({"b@1": 1}).to_bytes()},
            {"context_bytes": VersionVector({"b@1": 1, "c@1": 1}).to_bytes()},
            {"after_bytes": b"\xff"},
            {"schema_version": 2**31},
            {"prev": 1},
            {"traceparent": "x" * 1000},
        ],
        ids=range(14),
    )
    async def test_what_must_not_be_stored_is_refused_for_good(self, opened: Any, fields: dict[str, Any]) -> None:
        """Intact, but beyond a limit: never an error, its neighbours are stored, and its key is told to the peers."""
        bad = msgspec.structs.replace(Writer("b@1").write("o-1"), **fields)
        good = Writer("c@1").write("o-2")
        async with opened() as store:
            result = await store.append(received=arrivals(bad, good, bad), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [good]
            assert len(result.quarantined) == 2
            assert set(result.summaries["orders"].refused) == {bad.key}
            assert len(await store.quarantine(after=0, limit=10)) == 1
        async with opened() as store:
            await store.append(received=arrivals(bad), now_ms=NOW_MS)
            assert set((await store.summary("orders")).refused) == {bad.key}
            assert len(await store.quarantine(after=0, limit=10)) == 1
            # The key comes with a content that may be stored: it is no longer refused.
            await store.append(received=arrivals(Writer("b@1").write("o-1")), now_ms=NOW_MS)
            assert (await store.summary("orders")).refused == {}
        async with opened() as store:
            assert (await store.summary("orders")).refused == {}

    # --- held --------------------------------------------------------------------------------------------------------

    async def test_an_event_waits_for_its_prev_and_for_every_event_in_its_context(self, opened: Any) -> None:
        """It is not in the log, not in `Seen` and not in the sums, until the last cause is; then all come in order."""
        a, b = Writer("b@1"), Writer("c@1")
        first = a.write()
        second = b.write(knows=[first])
        third = a.write(knows=[second])
        async with opened() as store:
            early = await store.append(received=arrivals(third, second), now_ms=NOW_MS)
            assert (early.stored, set(early.held)) == ((), {second.key, third.key})
            summary = early.summaries["orders"]
            assert (set(summary.held), set(summary.wanted)) == ({second.key, third.key}, {first.key})
            assert not summary.seen
            result = await store.append(received=arrivals(first), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [first, second, third]
            assert result.released == 2
            assert result.summaries["orders"].held == result.summaries["orders"].wanted == ()

    async def test_prev_alone_is_waited_for(self, opened: Any) -> None:
        """A writer whose caller gave an empty context still has a `prev`."""
        peer = Writer("b@1")
        first = peer.write(context_bytes=b"")
        second = peer.write(context_bytes=b"")
        async with opened() as store:
            assert (await store.append(received=arrivals(second), now_ms=NOW_MS)).held == (second.key,)
            assert (await store.append(received=arrivals(first), now_ms=NOW_MS)).released == 1

    async def test_other_aggregates_do_not_wait(self, opened: Any) -> None:
        """A gap in an origin's numbers holds back only what it caused."""
        peer = Writer("b@1")
        first, second, third = peer.write("o-1"), peer.write("o-2"), peer.write("o-1")
        async with opened() as store:
            result = await store.append(received=arrivals(second, third), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [second]
            assert result.held == (third.key,)
            assert (await store.append(received=arrivals(first), now_ms=NOW_MS)).released == 1

    async def test_after_is_waited_for_in_replicated_topics_only(self, opened: Any) -> None:
        """What this node will never receive delays nothing; and it never enters the context."""
        cause = Writer("c@1", topic="stock").write("s-1")
        event = Writer("b@1").write(after=[cause.key])
        async with opened("a", topics=("orders", "stock")) as store:
            assert (await store.append(received=arrivals(event), now_ms=NOW_MS)).held == (event.key,)
            result = await store.append(received=arrivals(cause), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [cause, event]
            mine = await store.append([draft("o-1")], now_ms=NOW_MS)
            assert "c@1" not in mine.appended[0].event.context
        async with opened("b", topics=("orders",)) as store:
            assert [each.event for each in (await store.append(received=arrivals(event), now_ms=NOW_MS)).stored] == [
                event
            ]

    async def test_held_events_survive_and_a_topic_given_up_releases_them(self, opened: Any) -> None:
        """They are on the disk with the offset that acknowledged them; nothing waits for what nobody asks for."""
        cause = Writer("c@1", topic="stock").write("s-1")
        first = (peer := Writer("b@1")).write("o-1")
        waits_for_first, waits_for_cause = peer.write("o-1"), peer.write("o-2", after=[cause.key])
        async with opened() as store:
            await store.append(
                received=arrivals(waits_for_first, waits_for_cause), offsets={"link": Offset("log", 2)}, now_ms=NOW_MS
            )
        async with opened() as store:
            assert set((await store.summary("orders")).held) == {waits_for_first.key, waits_for_cause.key}
            again = await store.append(received=arrivals(waits_for_first), now_ms=NOW_MS)
            assert again.duplicates == 1
            result = await store.append(received=arrivals(first), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [first, waits_for_first]
        async with opened(topics=("orders",)) as store:
            assert [each.event for each in await read(store)] == [first, waits_for_first, waits_for_cause]
            assert (await store.summary("orders")).held == ()

    async def test_too_many_held_events_drop_the_newest(self, opened: Any) -> None:
        """`Seen` lacks the dropped one, so it comes back, and then all of them are here."""
        peer = Writer("b@1")
        events = [peer.write() for _ in range(5)]
        async with opened(held_max=3) as store:
            early = await store.append(received=arrivals(*events[1:]), now_ms=NOW_MS)
            assert (early.held, early.dropped) == (tuple(each.key for each in events[1:4]), (events[4].key,))
            result = await store.append(received=arrivals(events[0]), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == events[:4]
            assert (await store.append(received=arrivals(events[4]), now_ms=NOW_MS)).stored[0].event == events[4]

    async def test_a_void_releases_and_a_late_original_is_still_taken(self, opened: Any) -> None:
        """A key that nobody holds does not hold its successors for ever; it does not enter `Seen` either."""
        peer = Writer("b@1")
        lost, second, third = peer.write(), peer.write(), peer.write()
        async with opened() as store:
            await store.append(received=arrivals(third, second), now_ms=NOW_MS)
            result = await store.append(voids=[lost.key], now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [second, third]
            assert result.summaries["orders"].voids == {lost.key}
            mine = await store.append([draft(context=VersionVector({"b@1": 3}))], now_ms=NOW_MS)
            assert mine.fresh == 1
        async with opened() as store:
            summary = await store.summary("orders")
            assert (lost.dot in summary.seen, summary.voids) == (False, {lost.key})
            # A caller may have the void one in the context that it read.
            await store.append([draft(context=VersionVector({"b@1": 1}))], now_ms=NOW_MS)
            assert (await store.append(received=arrivals(lost), now_ms=NOW_MS)).stored[0].event == lost

    async def test_a_local_event_releases_what_waits_for_it(self, opened: Any) -> None:
        """Every append releases what it satisfies, in the same transaction: also one that only moves an offset."""
        async with opened() as store:
            mine = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            guess = msgspec.structs.replace(mine, seq=2, prev=1)
            reply = Writer("b@1").write("o-2", after=[guess.key])
            held = await store.append(received=arrivals(reply), now_ms=NOW_MS)
            assert held.held == (reply.key,)
            # It names an event of ours that we never wrote, so there is a copy of this store: we number anew.
            fresh = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            assert fresh.origin != mine.origin
            assert (await store.append(received=arrivals(guess), now_ms=NOW_MS)).released == 1

    # --- one key, two events -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
    @pytest.mark.parametrize("batches", ["one by one", "one batch", "one group"])
    async def test_replicas_agree_on_a_reused_key_in_whatever_order_it_came(
        self, opened: Any, order: Sequence[int], batches: str
    ) -> None:
        """The least hash keeps the key, each other one is issued again, and a reader counts each fact just once."""
        first = Writer("x@1").write()
        variants = [variant(first, number) for number in range(3)]
        rest = sorted(variants, key=event_hash)[1:]
        expected = {
            min(variants, key=event_hash),
            *(
                msgspec.structs.replace(each, origin=f"x@1~{event_hash(each).hex()[:8]}", seq=1, prev=0)
                for each in rest
            ),
        }
        async with opened() as store:
            reader = Reader(store)
            events = [variants[at] for at in order]
            if batches == "one batch":
                result = await store.append(received=arrivals(*events), now_ms=NOW_MS)
                assert {each.event for each in result.stored} == expected
                assert {each.reissued.key for each in result.reused} == {
                    key for each in expected if "~" in (key := each.key).origin
                }
            elif batches == "one group":
                await asyncio.gather(*(store.append(received=arrivals(each), now_ms=NOW_MS) for each in events))
            else:
                for event in events:
                    result = await store.append(received=arrivals(event), now_ms=NOW_MS)
                    assert len(result.reused) == (event is not events[0])
                    await reader.read()
            again = await store.append(received=arrivals(*variants, *expected), now_ms=NOW_MS)
            assert (again.stored, again.reused, again.duplicates) == ((), (), 6)
            assert {each.event for each in await audit(store)} == expected
            await reader.read()
            assert reader.counted == {each.id: 1 for each in variants}

    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
    async def test_an_event_that_was_issued_again_elsewhere_is_the_same_one(
        self, opened: Any, order: Sequence[int]
    ) -> None:
        """Variants and the others' re-issues, in every order: one set of events, each fact counted just once."""
        one, two = sorted((variant(Writer("x@1").write(), number) for number in range(2)), key=event_hash)
        again = msgspec.structs.replace(two, origin=f"x@1~{event_hash(two).hex()[:8]}", seq=1, prev=0)
        reply = Writer("y@1").write("o-2", after=[again.key])
        events = [(one, two, again, reply)[at] for at in order]
        async with opened() as store:
            reader = Reader(store)
            for event in events:
                await store.append(received=arrivals(event), now_ms=NOW_MS)
                await reader.read()
            assert {each.event for each in await audit(store)} == {one, again, reply}
            assert reader.counted == {one.id: 1, two.id: 1, reply.id: 1}

    async def test_two_events_that_would_be_issued_again_under_one_key_are_both_kept(self, opened: Any) -> None:
        """Eight digits of a hash can be equal; then the rule is applied once more."""
        first = Writer("x@1").write()
        found: dict[str, Event] = {}
        pair: list[Event] = []
        for number in itertools.count():
            event = variant(first, number)
            digits = event_hash(event).hex()[:8]
            if digits in found:
                pair = [found[digits], event]
                break
            found[digits] = event
        least = min(found.values(), key=event_hash)
        sets = []
        for medium, events in enumerate(itertools.permutations([least, *pair])):
            async with opened(str(medium)) as store:
                for each in events:
                    await store.append(received=arrivals(each), now_ms=NOW_MS)
                sets.append({each.event for each in await audit(store)})
                assert {each.id for each in sets[-1]} == {each.id for each in events}
        assert all(each == sets[0] for each in sets)

    async def test_a_variant_waits_for_its_causes_and_two_variants_are_held(self, opened: Any) -> None:
        """A key that was used twice is no reason to deliver an event before its cause, or to lose one that waits."""
        cause = Writer("c@1").write()
        base = Writer("x@1").write(knows=[cause])
        early, late = variant(base, 1), variant(base, 2)
        free = msgspec.structs.replace(base, id="free", context_bytes=b"")
        async with opened() as store:
            assert len((await store.append(received=arrivals(early, late), now_ms=NOW_MS)).held) == 2
            assert [each.event for each in (await store.append(received=arrivals(free), now_ms=NOW_MS)).stored] == [
                free
            ]
            assert (await store.append(received=arrivals(early, late), now_ms=NOW_MS)).duplicates == 2
        async with opened() as store:
            result = await store.append(received=arrivals(cause), now_ms=NOW_MS)
            assert (result.released, len(result.reused)) == (2, 2)
            assert {each.event.id for each in await read(store)} == {cause.id, early.id, late.id, "free"}

    @pytest.mark.parametrize("wins", [True, False])
    async def test_the_echo_of_ones_own_with_other_content_ends_the_incarnation(self, opened: Any, wins: bool) -> None:
        """Somebody writes under our origin: both events are kept, and from now on we write under a new one."""
        async with opened() as store:
            mine = (await store.append([draft(data=1), draft(data=2)], now_ms=NOW_MS)).appended[0].event
            theirs = next(
                each
                for number in itertools.count()
                if (event_hash(each := variant(mine, number)) < event_hash(mine)) == wins
            )
            result = await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            assert len(result.reused) == 1
            fresh = (await store.append([draft(data=3)], now_ms=NOW_MS)).appended[0].event
            assert fresh.origin not in (mine.origin, "")
            assert fresh.seq == 1
            assert node_of(fresh.origin) == "a"
            assert fresh.context == StoreModelOf(await read(store)).context_before(fresh)
            assert len(await read(store)) == 4

    async def test_an_unknown_event_under_our_origin_ends_the_incarnation(self, opened: Any) -> None:
        """A copy of this store has written on: our next number would be its key."""
        async with opened() as store:
            mine = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            theirs = msgspec.structs.replace(mine, id="theirs", seq=2, prev=1)
            await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            fresh = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            assert (fresh.origin != mine.origin, fresh.seq) == (True, 1)

    async def test_drafts_of_the_same_group_as_a_reuse_are_numbered_right(self, opened: Any) -> None:
        """Before it, after it, on the same aggregate: `prev` and context are those of the log."""
        async with opened() as store:
            theirs = Writer("x@1").write()
            await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            await asyncio.gather(
                *(store.append([draft(), draft("o-2")], now_ms=NOW_MS) for _ in range(3)),
                store.append(received=arrivals(variant(theirs, 1), variant(theirs, 2)), now_ms=NOW_MS),
                *(store.append([draft(), draft("o-2")], now_ms=NOW_MS) for _ in range(3)),
            )
            log = [each.event for each in await audit(store)]
            for aggregate_id in ("o-1", "o-2"):
                mine = [each for each in log if each.origin == store.origin and each.aggregate_id == aggregate_id]
                assert [each.prev for each in mine] == [0, *(each.seq for each in mine[:-1])]
                assert all(each.context.get(store.origin, 0) == each.prev for each in mine)
