"""A broker that does what brokers do on their worst day, and the connector to it.

The log is lists in virtual time. The `Weather` says how often a message is dropped, doubled, held back or damaged, and
how long a call takes; a `Net` is one machine's way to the broker, which may be cut in one direction or in both. The
log can be put back to an earlier time, with its identity kept, be made anew, or lose its beginning.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from random import Random
from typing import NamedTuple
from zlib import crc32

from synckit_streams.errors import Timeout, Unavailable
from synckit_streams.ports.absent import WithoutGroups, WithoutTimes, WithoutTrimming
from synckit_streams.ports.connector import Announced, Bounds, Delivery, Features, Message
from synckit_streams.testing.simulation.disk import Dead
from synckit_streams.testing.simulation.loop import Life
from synckit_streams.testing.simulation.weather import Net, Weather, damaged

URL = "sim://broker"
ANSWER_S = 2.0
"""How long a call waits for an answer that was lost."""

Note = Callable[[str, str], None]
"""Writes into the timeline: (who, what)."""


class Entry(NamedTuple):
    """One message in the log."""

    message: Message
    at_s: float


class _Topic:
    def __init__(self, identity: str, partitions: int) -> None:
        self.identity = identity
        self.epoch = 0
        self.partitions: list[list[Entry]] = [[] for _ in range(partitions)]
        self.trimmed = [0] * partitions
        """How much of the beginning of each partition nobody can read any more."""
        self.digests: dict[str, list[tuple[bytes, float]]] = {}
        self.readers: dict[_Reader, None] = {}
        self.listeners: dict[_Listener, None] = {}


class SimBroker:
    """See the module's text.

    Args:
        dice: Its own.
        partitions: Of every topic.
        note: The timeline.
        url: Of its own, if there are several.
    """

    def __init__(self, dice: Random, partitions: int, note: Note, url: str = URL) -> None:
        self.url = url
        self.dice = dice
        self.partitions = partitions
        self.weather = Weather()
        self.published: Counter[str] = Counter()
        """Messages that reached the broker, per topic."""
        self.struck: Counter[str] = Counter()
        """How often each kind of weather struck."""
        self.lose = 0
        """How many of the next messages are lost."""
        self.taken: Callable[[str], None] = lambda who: None
        """Called when messages of somebody have been stored, before he is answered."""
        self.skipped = 0
        """How often a reader did not get a message that is in the log."""
        self.late = 0
        """Messages that are held back just now."""
        self._note = note
        self._topics: dict[str, _Topic] = {}
        self._pending: set[asyncio.Task[None]] = set()

    def topic(self, name: str) -> _Topic:
        """The log of a topic, made when it is first asked for."""
        found = self._topics.get(name)
        if found is None:
            found = self._topics[name] = _Topic(self._identity(), self.partitions)
        return found

    def _identity(self) -> str:
        return f"log-{self.dice.getrandbits(32):08x}"

    # --- what happens to it ------------------------------------------------------------------------------------------

    def rewind(self, to_s: float) -> None:
        """Put every log, and the digests beside it, back to how they were at a time."""
        for topic in self._topics.values():
            topic.partitions = [[entry for entry in log if entry.at_s <= to_s] for log in topic.partitions]
            topic.trimmed = [min(each, len(log)) for each, log in zip(topic.trimmed, topic.partitions, strict=True)]
            for node, said in list(topic.digests.items()):
                topic.digests[node] = [each for each in said if each[1] <= to_s]
                if not topic.digests[node]:
                    del topic.digests[node]
            self._cut(topic)

    def reset(self) -> None:
        """Delete every log and make it anew, empty, with another identity."""
        for topic in self._topics.values():
            topic.identity = self._identity()
            topic.partitions = [[] for _ in topic.partitions]
            topic.trimmed = [0 for _ in topic.partitions]
            topic.digests = {}
            self._cut(topic)

    def trim(self, left: int) -> None:
        """Keep only so many of the last messages of each partition, as retention does."""
        for topic in self._topics.values():
            topic.trimmed = [max(0, len(log) - left) for log in topic.partitions]

    def _cut(self, topic: _Topic) -> None:
        topic.epoch += 1
        for each in (*topic.readers, *topic.listeners):
            each.bell.set()

    def take(self, name: str, messages: Sequence[Message], who: str) -> dict[int, int]:
        """Store messages as the weather has it; gives where each partition ends then."""
        topic, dice, weather = self.topic(name), self.dice, self.weather
        self.published[name] += len(messages)
        touched: set[int] = set()
        for message in messages:
            number = crc32(message.partition_key.encode()) % self.partitions
            touched.add(number)
            if self.lose or dice.random() < weather.drop:
                self.lose -= self.lose > 0
                self._strike("drop", who, message)
                continue
            if dice.random() < weather.poison:
                self._strike("poison", who, message)
                message = damaged(message, dice)
            if dice.random() < weather.reorder:
                self._strike("reorder", who, message)
                self._hold_back(topic, number, message, dice.uniform(0.05, 3.0))
            else:
                self._put(topic, number, message)
            if dice.random() < weather.duplicate:
                self._strike("duplicate", who, message)
                self._hold_back(topic, number, message, dice.choice((0.0, dice.uniform(0.0, 5.0))))
        self.taken(who)
        return {number: len(topic.partitions[number]) for number in sorted(touched)}

    def _strike(self, kind: str, who: str, message: Message) -> None:
        self.struck[kind] += 1
        self._note("broker", f"{kind} of {who}'s {message.id[:8]}")

    def _put(self, topic: _Topic, number: int, message: Message) -> None:
        now = asyncio.get_running_loop().time()
        topic.partitions[number].append(Entry(message, now))
        for reader in topic.readers:
            reader.bell.set()

    def _hold_back(self, topic: _Topic, number: int, message: Message, delay_s: float) -> None:
        async def later() -> None:
            await asyncio.sleep(delay_s)
            self.late -= 1
            self._put(topic, number, message)

        self.late += 1
        # In a context of its own: the message is under way, whatever becomes of the process that sent it.
        task = asyncio.get_running_loop().create_task(later(), context=Context())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def junk(self, name: str) -> None:
        """Somebody else's message in our log."""
        topic, dice = self.topic(name), self.dice
        message = Message(f"junk-{dice.getrandbits(32):08x}", "junk", {"content-type": "text/plain"}, b"\xff\x00junk")
        self._put(topic, dice.randrange(self.partitions), message)

    def say(self, name: str, node: str, body: bytes) -> None:
        """Keep a node's digest, and tell whoever listens."""
        topic = self.topic(name)
        now = asyncio.get_running_loop().time()
        if body:
            said = topic.digests.setdefault(node, [])
            said.append((body, now))
            del said[:-8]
        else:
            topic.digests.pop(node, None)
        for listener in topic.listeners:
            if self.dice.random() < self.weather.drop:
                continue
            listener.tell(Announced(node, body, 0.0))


