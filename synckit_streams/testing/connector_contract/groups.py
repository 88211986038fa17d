"""Groups: who divides the messages, what comes again, and what never does."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import pytest

from synckit_streams.errors import FeatureUnsupported, Rejected
from synckit_streams.ports.connector import BATCHES_HELD_MAX, Connector, Delivery, Member, Progress
from synckit_streams.testing.connector_contract.kit import (
    DEADLINE_S,
    Bench,
    Factory,
    Foreign,
    bodies,
    message,
    messages,
    opened,
    trickle,
)

GROUP = "workers"
BODIES = [b'{"a": 1}', b"", bytes(range(256)), b"not json"]


async def refuses(connector: Connector, topic: str) -> bool:
    """Whether it declares no groups; then it has to refuse whatever only a group can do."""
    if connector.features.groups:
        return False
    with pytest.raises(FeatureUnsupported):
        async with connector.join(topic, group=GROUP, start={}, batch_max=1):
            pass
    with pytest.raises(FeatureUnsupported):
        await connector.progress(topic, group=GROUP)
    return True


@asynccontextmanager
async def joined(connector: Connector, topic: str, *, batch_max: int = 50) -> AsyncIterator[Member]:
    async with connector.join(topic, group=GROUP, start={}, batch_max=batch_max) as member:
        yield member


async def take(member: Member, count: int) -> list[Delivery]:
    """The next `count` deliveries, or more if the last batch has more. Nothing is acknowledged."""
    got: list[Delivery] = []
    while len(got) < count:
        got.extend(await anext(member))
    return got


async def work(member: Member, done: list[bytes], count: int) -> None:
    """Take, commit, acknowledge, until `count` different messages are done; others may work beside."""
    with suppress(StopAsyncIteration):
        while len(set(done)) < count:
            batch = await anext(member)
            done.extend(bodies(batch))  # this is the durable effect
            await member.ack(batch)


async def a_moment_ms() -> int:
    """A time by the wall clock, that is over, and that nothing lies near."""
    await asyncio.sleep(0.01)
    moment_ms = time.time_ns() // 1_000_000
    await asyncio.sleep(0.01)
    return moment_ms


async def settled(connector: Connector, topic: str, count: int) -> Progress:
    """How the group stands once it has acknowledged everything; brokers need a moment for that."""
    while True:
        progress = await connector.progress(topic, group=GROUP)
        if progress.acknowledged and not progress.lag:
            assert sum(progress.acknowledged.values()) >= count
            return progress
        await asyncio.sleep(0.02)


async def together(*workers: Awaitable[None]) -> None:
    """Until the first of them is done; the others wait for messages that never come."""
    tasks = [asyncio.ensure_future(each) for each in workers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Groups(Bench):
    """Members, redelivery, and how far a group has come."""

    # ------------------------------------------------------------------------------------------------------- division

    async def test_a_group_divides_the_messages(self, factory: Factory, topic: str) -> None:
        """Every message goes to one member, and all of them together get everything."""
        sent = messages(600)
        async with opened(factory) as first, opened(factory) as second:
            if await refuses(first, topic):
                return
            await first.send(topic, sent)
            done: list[bytes] = []
            async with joined(first, topic) as a, joined(first, topic) as b, joined(second, topic) as c:
                await together(*(work(each, done, len(sent)) for each in (a, b, c)))
                await settled(first, topic, len(sent))
        assert sorted(done) == sorted(each.body for each in sent)

    async def test_a_member_reads_in_order(self, factory: Factory, topic: str) -> None:
        """Batches are of one partition, ascending, and so are the batches of a partition."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, messages(400))
            count, last = 0, Counter[int]()
            async with joined(connector, topic, batch_max=30) as member:
                while count < 400:
                    batch = await anext(member)
                    assert 1 <= len(batch) <= 30
                    assert len({each.partition for each in batch}) == 1
                    for each in batch:
                        assert each.position > last[each.partition]
                        assert each.attempt == 1
                        last[each.partition] = each.position
                    count += len(batch)
                    await member.ack(batch)

    async def test_two_groups_do_not_divide(self, factory: Factory, topic: str) -> None:
        """Each has a position of its own; names are any text."""
        sent = messages(60)
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, sent)
            for group in ("a", "A", "a.b c/d*>~", "Ünïcode ✓", "x" * 300, "x" * 299):
                async with connector.join(topic, group=group, start={}, batch_max=100) as member:
                    got = await take(member, len(sent))
                    await member.ack(got)
                    assert sorted(bodies(got)) == sorted(each.body for each in sent)

    async def test_a_new_group_begins_where_it_is_told(self, factory: Factory, topic: str) -> None:
        """Behind `start`; a group that is there already goes on from its own position."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, messages(40))
            bounds = await connector.bounds(topic)
            start = {number: (each.first + each.end) // 2 for number, each in bounds.items() if each.end > each.first}
            wanted = sum(bounds[number].end - 1 - position for number, position in start.items())
            async with connector.join(topic, group=GROUP, start=start, batch_max=100) as member:
                got = await take(member, wanted)
                assert len(got) == wanted
                assert all(each.position > start[each.partition] for each in got)
                await member.ack(got)
            await settled(connector, topic, 1)
            await connector.send(topic, [message(body=b"next")])
            async with connector.join(topic, group=GROUP, start={}, batch_max=100) as member:
                assert bodies(await anext(member)) == [b"next"]

    # ---------------------------------------------------------------------------------------------------- redelivery

    async def test_what_is_acknowledged_never_comes_again(self, factory: Factory, topic: str) -> None:
        """And what is not comes again, to whoever is there next, when its member leaves."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, [message("same", body=b"%d" % number) for number in range(20)])
            async with joined(connector, topic) as member:
                got = await take(member, 20)
                await member.ack(got[:12])
            async with joined(connector, topic) as member:
                again = await take(member, 8)
                await member.ack(again)
            assert bodies(again) == bodies(got)[12:]
            await settled(connector, topic, 20)

    async def test_what_was_not_acknowledged_goes_to_a_member_who_stays(self, factory: Factory, topic: str) -> None:
        """Also when the member leaves in the middle of a batch, and its whole connector with it."""
        async with opened(factory) as staying:
            if await refuses(staying, topic):
                return
            async with opened(factory) as leaving:
                await staying.send(topic, messages(100))
                async with joined(leaving, topic, batch_max=10) as gone:
                    await anext(gone)
                    async with joined(staying, topic) as member:
                        await leaving.close()
                        done: list[bytes] = []
                        await work(member, done, 100)
                        await settled(staying, topic, 100)
        assert len(set(done)) == 100

    async def test_who_takes_too_long_loses_it(self, impatient_factory: Factory, topic: str) -> None:
        """What is neither acknowledged nor extended within `ack_wait_s` comes again, to any member."""
        async with opened(impatient_factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, [message(body=b"slow")])
            async with joined(connector, topic) as member:
                (first,) = await anext(member)
                started = time.monotonic()
                (again,) = await anext(member)
                assert time.monotonic() - started < DEADLINE_S / 2
                assert (again.partition, again.position) == (first.partition, first.position)
                await member.ack([again])
            await settled(connector, topic, 1)

    async def test_who_says_that_he_is_at_work_keeps_it(self, impatient_factory: Factory, topic: str) -> None:
        """`extend` begins the time anew, as often as it takes; nobody else gets it meanwhile."""
        async with opened(impatient_factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, [message(body=b"long")])
            async with joined(connector, topic) as member:
                got = await anext(member)
                waiting = asyncio.ensure_future(anext(member))
                until = time.monotonic() + 3 * self.ack_wait_s
                while time.monotonic() < until:
                    await member.extend(got)
                    await asyncio.wait([waiting], timeout=self.ack_wait_s / 5)
                assert not waiting.done()
                await member.ack(got)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await settled(connector, topic, 1)

    async def test_what_is_given_back_comes_again(self, factory: Factory, topic: str) -> None:
        """After a while, if it is told so; the others do not wait for it."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            async with joined(connector, topic, batch_max=1) as member:
                await connector.send(topic, [message(body=b"0")])
                got = await anext(member)
                started = time.monotonic()
                await member.nack(got, delay_s=1.0)
                await connector.send(topic, [message(body=b"1")])
                other = await anext(member)
                assert bodies(other) == [b"1"]
                again = await anext(member)
                assert bodies(again) == [b"0"]
                assert time.monotonic() - started > 0.95
                await member.nack(again)
                once_more = await anext(member)
                assert bodies(once_more) == [b"0"]
                await member.ack([*other, *once_more])
            await settled(connector, topic, 2)

    async def test_what_is_given_up_never_comes_again(self, factory: Factory, topic: str) -> None:
        """Poison is put aside: `term` ends it, and nothing waits behind it."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, [message("same", body=b"%d" % number) for number in range(3)])
            async with joined(connector, topic) as member:
                got = await take(member, 3)
                await member.term(got[:1])
                await member.ack(got[1:])
                await settled(connector, topic, 3)
                await connector.send(topic, [message(body=b"next")])
                assert bodies(await anext(member)) == [b"next"]

    async def test_each_redelivery_is_counted_where_the_broker_does(self, factory: Factory, topic: str) -> None:
        """`attempt` never falls, and is 1 at first: poison can be told by it."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, [message(body=b"poison")])
            attempts: list[int] = []
            async with joined(connector, topic) as member:
                for _ in range(4):
                    got = await anext(member)
                    attempts += [each.attempt for each in got]
                    await member.nack(got)
            assert attempts == [1, 2, 3, 4]

    async def test_acknowledging_what_another_has_is_no_error(self, impatient_factory: Factory, topic: str) -> None:
        """It was moved while somebody worked on it: it comes again, and is acknowledged by who has it now."""
        async with opened(impatient_factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, [message(body=b"moved")])
            async with joined(connector, topic) as slow:
                late = await anext(slow)
                again = await anext(slow)
                for verb in (slow.ack, slow.nack, slow.term, slow.extend):
                    with suppress(StopAsyncIteration):
                        await verb(late)
                await slow.ack(again)
                await slow.ack(again)
            await settled(connector, topic, 1)

    # --------------------------------------------------------------------------------------------------- coming, going

    async def test_members_come_and_go_in_mid_batch(self, factory: Factory, topic: str) -> None:
        """Rebalances while everybody works: every message is done, and at the end nothing is left."""
        sent = messages(900)
        done: list[bytes] = []
        async with opened(factory) as steady, opened(factory) as coming:
            if await refuses(steady, topic):
                return
            writing = asyncio.ensure_future(trickle(coming, topic, sent))

            async def visit() -> None:
                """Take a batch, and leave with it half done."""
                while len(set(done)) < len(sent):
                    async with joined(coming, topic, batch_max=20) as member:
                        visiting = asyncio.ensure_future(anext(member))
                        # Where nothing is to be had for a visitor, the others go on.
                        await asyncio.wait([visiting], timeout=0.3)
                        if visiting.done() and not visiting.exception():
                            batch = visiting.result()
                            done.extend(bodies(batch[: len(batch) // 2]))
                            await member.ack(batch[: len(batch) // 2])
                        visiting.cancel()
                        await asyncio.gather(visiting, return_exceptions=True)

            async with joined(steady, topic, batch_max=20) as member:
                visits = asyncio.ensure_future(visit())
                await work(member, done, len(sent))
                await visits
                await writing
                await together(work(member, done, len(sent) + 1), self._until_settled(steady, topic, len(sent)))
        assert sorted(set(done)) == sorted(each.body for each in sent)

    @staticmethod
    async def _until_settled(connector: Connector, topic: str, count: int) -> None:
        await settled(connector, topic, count)

    async def test_a_cancelled_member_loses_nothing(self, factory: Factory, topic: str) -> None:
        """Waiting for a batch may be given up at any time."""
        sent = messages(200)
        done: list[bytes] = []
        async with opened(factory) as connector, opened(factory) as writer:
            if await refuses(connector, topic):
                return
            async with joined(connector, topic, batch_max=20) as member:
                writing = asyncio.ensure_future(trickle(writer, topic, sent))
                patience = 0
                while len(done) < len(sent):
                    waiting = asyncio.ensure_future(anext(member))
                    for _ in range(patience % 7):
                        await asyncio.sleep(0)
                    patience += 1
                    if not waiting.done() and patience % 7:
                        waiting.cancel()
                    with suppress(asyncio.CancelledError):
                        batch = await waiting
                        done.extend(bodies(batch))
                        await member.ack(batch)
                await writing
            await settled(connector, topic, len(sent))
        assert sorted(done) == sorted(each.body for each in sent)

    async def test_a_member_that_acknowledges_nothing_is_not_flooded(self, factory: Factory, topic: str) -> None:
        """So much is delivered and not acknowledged; then it waits, and goes on when something is acknowledged."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            await connector.send(topic, messages(2000))
            held: list[Delivery] = []
            async with joined(connector, topic, batch_max=10) as member:
                waiting = asyncio.ensure_future(anext(member))
                while (await asyncio.wait([waiting], timeout=1.0))[0]:
                    held += waiting.result()
                    assert len(held) < 1500
                    waiting = asyncio.ensure_future(anext(member))
                await member.ack(held)
                assert await waiting

    async def test_what_was_never_acknowledged_comes_again_however_much_it_is(
        self, impatient_factory: Factory, topic: str
    ) -> None:
        """A member that holds all that it may hold gets it again when the time is over, all of it."""
        async with opened(impatient_factory) as connector:
            if await refuses(connector, topic):
                return
            sent = messages(BATCHES_HELD_MAX * 5)
            await connector.send(topic, sent)
            done: list[bytes] = []
            async with joined(connector, topic, batch_max=5) as member:
                await take(member, len(sent))
                await work(member, done, len(sent))
            await settled(connector, topic, len(sent))
        assert set(done) == {each.body for each in sent}

    async def test_closing_ends_the_member(self, factory: Factory, topic: str) -> None:
        """Who waits for a message comes to the end, without an error, and what he had goes to others."""
        connector = factory()
        await connector.open()
        async with asyncio.timeout(DEADLINE_S):
            if await refuses(connector, topic):
                await connector.close()
                return
            await connector.send(topic, [message(body=b"1")])
            taken = asyncio.Event()

            async def receive() -> list[bytes]:
                got: list[bytes] = []
                async with joined(connector, topic) as member:
                    async for batch in member:
                        got += bodies(batch)
                        taken.set()
                return got

            receiving = asyncio.ensure_future(receive())
            await taken.wait()
            await connector.close()
            assert await receiving == [b"1"]
            async with opened(factory) as other, joined(other, topic) as member:
                assert bodies(await anext(member)) == [b"1"]

    # ------------------------------------------------------------------------------------------------------- progress

    async def test_a_group_is_settled_when_all_of_it_is_acknowledged(self, factory: Factory, topic: str) -> None:
        """By whomever: also while another member has the last message, or has left it."""
        async with opened(factory) as connector, opened(factory) as other:
            if await refuses(connector, topic):
                return
            async with joined(connector, topic) as member:
                assert await member.settled()
                await connector.send(topic, [message("same", body=b"%d" % number) for number in range(10)])
                assert not await member.settled()
                got = await take(member, 10)
                assert not await member.settled()
                await member.ack(got[1:])
                assert not await member.settled()
            async with joined(connector, topic) as member, joined(other, topic) as beside:
                assert not await beside.settled()
                done: list[bytes] = []
                await together(work(member, done, 1), work(beside, done, 1))
                assert done[0] == got[0].message.body
                await settled(connector, topic, 10)
                assert await member.settled()
                assert await beside.settled()

    async def test_progress_is_what_is_acknowledged_without_a_hole(self, factory: Factory, topic: str) -> None:
        """A later message that is done does not hide an earlier one that is not."""
        async with opened(factory) as connector:
            if await refuses(connector, topic):
                return
            assert await connector.progress(topic, group=GROUP) == Progress({}, 0, 0) or (
                set((await connector.progress(topic, group=GROUP)).acknowledged.values()) == {0}
            )
            await connector.send(topic, [message("same", body=b"%d" % number) for number in range(10)])
            assert (await connector.progress(topic, group=GROUP)).lag == 10
            async with joined(connector, topic) as member:
                got = await take(member, 10)
                partition = got[0].partition
                await member.ack(got[5:])
                progress = await connector.progress(topic, group=GROUP)
                assert progress.acknowledged.get(partition, 0) == 0
                assert progress.lag >= 5
                await member.ack(got[:5])
                progress = await settled(connector, topic, 10)
                assert progress.acknowledged[partition] == got[-1].position

    # ----------------------------------------------------------------------------------------------------------- times

    async def test_where_a_time_begins(self, factory: Factory, topic: str) -> None:
        """By the broker's clock, which here is ours; a connector without times says so."""
        async with opened(factory) as connector:
            if not connector.features.times:
                with pytest.raises(FeatureUnsupported):
                    await connector.find(topic, at_ms=0)
                return
            await connector.send(topic, [message("same", body=b"before")])
            between_ms = await a_moment_ms()
            await connector.send(topic, [message("same", body=b"after")])
            for at_ms, wanted in ((0, [b"before", b"after"]), (between_ms, [b"after"])):
                start = await connector.find(topic, at_ms=at_ms)
                async with connector.receive(topic, start=start, batch_max=10) as batches:
                    got = list(await anext(batches))
                    while len(got) < len(wanted):
                        got += await anext(batches)
                assert bodies(got) == wanted
            # Of a time that is still to come: behind the last one.
            bounds = await connector.bounds(topic)
            start = await connector.find(topic, at_ms=between_ms + 3_600_000)
            assert all(start.get(number, 0) >= each.end - 1 for number, each in bounds.items())

    # ------------------------------------------------------------------------------------------------ foreign messages

    async def test_messages_of_somebody_else(self, factory: Factory, foreign: Foreign, topic: str) -> None:
        """They come as they are, each known by where it lies, and again under the same name."""
        async with opened(factory) as connector:
            if not connector.features.taps:
                with pytest.raises(FeatureUnsupported):
                    async with connector.tap("somebody-elses", group=GROUP, batch_max=1):
                        pass
                return
            source = f"raw-{topic[-12:]}"
            with pytest.raises(Rejected):
                async with connector.tap(source, group=GROUP, batch_max=1):
                    pass
            await foreign(source, BODIES)
            async with connector.tap(source, group=GROUP, batch_max=10) as member:
                got = await take(member, len(BODIES))
                assert sorted(bodies(got)) == sorted(BODIES)
                ids = {each.message.body: each.message.id for each in got}
                assert len(set(ids.values())) == len(BODIES)
                last = max(got, key=lambda each: (each.partition, each.position))
                await member.ack([each for each in got if each is not last])
            async with connector.tap(source, group=GROUP, batch_max=10) as member:
                (again,) = await anext(member)
                assert (again.message.body, again.message.id) == (last.message.body, ids[last.message.body])
                await member.ack([again])
            between_ms = await a_moment_ms()
            await foreign(source, [b"later"])
            async with connector.tap(source, group="late", batch_max=10, at_ms=between_ms) as member:
                assert bodies(await anext(member)) == [b"later"]
