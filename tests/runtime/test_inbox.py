"""An inbox: each delivery is done once, by whichever worker is first, however often the store fails meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from synckit_streams import Draft, Event, Retry, StoreClosed, SyncNode
from synckit_streams.errors import StoreUnavailable
from synckit_streams.ports.telemetry import Detail, Handled, Received
from synckit_streams.runtime.inbox import Attempt, Delivery, Inbox
from synckit_streams.stores.memory import MemoryStore

DEADLINE_S = 30.0
RETRY = Retry(max_attempts=3, base_ms=1)


def delivery(key: str | None = "k", *, trace: str = "") -> Delivery:
    event = Event("k", "orders", "placed", "o-1", b"1", b"", "", 0, 0, b"", b"", 0, 0, trace)
    return Delivery("Bill", key, event)


def inbox_of(node: SyncNode, retry: Retry = RETRY) -> Inbox:
    return node.inbox("billing", retry=retry, dead_letter="billing.dlq")


async def written(node: SyncNode, topic: str) -> list[Event]:
    return [stored.event async for stored in node.log(topic)]


async def test_of_two_workers_on_one_database_only_one_has_an_effect(database: str) -> None:
    """Both are in the middle of the same delivery, and both go on; the transaction lets only one of them in."""
    both = asyncio.Barrier(2)
    calls = 0

    async def work(attempt: Attempt) -> Sequence[Draft]:
        nonlocal calls
        calls += 1
        await both.wait()
        await attempt.tx.execute("INSERT INTO bills VALUES ($1)", (7,))
        return [Draft("invoices", "invoice.written", "o-1")]

    async with SyncNode("billing", store=database) as one, SyncNode("billing", store=database) as two:
        async with one.store.transaction() as tx:
            await tx.execute("CREATE TABLE bills (n INT)")
        async with asyncio.timeout(DEADLINE_S):
            known = await asyncio.gather(*(inbox_of(each).handle([delivery()], work) for each in (one, two)))
        async with two.store.transaction() as tx:
            assert await tx.execute("SELECT n FROM bills") == [(7,)]
        assert len(await written(two, "invoices")) == 1
    assert calls == 2
    assert sorted(known) == [0, 1]


async def test_a_handler_that_catches_everything_still_commits_nothing_twice() -> None:
    """It is told by an exception that somebody was faster. Whoever swallows that is refused at the commit."""
    async with SyncNode("billing", store="memory:") as node:
        inbox = inbox_of(node)

        async def quick(attempt: Attempt) -> Sequence[Draft]:
            return [Draft("invoices", "by quick", "o-1")]

        async def slow(attempt: Attempt) -> Sequence[Draft]:
            await inbox.handle([delivery()], quick)
            with suppress(BaseException):
                await attempt.tx.execute("SELECT 1")
            return [Draft("invoices", "by slow", "o-1")]

        assert await inbox.handle([delivery()], slow) == 1
        assert [each.type for each in await written(node, "invoices")] == ["by quick"]


async def test_a_store_that_is_away_burns_no_attempts() -> None:
    """Neither before the work nor at its commit: everything is done in the end, and nothing is a dead letter."""
    failures = iter([True, True, False, True, True])
    open_ = False

    def probe(step: str) -> None:
        if open_ and step == "commit" and next(failures, False):
            raise StoreUnavailable("the server is gone")

    node = SyncNode("billing", store=MemoryStore(probe=probe))
    attempts: list[int] = []

    async def work(attempt: Attempt) -> Sequence[Draft]:
        attempts.append(attempt.number)
        return [Draft("invoices", "invoice.written", "o-1")]

    async with node:
        open_ = True
        async with asyncio.timeout(DEADLINE_S):
            assert await inbox_of(node, Retry(max_attempts=1)).handle([delivery()], work) == 0
        assert len(await written(node, "invoices")) == 1
        assert not await written(node, "billing.dlq")
    assert set(attempts) == {1}


async def test_a_store_of_the_works_own_that_is_away_is_its_failure() -> None:
    async def work(attempt: Attempt) -> Sequence[Draft]:
        raise StoreUnavailable("some other server")

    async with SyncNode("billing", store="memory:") as node:
        await asyncio.wait_for(inbox_of(node).handle([delivery()], work), DEADLINE_S)
        (letter,) = await written(node, "billing.dlq")
    assert letter.data["attempts"] == 3


async def test_failures_are_counted_over_a_restart() -> None:
    """The third attempt is the last one, though the process died after the second."""
    disk = MemoryStore().disk
    attempts: list[int] = []

    async def work(attempt: Attempt) -> Sequence[Draft]:
        attempts.append(attempt.number)
        raise RuntimeError("no")

    async with SyncNode("billing", store=MemoryStore(disk=disk)) as node:
        slow = inbox_of(node, Retry(max_attempts=3, base_ms=3_600_000))
        task = asyncio.create_task(slow.handle([delivery()], work))
        async with asyncio.timeout(DEADLINE_S):
            while not attempts or b"1" not in disk.applied.values():  # noqa: ASYNC110 - the state of a store
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
    async with SyncNode("billing", store=MemoryStore(disk=disk)) as node:
        await inbox_of(node).handle([delivery()], work)
        (letter,) = await written(node, "billing.dlq")
    assert attempts == [1, 2, 3]
    assert letter.data["attempts"] == 3


async def test_what_has_no_key_is_done_each_time_and_given_up_all_the_same() -> None:
    calls = 0

    async def work(attempt: Attempt) -> Sequence[Draft]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("no")
        return [Draft("invoices", "invoice.written", "o-1")]

    async with SyncNode("billing", store="memory:") as node:
        for _ in range(3):
            await asyncio.wait_for(inbox_of(node).handle([delivery(None)], work), DEADLINE_S)
        assert len(await written(node, "invoices")) == 2
        assert len(await written(node, "billing.dlq")) == 1


async def test_a_closed_node_does_nothing_and_says_so() -> None:
    async def work(attempt: Attempt) -> Sequence[Draft]:
        await node.close()
        return []

    node = SyncNode("billing", store="memory:")
    async with node:
        with pytest.raises(StoreClosed):
            await inbox_of(node).handle([delivery()], work)


class Watching:
    """An observer that keeps what it hears, and in which operation."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Detail]] = []
        self._open: list[str] = []

    @contextmanager
    def operation(self, name: str, *, node: str) -> Iterator[str]:
        self._open.append(name)
        yield "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" if name == "handle" else ""
        self._open.pop()

    def observe(self, detail: Detail) -> None:
        self.heard.append(("/".join(self._open), detail))


async def test_a_batch_is_linked_to_the_traces_it_came_from_and_its_events_carry_the_handlers() -> None:
    watching = Watching()

    async def work(attempt: Attempt) -> Sequence[Draft]:
        return [Draft("invoices", "invoice.written", "o-1")]

    traces = [f"00-{number:032x}-00f067aa0ba902b7-01" for number in (1, 2, 2)]
    async with SyncNode("billing", store="memory:", observer=watching) as node:
        await inbox_of(node).handle([delivery(str(n), trace=each) for n, each in enumerate(traces)], work)
        (invoice,) = await written(node, "invoices")
    (place, received), (_, handled) = (
        next(each for each in watching.heard if isinstance(each[1], kind)) for kind in (Received, Handled)
    )
    assert place == "receive"
    assert isinstance(received, Received)
    assert isinstance(handled, Handled)
    assert (list(received.traceparents), received.traces, received.stored) == (traces[:2], 2, 3)
    assert (handled.events, handled.error) == (3, "")
    assert invoice.traceparent.endswith("b7ad6b7169203331-01")