class SimConnector(WithoutGroups, WithoutTimes, WithoutTrimming):
    """A connector to the simulated broker; see `synckit_streams.ports.connector.Connector`.

    Args:
        broker: The one there is.
        net: The machine's way to it.
        life: Of the process that has it; it does nothing when that is over.
        dice: Its own.
    """

    def __init__(self, broker: SimBroker, net: Net, life: Life, dice: Random) -> None:
        self.url = broker.url
        self._broker = broker
        self._net = net
        self._life = life
        self._dice = dice
        self._readers: dict[_Reader | _Listener, None] = {}

    @property
    def features(self) -> Features:
        """Ordered, replayable, with partitions."""
        return Features(partitions=self._broker.partitions)

    def check(self) -> None:
        """That the process lives."""
        if self._life.over:
            raise Dead

    async def _go(self) -> None:
        """The way there."""
        self.check()
        net = self._net
        if not (net.out or net.back):
            await asyncio.sleep(0.01)
            raise Unavailable("the network is down")
        await asyncio.sleep(self._dice.uniform(0.1, 1.0) * self._broker.weather.latency_s)
        self.check()
        if not net.out:
            await asyncio.sleep(ANSWER_S)
            raise Timeout("no answer")

    async def _come(self) -> None:
        """The way back."""
        await asyncio.sleep(self._dice.uniform(0.1, 1.0) * self._broker.weather.latency_s)
        self.check()
        if not self._net.back:
            await asyncio.sleep(ANSWER_S)
            raise Timeout("no answer")

    async def open(self) -> None:
        """See `Connector`."""
        await self._go()
        await self._come()

    async def close(self) -> None:
        """See `Connector`."""
        for each in list(self._readers):
            each.end()

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector`."""
        await self._go()
        log = self._broker.topic(topic)
        found = {
            number: Bounds(log.identity, log.trimmed[number] + 1, len(each) + 1)
            for number, each in enumerate(log.partitions)
        }
        await self._come()
        return found

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector`."""
        await self._go()
        log = self._broker.topic(topic)
        entries = log.partitions[partition]
        found = entries[position - 1].message if log.trimmed[partition] < position <= len(entries) else None
        await self._come()
        return found

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector`."""
        await self._go()
        ends = self._broker.take(topic, messages, self._life.name)
        await self._come()
        return ends

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector`."""
        await self._go()
        reader = _Reader(self, self._broker, self._net, topic, start, batch_max, self._dice)
        self._readers[reader] = None
        try:
            yield reader
        finally:
            reader.leave()
            self._readers.pop(reader, None)

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector`."""
        await self._go()
        if self._broker.weather.digests:
            self._broker.say(topic, node, body)
        await self._come()

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector`."""
        await self._go()
        listener = _Listener(self, self._broker, self._net, topic)
        self._readers[listener] = None
        try:
            yield listener
        finally:
            listener.leave()
            self._readers.pop(listener, None)


