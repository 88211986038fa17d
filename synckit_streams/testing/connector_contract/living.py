"""Reading while others write, and a connector from its opening to its end."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest

from synckit_streams.errors import ConnectorError
from synckit_streams.ports.connector import Announced
from synckit_streams.testing.connector_contract.kit import (
    DEADLINE_S,
    Bench,
    Factory,
    bodies,
    heard,
    message,
    messages,
    opened,
    read,
    trickle,
)


class Living(Bench):
    """Live reading; open and closed."""

    # --------------------------------------------------------------------------------------------------- live reading

    async def test_what_is_sent_arrives_at_who_waits(self, factory: Factory, topic: str) -> None:
        """A reader at the end gets each message when it is sent, from its own connector or another's."""
        async with (
            opened(factory) as reader,
            opened(factory) as writer,
            reader.receive(topic, start={}, batch_max=10) as batches,
        ):
            for number, connector in enumerate([reader, writer, reader, writer]):
                waiting = asyncio.ensure_future(anext(batches))
                await connector.send(topic, [message(body=b"%d" % number)])
                assert bodies(await waiting) == [b"%d" % number]

    async def test_each_reader_gets_everything(self, factory: Factory, topic: str) -> None:
        """Two readers of one connector and one of another do not divide the messages."""
        sent = messages(300)
        async with opened(factory) as first, opened(factory) as second:
            readers = [asyncio.ensure_future(read(each, topic, len(sent))) for each in (first, first, second)]
            await first.send(topic, sent)
            for got in await asyncio.gather(*readers):
                assert sorted(bodies(got)) == sorted(each.body for each in sent)

    async def test_a_publisher_never_waits_for_a_reader(self, factory: Factory, topic: str) -> None:
        """A reader that stands still holds up neither a publisher nor another reader."""
        async with (
            opened(factory) as slow,
            opened(factory) as quick,
            slow.receive(topic, start={}, batch_max=5) as batches,
        ):
            await quick.send(topic, [message(body=b"first")])
            await anext(batches)
            for _ in range(40):
                await quick.send(topic, [message(body=b"x" * 10_000) for _ in range(25)])
            assert len(await read(quick, topic, 1001)) == 1001
            count = 1
            while count < 1001:
                count += len(await anext(batches))
            assert count == 1001

    @pytest.mark.parametrize(
        ("count", "size_bytes", "batch_max", "share"),
        [pytest.param(1000, 40_000, 1000, 1, id="large"), pytest.param(6000, 10, 2, 16, id="small")],
    )
    async def test_a_slow_reader_costs_no_memory(
        self, factory: Factory, topic: str, count: int, size_bytes: int, batch_max: int, share: int
    ) -> None:
        """A reader is at most a few batches ahead of who takes them, however many messages there are."""
        async with opened(factory) as slow, opened(factory) as quick:
            for _ in range(0, count, 100):
                await quick.send(topic, [message(body=b"x" * size_bytes) for _ in range(100)])
            tracemalloc.start()
            try:
                held_bytes = 0
                async with (
                    slow.receive(topic, start={}, batch_max=batch_max) as batches,
                    quick.receive(topic, start={}, batch_max=count // 200) as others,
                ):
                    taken, passed = 0, 0
                    while passed < count:
                        if taken < count // 2:
                            taken += len(await anext(batches))
                        passed += len(await anext(others))
                        held_bytes = max(held_bytes, tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
        assert held_bytes < self.ahead_bytes_max / share

    async def test_closing_ends_the_iterators(self, factory: Factory, topic: str) -> None:
        """Who waits for a message or a digest when the connector is closed comes to the end, without an error."""
        connector = factory()
        await connector.open()
        reading = asyncio.Event()
        listening = asyncio.Event()

        async def receive() -> int:
            count = 0
            async with connector.receive(topic, start={}, batch_max=10) as batches:
                async for batch in batches:
                    count += len(batch)
                    reading.set()
            return count

        async def listen() -> int:
            count = 0
            async with connector.listen(topic) as announcements:
                async for _ in announcements:
                    count += 1
                    listening.set()
            return count

        tasks = [asyncio.ensure_future(receive()), asyncio.ensure_future(listen())]
        async with asyncio.timeout(DEADLINE_S):
            await connector.send(topic, [message()])
            await reading.wait()
            await listening.wait()
            for _ in range(20):  # until both wait for more
                await asyncio.sleep(0)
            await connector.close()
            assert await asyncio.gather(*tasks) == [1, 1]

    async def test_a_cancelled_reader_loses_nothing(self, factory: Factory, topic: str) -> None:
        """Waiting for a batch may be given up at any time: every message still comes, once, in order."""
        sent = [message(body=b"%d" % n) for n in range(400)]
        got: list[bytes] = []
        async with (
            opened(factory) as reader,
            opened(factory) as writer,
            reader.receive(topic, start={}, batch_max=20) as batches,
        ):
            writing = asyncio.ensure_future(trickle(writer, topic, sent))
            patience = 0
            while len(got) < len(sent):
                waiting = asyncio.ensure_future(anext(batches))
                for _ in range(patience % 7):
                    await asyncio.sleep(0)
                patience += 1
                # A batch that is there is taken; one that is not is given up, a little later each time.
                if not waiting.done() and patience % 7:
                    waiting.cancel()
                with suppress(asyncio.CancelledError):
                    got.extend(bodies(await waiting))
            await writing
        assert got == [each.body for each in sent]

    async def test_a_cancelled_send_leaves_the_connector_usable(self, factory: Factory, topic: str) -> None:
        """Publishing may be given up at any time; what is sent afterwards is stored all the same."""
        async with opened(factory) as connector:
            for rounds in range(12):
                sending = asyncio.ensure_future(connector.send(topic, messages(300)))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                sending.cancel()
                with suppress(asyncio.CancelledError):
                    await sending
            after = [message(body=b"after %d" % number) for number in range(50)]
            ends = await connector.send(topic, after)
            found: set[bytes] = set()
            async with connector.receive(topic, start={}, batch_max=500) as batches:
                async for batch in batches:
                    found.update(bodies(batch))
                    if any(each.position >= ends.get(each.partition, each.position + 1) for each in batch):
                        break
        assert {each.body for each in after} <= found

    async def test_two_event_loops(self, factory: Factory, topic: str) -> None:
        """Connectors to one broker work in the event loops of different threads at the same time."""
        sent = messages(500)
        got: list[bytes] = []
        errors: list[BaseException] = []

        async def write() -> None:
            async with opened(factory) as connector:
                await trickle(connector, topic, sent)

        async def collect() -> None:
            async with opened(factory) as connector:
                got.extend(bodies(await read(connector, topic, len(sent))))

        def run(work: Callable[[], object]) -> None:
            try:
                asyncio.run(work())  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - it belongs to the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=run, args=(work,)) for work in (collect, write)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join, DEADLINE_S)
        assert errors == []
        assert sorted(got) == sorted(each.body for each in sent)

    # ----------------------------------------------------------------------------------------------- open and closed

    async def test_open_and_close_leave_nothing_running(self, factory: Factory, topic: str) -> None:
        """After `close`, which may be called twice, no task of the connector is left."""
        before = asyncio.all_tasks()
        async with opened(factory) as connector:
            await connector.send(topic, messages(10))
            await read(connector, topic, 10)
            await heard(connector, topic)
        await connector.close()
        assert asyncio.all_tasks() == before

    async def test_a_closed_connector_says_so(self, factory: Factory, topic: str) -> None:
        """Before `open` and after `close` every call raises, and none hangs."""
        never, closed = factory(), factory()
        async with asyncio.timeout(DEADLINE_S):
            await closed.open()
            await closed.close()
            for connector in (never, closed):
                for call in (
                    connector.bounds(topic),
                    connector.peek(topic, 0, 1),
                    connector.send(topic, [message()]),
                    connector.announce(topic, "n", b"x"),
                    read(connector, topic, 1),
                    heard(connector, topic),
                ):
                    with pytest.raises(ConnectorError):
                        await call
            await never.close()

    async def test_opening_an_open_connector_changes_nothing(self, factory: Factory, topic: str) -> None:
        """Whoever meets opens first, each time: readers and listeners go on, and so does what waits in them."""
        async with (
            opened(factory) as connector,
            connector.receive(topic, start={}, batch_max=10) as batches,
            connector.listen(topic) as announcements,
        ):
            assert await anext(announcements) == Announced("", b"", 0.0)
            waiting = asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))
            for _ in range(3):
                await connector.open()
            await connector.send(topic, [message(body=b"1")])
            await connector.announce(topic, "a", b"digest")
            assert bodies(await waiting[0]) == [b"1"]
            assert await waiting[1] == Announced("a", b"digest", 0.0)

    async def test_it_can_be_opened_again(self, factory: Factory, topic: str) -> None:
        """A closed connector may be opened again, and finds the same log."""
        connector = factory()
        async with asyncio.timeout(DEADLINE_S):
            await connector.open()
            await connector.send(topic, [message(body=b"1")])
            await connector.close()
            await connector.open()
            assert bodies(await read(connector, topic, 1)) == [b"1"]
            await connector.close()
