"""From Kafka over JetStream to Redis, through one node that removes duplicates on the way."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench import drafts
from bench.measure import Case, Row, Scale, Skipped, settle
from bench.nodes import fill, node
from synckit_streams import SyncNode
from synckit_streams.errors import MissingDependency
from synckit_streams.testing.brokers import NatsServer, RedisServer
from synckit_streams.testing.kafka_server import KafkaServer

NAME = "bridge-kafka-jetstream-redis"
RATE_WANTED = 20_000.0


def cases() -> list[Case]:
    """The row about bridges."""
    return [Case(NAME, "one bridge over Kafka, JetStream and Redis, packed frames, against 20,000 events/s", bridge)]


def bridge(scale: Scale, directory: Path) -> Row:
    """What lies in Kafka's log goes into a SQLite store, and out of it into the two others."""
    with servers(directory) as urls:
        rates: list[float] = []
        for at in range(scale.rounds):
            place = directory / f"{NAME}-{at}"
            place.mkdir()
            settle()
            rates.append(asyncio.run(once(scale.events, urls, place)))
    rate = median(rates)
    return Row(NAME, rate, RATE_WANTED, rate / RATE_WANTED, 1.0, "events/s")


@contextmanager
def servers(directory: Path) -> Iterator[Sequence[str]]:
    """The three, each a process of its own; gives their URLs.

    Raises:
        Skipped: this machine lacks one of them.
    """
    with ExitStack() as stack:
        try:
            made = [kind(directory / kind.name) for kind in (KafkaServer, NatsServer, RedisServer)]
        except MissingDependency as error:
            raise Skipped(str(error)) from error
        yield [stack.enter_context(server).url for server in made]


async def once(events: int, urls: Sequence[str], place: Path) -> float:
    """The bridge's one meeting, from the first event read to the last one read back; gives events a second."""
    topic = f"{drafts.TOPIC}-{uuid.uuid4().hex[:8]}"
    url = f"sqlite:///{place / 'hub'}.db"
    async with node("a", place, urls[0], packing="batch", topic=topic) as a:
        await fill(a, events, topic)
        assert (await a.sync()).complete
        async with SyncNode("hub", store=url, connectors=urls, topics=[topic], packing="batch", bridge=True) as hub:
            started = time.perf_counter()
            result = await hub.sync()
            seconds = time.perf_counter() - started
            assert (result.complete, result.events_pulled, result.events_pushed) == (True, events, 2 * events), result
        for name, far in zip("bc", urls[1:], strict=True):
            async with node(name, place, far, packing="batch", topic=topic) as end:
                assert (await end.sync()).complete
                assert await end.digest(topic) == await a.digest(topic)
    return events / seconds