class _Ear:
    """What a reader and a listener share: a bell, and the net by which it is heard."""

    def __init__(self, connector: SimConnector, broker: SimBroker, net: Net, topic: str) -> None:
        self.bell = asyncio.Event()
        self._connector = connector
        self._broker = broker
        self._net = net
        self._topic = broker.topic(topic)
        self._epoch = self._topic.epoch
        self._ended = False
        net.changed.add(self.bell)

    def end(self) -> None:
        self._ended = True
        self.bell.set()

    def leave(self) -> None:
        self.end()
        self._net.changed.discard(self.bell)

    def hears(self) -> bool:
        """Whether anything can come just now; raises when nothing will ever come again."""
        self._connector.check()
        if self._topic.epoch != self._epoch:
            raise Unavailable("the broker was restarted")
        if not (self._net.out or self._net.back):
            raise Unavailable("the network is down")
        return self._net.back


class _Reader(_Ear):
    def __init__(
        self,
        connector: SimConnector,
        broker: SimBroker,
        net: Net,
        topic: str,
        start: Mapping[int, int],
        batch_max: int,
        dice: Random,
    ) -> None:
        super().__init__(connector, broker, net, topic)
        self._read = [start.get(number, 0) for number in range(broker.partitions)]
        self._batch_max = batch_max
        self._dice = dice
        self._turn = 0
        self._topic.readers[self] = None

    def leave(self) -> None:
        super().leave()
        self._topic.readers.pop(self, None)

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        while not self._ended:
            self.bell.clear()
            if self.hears() and (batch := self._next()):
                busy = len(batch) / self._net.rate if self._net.rate else 0.0
                await asyncio.sleep(busy + self._dice.uniform(0.1, 1.0) * self._broker.weather.latency_s)
                if self.hears():
                    self._read[batch[-1].partition] = batch[-1].position
                    return batch
                continue  # it was lost on the way; it is read again when the way is open
            await self.bell.wait()
        raise StopAsyncIteration

    def _next(self) -> Sequence[Delivery]:
        most = max(1, int(self._net.rate / 10)) if self._net.rate else self._batch_max
        for _ in self._read:
            number = self._turn
            self._turn = (self._turn + 1) % len(self._read)
            start = max(self._read[number], self._topic.trimmed[number])
            entries = self._topic.partitions[number][start : start + most]
            if entries:
                skip = self._broker.weather.skip
                batch = [
                    Delivery(entry.message, number, position)
                    for position, entry in enumerate(entries, start + 1)
                    if not skip or self._dice.random() >= skip
                ]
                self._broker.skipped += len(entries) - len(batch)
                if not batch:  # not even the last one: it is skipped once something comes behind it
                    continue
                return batch
        return ()


class _Listener(_Ear):
    def __init__(self, connector: SimConnector, broker: SimBroker, net: Net, topic: str) -> None:
        super().__init__(connector, broker, net, topic)
        now = asyncio.get_running_loop().time()
        self._pending = {
            node: Announced(node, said[-1][0], now - said[-1][1]) for node, said in self._topic.digests.items()
        }
        self._caught_up = False
        self._topic.listeners[self] = None

    def leave(self) -> None:
        super().leave()
        self._topic.listeners.pop(self, None)

    def tell(self, announced: Announced) -> None:
        if self._net.back:
            self._pending.pop(announced.node, None)
            self._pending[announced.node] = announced
            self.bell.set()

    def __aiter__(self) -> _Listener:
        return self

    async def __anext__(self) -> Announced:
        while not self._ended:
            self.bell.clear()
            if self.hears():
                if self._pending:
                    self._caught_up = False
                    return self._pending.pop(next(iter(self._pending)))
                if not self._caught_up:
                    self._caught_up = True
                    return Announced("", b"", 0.0)
            await self.bell.wait()
        raise StopAsyncIteration
