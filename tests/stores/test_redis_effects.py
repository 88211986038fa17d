"""On a Redis server: transactions that append, and commits of any size."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
import redis

from synckit_streams.errors import StoreUnavailable
from synckit_streams.stores.redis_medium import commands_of
from synckit_streams.testing.store_contract import NOW_MS, audit, draft
from tests.stores.test_redis import opened, write


@pytest.mark.parametrize("noticed", [False, True])
async def test_a_block_in_which_the_server_was_emptied_writes_nothing(redis_url: str, noticed: bool) -> None:
    """What it has read is there no more, so what it made of it does not come there; also if that was noticed before
    its end. The next one goes on with what there is."""
    name = uuid.uuid4().hex
    async with opened(f"{redis_url}?name={name}", claim_s=0.2) as store:
        first = await write(store, 1)

        async def effect(*, lose: bool) -> Any:
            async with store.transaction() as tx:
                await tx.append([draft(data=2)], now_ms=NOW_MS)
                await tx.set_offset("handler", first.offset)
                if lose:
                    with redis.Redis.from_url(redis_url) as client:
                        client.delete(*client.keys(f"*{name}*"))
                    async with asyncio.timeout(20):
                        while noticed and not store.medium.moved:
                            await store.end()
            return tx.appended

        with pytest.raises(StoreUnavailable):
            await effect(lose=True)
        assert (await audit(store), await store.offset("handler")) == ([], None)
        result = await effect(lose=False)
        assert result.appended[0].event.origin != first.event.origin
        assert [each.event.data for each in await audit(store)] == [2]


def test_a_commit_of_any_size_is_made_of_commands_that_the_server_takes() -> None:
    """It takes about a million arguments; whoever forgets what he noted of more aggregates has more to delete."""
    gone = {b"t%d" % number: None for number in range(250_001)}
    commands, _ = commands_of(gone, ("rows", "order"), 0)
    assert max(len(command) for command in commands) == 2 + 100_000
    for verb in ("HDEL", "ZREM"):
        assert {key for command in commands if command[0] == verb for key in command[2:]} == set(gone)
    commands, _ = commands_of(dict.fromkeys(gone, b"x"), ("rows", "order"), 0)
    put = [command for command in commands if command[0] == "HSET"]
    assert {(key, value) for each in put for key, value in zip(each[2::2], each[3::2], strict=True)} == {
        (key, b"x") for key in gone
    }
