"""The Redis store beside a bare script on the same server, with the same persistence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from bench import drafts
from bench.measure import Case, Row, Scale, Skipped, compare, timed
from bench.nodes import fill
from synckit_streams import SyncNode
from synckit_streams.errors import MissingDependency
from synckit_streams.stores.kv_keys import EVENT
from synckit_streams.testing import RedisServer

# What a batch takes at least: each id is taken once, each event is put behind the log, and the reader's offset moves.
BARE = """
local last = tonumber(redis.call('HGET', KEYS[3], 'last') or 0)
for at = 3, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[1], ARGV[at], last + 1) == 1 then
    last = last + 1
    redis.call('RPUSH', KEYS[2], ARGV[at + 1])
  end
end
redis.call('HSET', KEYS[3], 'last', last, ARGV[1], ARGV[2])
return last
"""


def cases() -> list[Case]:
    """The rows about Redis as a store."""
    return [
        Case("redis-append", "append_many of dicts, against a bare Lua batch of the same bytes", against_script),
    ]


@contextmanager
def server(directory: Path) -> Iterator[RedisServer]:
    """A real one, whose commits are on the disk before they are answered.

    Raises:
        Skipped: there is none on this machine.
    """
    try:
        made = RedisServer(directory / "redis", appendfsync="always")
    except MissingDependency as error:
        raise Skipped(str(error)) from error
    made.directory.mkdir()
    with made:
        yield made


def append_rate(url: str, events: int) -> float:
    """Events a second through the public API, a thousand a call, from dicts."""

    async def run() -> float:
        async with SyncNode("a", store=url, topics=[drafts.TOPIC]) as target:
            return await fill(target, events)

    return asyncio.run(run())


def against_script(scale: Scale, directory: Path) -> Row:
    """The same events in the same bytes, as durable; ids and bytes are ready before its watch runs."""
    with server(directory) as running, redis.Redis.from_url(running.url) as client:
        append_rate(running.url, scale.events)
        ready = list(batches(client))

        def ours(place: Path) -> float:
            client.flushall()
            return append_rate(running.url, scale.events)

        def other(place: Path) -> float:
            client.flushall()
            script = client.register_script(BARE)
            last = 0
            with timed() as watch:
                for arguments in ready:
                    last = script(keys=["{bare}ids", "{bare}log", "{bare}offsets"], args=arguments)
            assert last == scale.events
            return scale.events / watch.seconds

        return compare("redis-append", ours, other, wanted=0.6, unit="events/s", scale=scale, directory=directory)


def batches(client: Any) -> Iterator[list[Any]]:
    """The arguments of the script for each call: what our store has in its log."""
    (rows,) = client.keys("sk-store:*}")
    log = sorted(pair for pair in client.hgetall(rows).items() if pair[0][:1] == EVENT)
    for start in range(0, len(log), drafts.CALL_EVENTS):
        arguments: list[Any] = ["reader", start]
        for number, (_, value) in enumerate(log[start : start + drafts.CALL_EVENTS], start):
            arguments += (f"{number:036x}", value)
        yield arguments
