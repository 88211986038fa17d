"""An app ends in time, whatever hangs, and says what it leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from synckit_streams import App, Draft, Event
from synckit_streams.cli.workers.lifetime import CLOSE_S
from synckit_streams.testing import FaultProxy
from tests.app.orders import placed


async def test_one_deadline_is_over_everything(
    own_nats_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that hears nothing, a hook that hangs and a silent broker: together they take no more than whoever
    supervises it allows. What it has not sent goes out at the next start."""
    caplog.set_level(logging.INFO)
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    called, go = asyncio.Event(), asyncio.Event()
    async with FaultProxy(own_nats_url) as proxy:
        app = App("shop", store=url, connectors=[proxy.url])

        @app.handler("orders")
        async def deaf(event: Event) -> None:
            called.set()
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    continue

        @app.on_shutdown
        async def hang() -> None:
            await asyncio.Event().wait()

        await app.start()
        await app.node.sync()
        proxy.freeze()
        await app.node.append_many([placed(n) for n in range(5)])
        await asyncio.wait_for(called.wait(), 10)
        began = time.monotonic()
        await app.stop(drain_s=0.5)
        took_s = time.monotonic() - began
        go.set()
    assert 0.5 < took_s < 0.5 + CLOSE_S
    said = "\n".join(caplog.messages)
    for part in (
        "synckit-group-shop is cut off after 0.5 s",
        "group shop leaves 5 events for its next start",
        "a hook did not end in time",
    ):
        assert part in said
    seen: list[str] = []
    again = App("shop", store=url, connectors=[own_nats_url])

    @again.handler("orders")
    async def note(event: Event) -> Draft | None:
        seen.append(event.aggregate_id)
        return None

    async with again, asyncio.timeout(20):
        while len(seen) < 5:  # noqa: ASYNC110 - a state, and no event
            await asyncio.sleep(0.01)
        assert (await again.node.sync()).complete


async def test_a_stop_with_nothing_to_do_takes_no_time(tmp_path: Path) -> None:
    """The seconds are for what needs them."""
    app = App("shop", store=f"sqlite:///{tmp_path / 'shop.db'}")

    @app.handler("orders")
    async def note(event: Event) -> None: ...

    await app.start()
    began = time.monotonic()
    await app.stop()
    assert time.monotonic() - began < 2
