"""What an append of drafts does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from synckit_streams.errors import CauseUnknown, IdReused, Invalid, SyncKitError, TooLarge
from synckit_streams.model.clock import COUNTER_MAX, HybridTime, Key, VersionVector
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Draft
from synckit_streams.testing.store_contract.kit import HOUR_MS, NOW_MS, Bench, Reader, Writer, arrivals, draft, read


class Writing(Bench):
    """Numbers, contexts and clocks; ids; twins."""

    # --- numbers, contexts and clocks --------------------------------------------------------------------------------

    async def test_numbers_have_no_gaps_per_origin_and_topic(self, opened: Any) -> None:
        """Each topic counts from 1, whatever the calls and the aggregates."""
        async with opened() as store:
            one = await store.append([draft("o-1"), draft("o-2"), draft("s-1", topic="stock")], now_ms=NOW_MS)
            two = await store.append([draft("o-1"), draft("s-1", topic="stock")], now_ms=NOW_MS)
            events = [each.event for each in (*one.appended, *two.appended)]
            assert [(event.topic, event.seq, event.prev) for event in events] == [
                ("orders", 1, 0), ("orders", 2, 0), ("stock", 1, 0), ("orders", 3, 1), ("stock", 2, 1),
            ]  # fmt: skip
            assert {event.origin for event in events} == {store.origin}
            assert node_of(store.origin) == "a"
            assert (one.fresh, two.fresh) == (3, 2)

    async def test_the_context_is_what_the_store_holds_of_the_aggregate(self, opened: Any) -> None:
        """Its own events, and a peer's; nothing of other aggregates."""
        async with opened() as store:
            peer = Writer("b@1")
            other = peer.write("o-2")
            theirs = peer.write("o-1")
            await store.append([draft()], now_ms=NOW_MS)
            await store.append(received=arrivals(other, theirs), now_ms=NOW_MS)
            result = await store.append([draft()], now_ms=NOW_MS)
            assert result.appended[0].event.context == VersionVector({store.origin: 1, "b@1": 2})
            assert result.appended[0].event.prev == 1

    async def test_a_callers_stale_context_is_kept(self, opened: Any) -> None:
        """A read-modify-write that missed a change is concurrent with it, and its `prev` is there all the same."""
        async with opened() as store:
            mine = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            read_then = VersionVector({mine.origin: 1})
            theirs = Writer("b@1", wall_ms=NOW_MS + HOUR_MS).write(knows=[mine])
            await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            edit, blind = (
                each.event
                for each in (
                    await store.append([draft(context=read_then), draft(context=VersionVector())], now_ms=NOW_MS + 1)
                ).appended
            )
            assert edit.context == read_then
            assert not edit.context.covers(theirs.dot)
            assert (edit.prev, blind.prev) == (1, edit.seq)
            assert edit.at == HybridTime(NOW_MS + 1, 1), "an event that is not in the context does not move the clock"
            assert blind.context == VersionVector()

    async def test_hybrid_time_is_the_greatest_of_wall_own_and_causes_plus_one(self, opened: Any) -> None:
        """max(wall, own last, greatest in context and after) + 1, each term once the greatest."""
        async with opened() as store:

            async def write(aggregate_id: str, now_ms: int, **more: Any) -> HybridTime:
                at = (await store.append([draft(aggregate_id, **more)], now_ms=now_ms)).appended[0].event.at
                assert isinstance(at, HybridTime)
                return at

            assert await write("o-1", NOW_MS) == HybridTime(NOW_MS, 1)
            assert await write("o-2", NOW_MS - 5) == HybridTime(NOW_MS, 2)
            ahead, cause = Writer("b@1", wall_ms=NOW_MS + HOUR_MS), Writer("c@1", topic="stock", wall_ms=NOW_MS + 500)
            await store.append(received=arrivals(ahead.write("o-3"), cause.write("s-1")), now_ms=NOW_MS)
            assert await write("o-1", NOW_MS) == HybridTime(NOW_MS, 3), "a received clock moves nothing else"
            assert await write("o-1", NOW_MS, after=(cause.events[0].key,)) == HybridTime(NOW_MS + 501, 1)
            assert await write("o-3", NOW_MS) == HybridTime(NOW_MS + HOUR_MS + 1, 1)
            assert await write("o-9", NOW_MS) == HybridTime(NOW_MS + HOUR_MS + 1, 2)
            (stored,) = (each for each in await read(store) if each.event == ahead.events[0])
            assert stored.event.at.wall_ms == NOW_MS + HOUR_MS + 1

    async def test_own_time_ascends_over_a_restart_with_the_clock_put_back(self, opened: Any) -> None:
        """The own last time is on the disk."""
        async with opened() as store:
            before = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        async with opened() as store:
            after = (await store.append([draft("o-2")], now_ms=NOW_MS - HOUR_MS)).appended[0].event
            assert after.at == HybridTime(before.at.wall_ms, before.at.counter + 1)

    async def test_a_clock_at_its_very_end_stops_nobody(self, opened: Any) -> None:
        """An event from the end of time is stored, and its aggregate and all others go on being written."""
        async with opened() as store:
            last = Writer("b@1").write(at_packed=COUNTER_MAX)
            await store.append(received=arrivals(last), now_ms=NOW_MS)
            result = await store.append([draft(), draft(), draft("o-2")], now_ms=NOW_MS)
            assert [each.event.at_packed for each in result.appended] == [COUNTER_MAX] * 3

    # --- ids ---------------------------------------------------------------------------------------------------------

    async def test_an_id_makes_an_append_idempotent(self, opened: Any) -> None:
        """In one call, in a later one, after a restart: one event, and the caller gets it each time."""
        async with opened() as store:
            one = await store.append([draft(id="x"), draft("o-2"), draft(id="x")], now_ms=NOW_MS)
            assert one.appended[0] == one.appended[2]
            assert (len(one.appended), one.fresh) == (3, 2)
            two = await store.append([draft(id="x")], now_ms=NOW_MS + 1)
            assert (two.appended[0], two.fresh) == (one.appended[0], 0)
        async with opened() as store:
            three = await store.append([draft(id="x"), draft(id="y")], now_ms=NOW_MS)
            assert (three.appended[0], three.fresh) == (one.appended[0], 1)
            assert len(await read(store)) == 3

    async def test_drawn_ids_are_different_and_ascend(self, opened: Any) -> None:
        """UUIDv7, also for thousands within one millisecond."""
        async with opened() as store:
            result = await store.append([draft() for _ in range(5_000)], now_ms=NOW_MS)
            ids = [each.event.id for each in result.appended]
            assert ids == sorted(set(ids))
            assert all(id[14] == "7" and id[19] in "89ab" and len(id) == 36 for id in ids)

    async def test_an_id_with_other_content_is_an_error_of_its_caller_alone(self, opened: Any) -> None:
        """Three callers of one group commit: the one in the middle raises, and nothing of it is written."""
        async with opened() as store:
            await store.append([draft(data=1, id="x")], now_ms=NOW_MS)
            results = await asyncio.gather(
                store.append([draft(data=2)], now_ms=NOW_MS),
                store.append([draft(data=3), draft(data=4, id="x")], now_ms=NOW_MS),
                store.append([draft(data=5)], now_ms=NOW_MS),
                store.append([draft(data=6, id="z"), draft(data=7, id="z")], now_ms=NOW_MS),
                return_exceptions=True,
            )
            assert [type(each).__name__ for each in results] == [
                "AppendResult", "IdReused", "AppendResult", "IdReused",
            ]  # fmt: skip
            assert [each.event.data for each in await read(store)] == [1, 2, 5]

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (draft(""), Invalid),
            (draft("a\0b"), Invalid),
            (draft("\ud800"), Invalid),
            (draft("x" * 10_001), TooLarge),
            (draft(topic=""), Invalid),
            (draft(topic="t" * 101), TooLarge),
            (draft(topic="\udfff"), Invalid),
            (draft(id="\ud800"), Invalid),
            (draft(id=""), Invalid),
            (draft(data=float("nan")), Invalid),
            (draft(data={"x": "\ud800"}), Invalid),
            (draft(data="x" * 1_000_001), TooLarge),
            (draft(data=object()), Invalid),
            (draft(metadata={"x": "y" * 20_000}), TooLarge),
            (draft(schema_version=-1), Invalid),
            (draft(schema_version=True), Invalid),
            (draft(after=(Key("orders", "nobody@1", 1),)), CauseUnknown),
            (draft(context=VersionVector({"nobody@1": 1})), CauseUnknown),
            (draft(context=VersionVector({f"{n:0100}@1": 1 for n in range(200)})), TooLarge),
            (draft(context={"b@1": 1}), Invalid),
            (draft(after=("x",)), Invalid),
            (draft(topic=["orders"]), SyncKitError),  # type: ignore[arg-type]
            ("not a draft", Invalid),
        ],
        ids=range(23),
    )
    async def test_a_wrong_draft_is_an_error_of_its_caller_alone(
        self, opened: Any, wrong: Any, error: type[SyncKitError]
    ) -> None:
        """A clear error, nothing written, and callers of the same group commit do not notice."""
        async with opened() as store:
            results: Any = await asyncio.gather(
                store.append([draft(data=1)], now_ms=NOW_MS),
                store.append([draft(data=2), wrong], now_ms=NOW_MS),
                store.append([draft(data=3)], now_ms=NOW_MS),
                return_exceptions=True,
            )
            before, failed, after = results
            assert isinstance(failed, error)
            assert (before.fresh, after.fresh) == (1, 1)
            assert [each.event.data for each in await read(store)] == [1, 3]

    async def test_a_model_that_raises_is_an_error_of_its_caller_alone(self, opened: Any) -> None:
        """Whatever the user's own code throws while its data is written down."""

        class Model:
            def model_dump(self, **how: Any) -> Any:
                raise ZeroDivisionError("in the user's code")

        async with opened() as store:
            results: Any = await asyncio.gather(
                store.append([draft()], now_ms=NOW_MS),
                store.append([draft(data=Model())], now_ms=NOW_MS),
                return_exceptions=True,
            )
            good, bad = results
            assert good.fresh == 1
            assert isinstance(bad, ZeroDivisionError | Invalid)

    @pytest.mark.parametrize(
        "aggregate_id", ["é", "x" * 10_000, "😀" * 10_000, "a b\tc\n", "%23?#", "\u202e", "\ufffe", "'; --"]
    )
    async def test_any_text_is_an_aggregate_id(self, opened: Any, aggregate_id: str) -> None:
        """All of Unicode but NUL and lone surrogates, up to 10,000 characters; and none is taken for another."""
        async with opened() as store:
            await store.append([draft(aggregate_id, 1), draft(aggregate_id[:-1] + "_", 2)], now_ms=NOW_MS)
            assert [event.data for event in await store.aggregate("orders", aggregate_id)] == [1]
        async with opened() as store:
            result = await store.append([draft(aggregate_id)], now_ms=NOW_MS)
            assert result.appended[0].event.prev == 1

    @pytest.mark.parametrize("payload", [b"", b"\0\xff", b"{", b"1e3", b"\xed\xa0\x80", b"x" * 1_000_000], ids=range(6))
    async def test_any_bytes_are_a_payload(self, opened: Any, payload: bytes) -> None:
        """Kept byte for byte, whether or not they are JSON; also as a peer sent them."""
        async with opened() as store:
            await store.append([draft(data=payload)], now_ms=NOW_MS)
            await store.append(received=arrivals(Writer("b@1").write(payload=payload)), now_ms=NOW_MS)
            assert [each.event.payload for each in await read(store)] == [payload, payload]

    async def test_an_enumerations_member_is_its_text(self, opened: Any) -> None:
        """A `str` of another class is stored and hashed as a `str`."""

        class Kind(str):
            __slots__ = ()

        async with opened() as store:
            result = await store.append([Draft(Kind("orders"), Kind("x"), Kind("o-1"), id=Kind("i"))], now_ms=NOW_MS)
            event = result.appended[0].event
            assert {type(text) for text in (event.topic, event.type, event.aggregate_id, event.id)} == {str}

    # --- twins -------------------------------------------------------------------------------------------------------

    async def test_twins_are_both_kept_and_the_later_one_is_marked(self, opened: Any) -> None:
        """One fact, written on two nodes while offline: no gap anywhere, counted once, and no alarm."""
        async with opened() as store:
            mine = (await store.append([draft(data=b'{"by":"peer"}', id="x")], now_ms=NOW_MS)).appended[0]
            theirs = Writer("b@1").write(id="x")
            result = await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            assert (result.stored[0].twin, result.twins) == (True, ())
            again = await store.append([draft(data=b'{"by":"peer"}', id="x")], now_ms=NOW_MS)
            assert again.appended[0] == mine
            reader = Reader(store)
            await reader.read()
            assert reader.counted == {"x": 1}

    async def test_twins_in_one_batch_and_with_other_content_raise_an_alarm(self, opened: Any) -> None:
        """The first in the log is the fact; whoever said something else under its id is named."""
        async with opened() as store:
            one, two = Writer("b@1").write(id="x"), Writer("c@1").write(id="x", payload=b"2")
            result = await store.append(received=arrivals(one, two), now_ms=NOW_MS)
            assert [each.twin for each in result.stored] == [False, True]
            assert result.twins == ((two.key, "x"),)
            with pytest.raises(IdReused):
                await store.append([draft(data=2, id="x")], now_ms=NOW_MS)
