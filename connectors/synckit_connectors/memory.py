"""The reference connector: a broker in this process, whose every fault can be had on demand.

`memory://NAME` is one broker a name for the whole process. It is there as long as a connector is *on* it: from its
construction until it is closed or thrown away. So nodes that are built together share the log, even when they are
opened one after the other. When the last one leaves, log, digests and faults are gone.

`memory_broker(NAME)` is the switchboard for tests: it takes the broker down, loses, doubles and delays messages, and
puts the log back to what it was, which is what a server does whose disk was restored. The broker is in `memory_server`.
"""

from __future__ import annotations

import asyncio
import re
import time
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from synckit_connectors.memory_server import (
    Bell,
    Group,
    MemoryBroker,
    leave,
    memory_broker,
    registry_lock,
    thrown_away,
    tokens,
)
from synckit_streams.errors import ConfigError, ConnectorError, Rejected, TooLarge, Unavailable
from synckit_streams.ports.connector import (
    BATCHES_HELD_MAX,
    ID_CHARS_MAX,
    Announced,
    Bounds,
    Delivery,
    Features,
    Member,
    Message,
    Progress,
)

__all__ = ["MemoryBroker", "MemoryConnector", "memory_broker"]

PARTITIONS_MAX = 256
BYTES_MAX = 8 * 1024 * 1024
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HEADER_OVERHEAD_BYTES = 4
"""What a header costs beside its name and value on most wires: a colon, a space and a line end."""

GOOD_NAMES_MAX = 1_000
ACK_WAIT_S = 30.0


