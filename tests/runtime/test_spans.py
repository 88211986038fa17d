"""Pages of a projection share a transaction: an effect and a place are one thing, however many pages went into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from synckit_streams import App, Batch, Draft, Projection, ProjectionFailed, SyncNode
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.projector import PAGE_EVENTS

EVENTS = 2_500


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shop.db'}"


async def fill(url: str, events: int = EVENTS) -> None:
    async with SyncNode("shop", store=url) as node:
        drafts = [Draft("orders", "order.placed", f"o-{number % 7}", {"number": number}) for number in range(events)]
        await node.append_many(drafts)


async def empty(tx: Transaction) -> None:
    await tx.execute("DROP TABLE IF EXISTS seen")
    await tx.execute("CREATE TABLE seen (number INTEGER)")


async def enter(batch: Batch, tx: Transaction) -> None:
    await tx.execute_many("INSERT INTO seen VALUES (?)", [(each.event.data["number"],) for each in batch.stored])


async def seen(node: SyncNode) -> list[int]:
    async with node.store.transaction() as tx:
        return [number for (number,) in await tx.execute("SELECT number FROM seen ORDER BY rowid")]


def projected(function: Callable[..., Awaitable[None]], batch: int, *, streamed: bool) -> Sequence[Projection]:
    """The projection of one app."""
    app = App("shop", store="memory:")
    app.projection("seen", topics=["orders"], batch=batch, streamed=streamed, reset=empty)(function)
    return app.projections


async def test_a_streamed_one_gets_the_pages_of_a_transaction(url: str) -> None:
    """Never more than a page at once, never more events than it asked for, and each of them once."""
    await fill(url)
    calls: list[list[int]] = []

    async def stream(pages: AsyncIterator[Batch], tx: Transaction) -> None:
        calls.append([])
        async for page in pages:
            calls[-1].append(len(page.stored))
            await enter(page, tx)

    async with SyncNode("shop", store=url, projections=projected(stream, 2_000, streamed=True)) as node:
        assert await node.project() == EVENTS
        assert await seen(node) == list(range(EVENTS))
        assert await node.project() == 0
    assert [sum(call) for call in calls] == [2_000, 500]
    assert max(max(call) for call in calls) <= PAGE_EVENTS


async def test_who_leaves_pages_gets_them_with_the_next_call(url: str) -> None:
    """What was not taken was not applied."""
    await fill(url)
    calls = 0

    async def first_only(pages: AsyncIterator[Batch], tx: Transaction) -> None:
        nonlocal calls
        calls += 1
        await enter(await anext(pages), tx)

    async with SyncNode("shop", store=url, projections=projected(first_only, EVENTS, streamed=True)) as node:
        assert await node.project() == EVENTS
        assert await seen(node) == list(range(EVENTS))
    assert calls > 1


async def test_who_takes_no_page_has_failed(url: str) -> None:
    """It would pass over what it never saw."""
    await fill(url)

    async def blind(pages: AsyncIterator[Batch], tx: Transaction) -> None:
        """Forgets its pages."""

    async with SyncNode("shop", store=url, projections=projected(blind, EVENTS, streamed=True)) as node:
        with pytest.raises(ProjectionFailed, match="read no page") as raised:
            await node.project()
        assert "async for" in raised.value.hint


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_fails_on_a_later_page_undoes_all_of_its_transaction(url: str, streamed: bool) -> None:
    """And when it succeeds, everything is there once, and in order."""
    await fill(url)
    mended = False

    async def fails(page: Batch, tx: Transaction) -> None:
        await enter(page, tx)
        if not mended and any(each.event.data["number"] == 2_222 for each in page.stored):
            raise ValueError("2222")

    async def stream(pages: AsyncIterator[Batch], tx: Transaction) -> None:
        async for page in pages:
            await fails(page, tx)

    function, batch = (stream, 2_300) if streamed else (fails, 100)
    async with SyncNode("shop", store=url, projections=projected(function, batch, streamed=streamed)) as node:
        for _ in range(3):
            with pytest.raises(ProjectionFailed, match="2222"):
                await node.project()
        assert await seen(node) == list(range(len(await seen(node))))
        mended = True
        await node.project()
        assert await seen(node) == list(range(EVENTS))


async def test_a_page_that_fails_does_not_hold_up_those_before_it(url: str) -> None:
    """They shared its transaction at first; tried again, each page has one of its own."""
    await fill(url)

    async def fails(page: Batch, tx: Transaction) -> None:
        await enter(page, tx)
        if any(each.event.data["number"] == 2_222 for each in page.stored):
            raise ValueError("2222")

    async with SyncNode("shop", store=url, projections=projected(fails, 100, streamed=False)) as node:
        with pytest.raises(ProjectionFailed):
            await node.project()
        # The length of a page is learned, so where the guilty one begins is not said.
        assert 2_222 - 100 < len(await seen(node)) <= 2_222