class MemoryConnector:
    """A connector to the broker of a name in this process.

    Args:
        url: `memory://NAME`, with any of the options below as its query.
        partitions: How many a topic has, 1 to 256; the first connector of a name decides, the default is 1.
        client: A name for this connector, by which a fault can pick it.
        bytes_max: Largest message, headers included.
        ack_wait_s: After so long a group delivers again what was not acknowledged.

    Raises:
        ConfigError: no name, an unknown option, or another number of partitions than the name already has.
    """

    partitions: int | None = None
    client: str = ""
    bytes_max: int = BYTES_MAX

    def __init__(
        self,
        url: str,
        *,
        partitions: int | None = None,
        client: str | None = None,
        bytes_max: int | None = None,
        ack_wait_s: float | None = None,
    ) -> None:
        name, options = _read(url)
        self.url = url
        self.name = name
        if partitions is None:
            partitions = _number(options.get("partitions"), "partitions")
        if partitions is None:
            partitions = self.partitions
        if partitions is not None and not 1 <= partitions <= PARTITIONS_MAX:
            raise ConfigError(f"partitions={partitions}: from 1 to {PARTITIONS_MAX} are possible")
        self.client = options.get("client", self.client) if client is None else client
        if bytes_max is None:
            bytes_max = _number(options.get("bytes_max"), "bytes_max")
        self.bytes_max = self.bytes_max if bytes_max is None else bytes_max
        self.ack_wait_s = _seconds(options.get("ack_wait_s"), "ack_wait_s") if ack_wait_s is None else ack_wait_s
        self._asked_partitions = partitions
        self._opened = False
        self._broker: MemoryBroker | None = None
        self._readers: set[_Reader | _Member | _Listener] = set()
        self._join()

    @staticmethod
    def faults(name: str) -> MemoryBroker:
        """The switchboard for the faults of `memory://NAME`; the same as `memory_broker(name)`."""
        return memory_broker(name)

    @property
    def features(self) -> Features:
        """Everything but durable, since it ends with the process."""
        partitions = self._broker.partitions if self._broker else self._asked_partitions or 1
        return Features(
            durable=False,
            times=True,
            groups=True,
            taps=True,
            trims=True,
            delay=True,
            bytes_max=self.bytes_max,
            partitions=partitions,
        )

    async def open(self) -> None:
        """See `Connector.open`. A closed connector may be opened again; the log may then be another one."""
        broker = self._broker or self._join()
        await self._pause(broker)
        with broker.up():
            self._opened = True

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        self._opened = False
        for reader in list(self._readers):
            reader.leave()
        if self._broker is not None:
            self._broker = None
            self._finalizer.detach()
            leave(*self._membership)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        broker = await self._enter()
        with broker.up():
            log = broker.topic(topic)
            return {number: Bounds(log.identity, part.first, part.end) for number, part in enumerate(log.partitions)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        broker = await self._enter()
        with broker.up():
            partitions = broker.topic(topic).partitions
            return partitions[partition].at(position) if 0 <= partition < len(partitions) else None

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`. All of them are stored, or none."""
        for message in messages:
            self._check(message)
        broker = await self._enter()
        return broker.store(topic, messages) if messages else {}

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`."""
        broker = await self._enter()
        with broker.up():
            reader = _Reader(broker, topic, self.client, start, batch_max)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.leave()

    @asynccontextmanager
    async def join(self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int) -> AsyncIterator[Member]:
        """See `Connector.join`."""
        async with self._joined(await self._enter(), topic, group, start, batch_max) as member:
            yield member

    @asynccontextmanager
    async def tap(self, source: str, *, group: str, batch_max: int, at_ms: int | None = None) -> AsyncIterator[Member]:
        """See `Connector.tap`. A source is a topic: here there are no others."""
        broker = await self._enter()
        with broker.up():
            log = broker.log_of(source)
            if log is None:
                raise Rejected(f"there is no topic {source!r} on {self.url}", hint="send something there first")
            start = {} if at_ms is None else {number: each.before(at_ms) for number, each in enumerate(log.partitions)}
        async with self._joined(broker, source, f"tap {group}", start, batch_max) as member:
            member.foreign = True
            yield member

    @asynccontextmanager
    async def _joined(
        self, broker: MemoryBroker, topic: str, group: str, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[_Member]:
        with broker.up():
            member = _Member(broker, topic, self.client, batch_max)
            member.join(group, start, self.ack_wait_s)
        self._readers.add(member)
        try:
            yield member
        finally:
            self._readers.discard(member)
            member.leave()

    async def progress(self, topic: str, *, group: str) -> Progress:
        """See `Connector.progress`."""
        broker = await self._enter()
        with broker.up():
            log = broker.topic(topic)
            return (log.groups.get(group) or Group(log.partitions, {})).progress()

    async def find(self, topic: str, *, at_ms: int) -> Mapping[int, int]:
        """See `Connector.find`."""
        broker = await self._enter()
        with broker.up():
            return {number: each.before(at_ms) for number, each in enumerate(broker.topic(topic).partitions)}

    async def trim(self, topic: str, *, below: Mapping[int, int]) -> None:
        """See `Connector.trim`."""
        broker = await self._enter()
        with broker.up():
            for number, position in below.items():
                groups = broker.topic(topic).groups.values()
                done = [each.progress().acknowledged[number] for each in groups]
                broker.trim(topic, max(min([position, *(each + 1 for each in done)]), 0), partition=number)

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`."""
        if len(body) > self.bytes_max:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.url} takes {self.bytes_max}")
        (await self._enter()).announce(topic, node, body)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`. A slow listener misses digests that newer ones of the same node replaced."""
        broker = await self._enter()
        with broker.up():
            listener = _Listener(broker, topic)
        self._readers.add(listener)
        try:
            yield listener
        finally:
            self._readers.discard(listener)
            listener.leave()

    def _join(self) -> MemoryBroker:
        # Under the registry's lock, so that the last one cannot leave between finding the broker and joining it.
        with registry_lock:
            broker = memory_broker(self.name)
            self._membership = (broker, next(tokens))
            broker.enter(self._membership[1], self._asked_partitions)
            self._finalizer = weakref.finalize(self, thrown_away.append, self._membership)
            self._finalizer.atexit = False
            self._broker = broker
            return broker

    async def _enter(self) -> MemoryBroker:
        broker = self._broker
        if broker is None or not self._opened:
            raise ConnectorError(
                f"{self.url} is not open", hint="call open() first, and nothing but open() after close()"
            )
        await self._pause(broker)
        return broker

    async def _pause(self, broker: MemoryBroker) -> None:
        # Also without a delay: a caller in a loop must not keep the event loop to itself.
        await asyncio.sleep(broker.delay_s)

    def _check(self, message: Message) -> None:
        # As strict as any broker's wire, so that what runs here runs there.
        headers = message.headers
        text = "".join(headers.values())
        told = message.id + text
        names = tuple(headers)
        names_size = _good_names.get(names, 0)
        if not (names_size and told.isascii() and told.isprintable() and " " not in told):
            _check_id(message.id)
            names_size = _check_headers(message)  # one by one
            if len(_good_names) < GOOD_NAMES_MAX:
                _good_names[names] = names_size
        if len(message.id) > ID_CHARS_MAX:
            _check_id(message.id)
        size = len(message.body) + len(text) + names_size
        if size > self.bytes_max:
            raise TooLarge(f"message {message.id!r} has {size} bytes; {self.url} takes {self.bytes_max}")


_good_names: dict[tuple[str, ...], int] = {}
"""The header names of messages that passed, and how many bytes they take."""


def _check_id(id: str) -> None:
    if len(id) > ID_CHARS_MAX or not _carried(id):
        raise Rejected(
            f"message id {id[:ID_CHARS_MAX]!r} is one that not every broker can carry",
            hint=f"at most {ID_CHARS_MAX} characters of printable ASCII without blanks around them",
        )


def _carried(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def _check_headers(message: Message) -> int:
    size = 0
    for name, value in message.headers.items():
        if not _carried(value) or not HEADER_NAME.fullmatch(name):
            raise Rejected(
                f"message {message.id!r} has a header {name!r} that not every broker can carry",
                hint="a name of letters, digits and -._, a value in printable ASCII without blanks around it",
            )
        size += len(name) + HEADER_OVERHEAD_BYTES
    return size


class _Waiting:
    """An iterator of batches, that asks the log, and waits for the bell when there is nothing."""

    def __init__(self, broker: MemoryBroker, topic: str, client: str, batch_max: int) -> None:
        self._broker = broker
        self._topic = topic
        self._client = client
        self._batch_max = max(batch_max, 1)
        self._log = broker.topic(topic)
        self._epoch = self._log.epoch
        self._ended = False
        self._bell = Bell()
        self._log.readers.add(self._bell)

    async def __anext__(self) -> Sequence[Delivery]:
        await asyncio.sleep(self._broker.delay_s)
        while not self._ended:
            with self._broker.up():
                if self._log.epoch != self._epoch:
                    raise Unavailable(f"the log of {self._topic!r} was put back or made anew: look at its bounds again")
                batch, patience_s = self._next()
            if batch:
                return batch
            await self._bell.wait(patience_s)
        raise StopAsyncIteration

    def _next(self) -> tuple[Sequence[Delivery], float | None]:
        """A batch, or for how long it makes no sense to ask again."""
        raise NotImplementedError

    def end(self) -> None:
        self._ended = True
        self._bell.ring()

    def leave(self) -> None:
        self.end()
        with self._broker.lock:
            self._log.readers.discard(self._bell)


class _Reader(_Waiting):
    """A position per partition."""

    def __init__(self, broker: MemoryBroker, topic: str, client: str, start: Mapping[int, int], batch_max: int) -> None:
        super().__init__(broker, topic, client, batch_max)
        self._read = [start.get(number, 0) for number in range(len(self._log.partitions))]
        self._turn = 0

    def __aiter__(self) -> _Reader:
        return self

    def _next(self) -> tuple[Sequence[Delivery], float | None]:
        for _ in self._read:
            number = self._turn
            # The next partition first at the next call, so that a busy one does not starve the others.
            self._turn = (self._turn + 1) % len(self._read)
            while batch := self._log.partitions[number].after(self._read[number], self._batch_max):
                self._read[number] = batch[-1].position
                if batch := self._broker.arrives(self._topic, batch, self._client):
                    return batch, None
        return (), None


class _Member(_Waiting):
    """Of a group; see `Member`."""

    foreign = False

    def join(self, group: str, start: Mapping[int, int], ack_wait_s: float) -> None:
        log = self._log
        self._group = log.groups.setdefault(group, Group(log.partitions, start))
        self._ack_wait_s = ack_wait_s

    def __aiter__(self) -> _Member:
        return self

    def _next(self) -> tuple[Sequence[Delivery], float | None]:
        if self._group.held(self) < BATCHES_HELD_MAX * self._batch_max:
            while batch := self._group.take(self, self._batch_max, self._ack_wait_s):
                if batch := self._broker.arrives(self._topic, batch, self._client):
                    return [self._named(each) for each in batch] if self.foreign else batch, None
        return (), self._group.due_in_s()

    def _named(self, delivery: Delivery) -> Delivery:
        """By where it lies."""
        place = f"{self._log.identity}/{delivery.partition}/{delivery.position}"
        return msgspec.structs.replace(delivery, message=msgspec.structs.replace(delivery.message, id=place))

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.ack`."""
        with self._broker.up():
            self._group.settle(self, deliveries)
            self._ring()

    async def term(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.term`."""
        await self.ack(deliveries)

    async def nack(self, deliveries: Sequence[Delivery], delay_s: float = 0.0) -> None:
        """See `Member.nack`."""
        with self._broker.up():
            self._group.put_off(self, deliveries, delay_s, keep=False)
            self._ring()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.extend`."""
        with self._broker.up():
            self._group.put_off(self, deliveries, self._ack_wait_s, keep=True)

    async def settled(self) -> bool:
        """See `Member.settled`."""
        with self._broker.up():
            return not self._group.progress().lag

    def leave(self) -> None:
        super().leave()
        with self._broker.lock:
            self._group.leave(self)
            self._ring()

    def _ring(self) -> None:
        for bell in self._log.readers:
            bell.ring()


class _Listener:
    """What one listener has not heard yet: the last digest of each node, so never more than there are nodes."""

    def __init__(self, broker: MemoryBroker, topic: str) -> None:
        self._broker = broker
        self._log = broker.topic(topic)
        now = time.monotonic()
        self._pending = {node: Announced(node, body, now - at) for node, (body, at) in self._log.digests.items()}
        self._caught_up = False
        self._ended = False
        self.bell = Bell()
        self._log.listeners.add(self)

    def tell(self, announced: Announced) -> None:
        # Taken out first, so that it is heard in the order in which it was said.
        self._pending.pop(announced.node, None)
        self._pending[announced.node] = announced
        self.bell.ring()

    def __aiter__(self) -> _Listener:
        return self

    async def __anext__(self) -> Announced:
        await asyncio.sleep(self._broker.delay_s)
        while not self._ended:
            with self._broker.up():
                if self._pending:
                    self._caught_up = False
                    return self._pending.pop(next(iter(self._pending)))
                if not self._caught_up:
                    self._caught_up = True
                    return Announced("", b"", 0.0)
            await self.bell.wait()
        raise StopAsyncIteration

    def end(self) -> None:
        self._ended = True
        self.bell.ring()

    def leave(self) -> None:
        self.end()
        with self._broker.lock:
            self._log.listeners.discard(self)


def _read(url: str) -> tuple[str, dict[str, str]]:
    """Name and options of a URL."""
    parts = urlsplit(url)
    name = unquote(parts.netloc + parts.path)
    if parts.scheme != "memory" or not name:
        raise ConfigError(f"{url!r} is not a URL of the memory connector", hint="write memory://NAME")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - {"partitions", "client", "bytes_max", "ack_wait_s"}):
        raise ConfigError(
            f"{url!r} has an unknown option {unknown[0]!r}", hint="partitions, client, bytes_max, ack_wait_s"
        )
    return name, options


def _number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{option}={text!r} is not a number")
    return int(text)


def _seconds(text: str | None, option: str) -> float:
    if text is None:
        return ACK_WAIT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise ConfigError(f"{option}={text!r} is no time in seconds", hint="from more than 0 to a day")
    return seconds
