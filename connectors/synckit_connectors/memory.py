"""The reference connector: a broker in this process, whose every fault can be had on demand.

`memory://NAME` is one broker a name for the whole process. It is there as long as a connector is *on* it: from its
construction until it is closed or thrown away. So nodes that are built together share the log, even when they are
opened one after the other. When the last one leaves, log, digests and faults are gone.

A broker is lists behind a lock. Appending never waits for a reader: readers hold a position, not a queue, and are only
told that there is something new. That is why any event loop of any thread may use the same name at once.

`memory_broker(NAME)` is the switchboard for tests: it takes the broker down, loses, doubles and delays messages, and
puts the log back to what it was, which is what a server does whose disk was restored. When a log is put back or made
anew, readers are cut off with `Unavailable`, as a real server's restart would: they have to look at `bounds` again.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from urllib.parse import parse_qsl, unquote, urlsplit
from zlib import crc32

import msgspec

from synckit_streams.errors import ConfigError, ConnectorError, FeatureUnsupported, Rejected, TooLarge, Unavailable
from synckit_streams.ports.connector import ID_CHARS_MAX, Announced, Bounds, Delivery, Features, Lag, Message

PARTITIONS_MAX = 256
BYTES_MAX = 8 * 1024 * 1024
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HEADER_OVERHEAD_BYTES = 4
"""What a header costs beside its name and value on most wires: a colon, a space and a line end."""

GOOD_NAMES_MAX = 1_000

Where = Callable[[str, Message], bool]
"""Chooses messages for a fault: (topic, message) -> does it strike?"""


def everything(topic: str, message: Message) -> bool:
    """The `Where` that strikes always."""
    return True


class MemoryDelivery(msgspec.Struct, frozen=True, gc=False):
    """A message and where it lies. It knows nothing of who reads it, so all readers share one object."""

    message: Message
    partition: int
    position: int

    async def ack(self) -> None:
        """Nothing to do: without a group the reader keeps its own position."""

    async def nack(self, delay_s: float = 0.0) -> None:
        """Raises FeatureUnsupported: there are no groups."""
        raise _no_groups()

    async def term(self) -> None:
        """Raises FeatureUnsupported: there are no groups."""
        raise _no_groups()


class Fault:
    """A fault that strikes messages: how often it struck, how often it still may, and how to end it."""

    def __init__(self, kind: str, where: Where, times: int | None, reader: str | None) -> None:
        self.kind = kind
        self.where = where
        self.left = times
        self.reader = reader
        self.hits = 0

    def stop(self) -> None:
        """It strikes no more."""
        self.left = 0

    def strikes(self, topic: str, message: Message) -> bool:
        """Whether it strikes this message, which is then counted."""
        if self.left == 0 or not self.where(topic, message):
            return False
        self.hits += 1
        if self.left is not None:
            self.left -= 1
        return True


class _Partition:
    """Messages without a hole: the one at position p is `deliveries[p - first]`."""

    def __init__(self) -> None:
        self.first = 1
        self.deliveries: list[MemoryDelivery] = []

    @property
    def end(self) -> int:
        return self.first + len(self.deliveries)

    def at(self, position: int) -> Message | None:
        if self.first <= position < self.end:
            return self.deliveries[position - self.first].message
        return None

    def after(self, position: int, count_max: int) -> list[MemoryDelivery]:
        start = max(position + 1 - self.first, 0)
        return self.deliveries[start : start + count_max]


class _Topic:
    """One log with its partitions, the digests beside it, and who waits for news of either."""

    def __init__(self, partitions: int) -> None:
        self.identity = uuid.uuid4().hex
        self.epoch = 0
        """Grows when the log is put back or made anew; a reader of an older one is cut off."""
        self.partitions = [_Partition() for _ in range(partitions)]
        self.digests: dict[str, tuple[bytes, float]] = {}
        self.readers: set[_Bell] = set()
        self.listeners: set[_Listener] = set()


class _Bell:
    """Wakes one waiter on its own event loop, from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._rung = False

    def ring(self) -> None:
        # Once until it is heard: a loop that is slow to wake does not collect a call for every message.
        if not self._rung:
            self._rung = True
            with suppress(RuntimeError):  # its loop is closed: nobody is left to wake
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Return when it was rung since the last time. The caller looks for news *after* this, never before."""
        await self._event.wait()
        self._event.clear()
        self._rung = False


class MemoryBroker:
    """The broker behind one name, and the switchboard of its faults. Use it from any thread.

    Get it from `memory_broker(name)`; what is set holds until the last connector has left.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.partitions = 0
        """How many a topic has; 0 until the first connector says."""
        # Re-entrant, because the test's own `Where` runs inside and may look at the broker.
        self._lock = threading.RLock()
        self._topics: dict[str, _Topic] = {}
        self._members: set[int] = set()
        self._faults: list[Fault] = []
        self._down = False
        self._delay_s = 0.0

    # ------------------------------------------------------------------------------------------------ faults on demand

    @property
    def down(self) -> bool:
        """Whether every call raises `Unavailable`, and every reader and listener is cut off. Nothing is lost."""
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        with self._lock:
            self._down = down
            for topic in self._topics.values():
                _ring(topic)

    @property
    def delay_s(self) -> float:
        """How long each call, and each batch that is read, takes before anything happens; in seconds."""
        return self._delay_s

    @delay_s.setter
    def delay_s(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def drop(self, where: Where = everything, *, times: int | None = None, reader: str | None = None) -> Fault:
        """Lose messages.

        Args:
            where: Which ones.
            times: How many; None is until stopped.
            reader: None: acknowledged to the publisher, but never stored. The `client` of a connector
                (`memory://name?client=…`): stored, but not delivered to that one.
        """
        return self._add(Fault("drop", where, times, reader))

    def duplicate(self, where: Where = everything, *, times: int | None = None) -> Fault:
        """Store messages twice, one after the other."""
        return self._add(Fault("duplicate", where, times, None))

    def heal(self) -> None:
        """End every fault. What was lost, doubled or put back stays as it is."""
        with self._lock:
            self._faults.clear()
            self._delay_s = 0.0
            self.down = False

    def rewind(self, topic: str, position: int, *, partition: int = 0) -> None:
        """Put the log back to how it was when `position` was its last message; its identity does not change.

        What is written next gets the positions again that others had: the fault that length and identity alone miss.
        """
        with self._lock:
            log = self._topic(topic)
            part = log.partitions[partition]
            del part.deliveries[max(position + 1 - part.first, 0) :]
            part.first = min(part.first, position + 1)
            log.epoch += 1
            _ring(log)

    def recreate(self, topic: str) -> None:
        """Delete the log and make it anew: empty, with another identity. Digests stay."""
        with self._lock:
            log = self._topic(topic)
            log.identity = uuid.uuid4().hex
            log.partitions = [_Partition() for _ in log.partitions]
            log.epoch += 1
            _ring(log)

    def trim(self, topic: str, below: int, *, partition: int = 0) -> None:
        """Remove the messages below this position, as retention does."""
        with self._lock:
            part = self._topic(topic).partitions[partition]
            below = min(below, part.end)
            del part.deliveries[: max(below - part.first, 0)]
            part.first = max(part.first, below)

    def messages(self, topic: str, *, partition: int = 0) -> list[Message]:
        """What the log holds now, oldest first."""
        with self._lock:
            return [delivery.message for delivery in self._topic(topic).partitions[partition].deliveries]

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    # ------------------------------------------------------------------------------------- what the connectors call

    def _join(self, token: int, partitions: int | None) -> None:
        with self._lock:
            if not self.partitions:
                self.partitions = partitions or 1
            elif partitions and partitions != self.partitions:
                raise ConfigError(
                    f"memory://{self.name} has {self.partitions} partitions, not {partitions}",
                    hint="the first connector of a name decides: give all of them the same number, or only the first",
                )
            self._members.add(token)

    def _leave(self, token: int) -> bool:
        """True when that was the last one; all is forgotten then."""
        with self._lock:
            self._members.discard(token)
            if self._members:
                return False
            self._topics.clear()
            self.partitions = 0
            self.heal()
            return True

    @contextmanager
    def _up(self) -> Iterator[None]:
        with self._lock:
            if self._down:
                raise Unavailable(f"memory://{self.name} is down")
            yield

    def _topic(self, topic: str) -> _Topic:
        log = self._topics.get(topic)
        if log is None:
            log = self._topics[topic] = _Topic(self.partitions or 1)
        return log

    def _store(self, topic: str, messages: Sequence[Message]) -> dict[int, int]:
        with self._up():
            log = self._topic(topic)
            touched: set[int] = set()
            several = len(log.partitions)
            for message in messages:
                number = crc32(message.partition_key.encode()) % several if several > 1 else 0
                touched.add(number)
                part = log.partitions[number]
                for _ in range(self._copies(topic, message) if self._faults else 1):
                    part.deliveries.append(MemoryDelivery(message, number, part.end))
            _ring(log, listeners=False)
            return {number: log.partitions[number].end - 1 for number in touched}

    def _copies(self, topic: str, message: Message) -> int:
        copies = 1
        for fault in self._faults:
            if fault.reader is None and fault.strikes(topic, message):
                copies = 0 if fault.kind == "drop" else copies * 2
        return copies

    def _withheld(self, topic: str, delivery: MemoryDelivery, client: str) -> bool:
        return any(fault.reader == client and fault.strikes(topic, delivery.message) for fault in self._faults)

    def _announce(self, topic: str, node: str, body: bytes) -> None:
        with self._up():
            log = self._topic(topic)
            if body:
                log.digests[node] = (body, time.monotonic())
            else:
                log.digests.pop(node, None)
            for listener in log.listeners:
                listener.tell(Announced(node, body, 0.0))


def _ring(log: _Topic, *, listeners: bool = True) -> None:
    for bell in log.readers:
        bell.ring()
    if listeners:
        for listener in log.listeners:
            listener.bell.ring()


_registry_lock = threading.RLock()
_brokers: weakref.WeakValueDictionary[str, MemoryBroker] = weakref.WeakValueDictionary()
# A weak entry is found by whoever holds the object; these hold it for those who do not: from the first use of a name
# until its last connector leaves.
_in_use: dict[str, MemoryBroker] = {}
# Connectors thrown away unclosed. The collector may run anywhere, also inside our own locked sections, so a finalizer
# only leaves a note here, and the next one who passes clears up.
_thrown_away: deque[tuple[MemoryBroker, int]] = deque()


def memory_broker(name: str) -> MemoryBroker:
    """The broker behind `memory://NAME`, made if it is not there yet."""
    with _registry_lock:
        while _thrown_away:
            _leave(*_thrown_away.popleft())
        broker = _brokers.get(name)
        if broker is None:
            broker = _brokers[name] = MemoryBroker(name)
        _in_use[name] = broker
        return broker


_tokens = itertools.count(1)


def _leave(broker: MemoryBroker, token: int) -> None:
    with _registry_lock:
        if broker._leave(token):
            _in_use.pop(broker.name, None)


class MemoryConnector:
    """A connector to the broker of a name in this process.

    Args:
        url: `memory://NAME`, with any of the options below as its query.
        partitions: How many a topic has, 1 to 256; the first connector of a name decides, the default is 1.
        client: A name for this connector, by which a fault can pick it.
        bytes_max: Largest message, headers included.

    Raises:
        ConfigError: no name, an unknown option, or another number of partitions than the name already has.
    """

    partitions: int | None = None
    client: str = ""
    bytes_max: int = BYTES_MAX

    def __init__(
        self, url: str, *, partitions: int | None = None, client: str | None = None, bytes_max: int | None = None
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
        self._asked_partitions = partitions
        self._opened = False
        self._broker: MemoryBroker | None = None
        self._readers: set[_Reader | _Listener] = set()
        self._join()

    @staticmethod
    def faults(name: str) -> MemoryBroker:
        """The switchboard for the faults of `memory://NAME`; the same as `memory_broker(name)`."""
        return memory_broker(name)

    @property
    def features(self) -> Features:
        """Ordered and replayable; not durable, since it ends with the process."""
        partitions = self._broker.partitions if self._broker else self._asked_partitions or 1
        return Features(durable=False, bytes_max=self.bytes_max, partitions=partitions)

    async def open(self) -> None:
        """See `Connector.open`. A closed connector may be opened again; the log may then be another one."""
        broker = self._broker or self._join()
        await self._pause(broker)
        with broker._up():
            self._opened = True

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        self._opened = False
        for reader in list(self._readers):
            reader.end()
        if self._broker is not None:
            self._broker = None
            self._finalizer.detach()
            _leave(*self._membership)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        broker = await self._enter()
        with broker._up():
            log = broker._topic(topic)
            return {number: Bounds(log.identity, part.first, part.end) for number, part in enumerate(log.partitions)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        broker = await self._enter()
        with broker._up():
            partitions = broker._topic(topic).partitions
            return partitions[partition].at(position) if 0 <= partition < len(partitions) else None

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`. All of them are stored, or none."""
        for message in messages:
            self._check(message)
        broker = await self._enter()
        return broker._store(topic, messages) if messages else {}

    @asynccontextmanager
    async def receive(
        self, topic: str, *, group: str | None, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`."""
        if group is not None:
            raise _no_groups()
        broker = await self._enter()
        with broker._up():
            reader = _Reader(broker, topic, self.client, start, batch_max)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.leave()

    async def lag(self, topic: str, *, group: str | None, start: Mapping[int, int]) -> Lag:
        """See `Connector.lag`."""
        if group is not None:
            raise _no_groups()
        bounds = await self.bounds(topic)
        return Lag(sum(max(each.end - max(start.get(number, 0) + 1, each.first), 0) for number, each in bounds.items()))

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`."""
        if len(body) > self.bytes_max:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.url} takes {self.bytes_max}")
        (await self._enter())._announce(topic, node, body)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`. A slow listener misses digests that newer ones of the same node replaced."""
        broker = await self._enter()
        with broker._up():
            listener = _Listener(broker, topic)
        self._readers.add(listener)
        try:
            yield listener
        finally:
            self._readers.discard(listener)
            listener.leave()

    def _join(self) -> MemoryBroker:
        # Under the registry's lock, so that the last one cannot leave between finding the broker and joining it.
        with _registry_lock:
            broker = memory_broker(self.name)
            self._membership = (broker, next(_tokens))
            broker._join(self._membership[1], self._asked_partitions)
            self._finalizer = weakref.finalize(self, _thrown_away.append, self._membership)
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


class _Reader:
    """A position per partition. It asks the log, and waits for the bell when there is nothing beyond."""

    def __init__(self, broker: MemoryBroker, topic: str, client: str, start: Mapping[int, int], batch_max: int) -> None:
        self._broker = broker
        self._topic = topic
        self._client = client
        self._batch_max = max(batch_max, 1)
        self._log = broker._topic(topic)
        self._epoch = self._log.epoch
        self._read = [start.get(number, 0) for number in range(len(self._log.partitions))]
        self._turn = 0
        self._ended = False
        self._bell = _Bell()
        self._log.readers.add(self._bell)

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        await asyncio.sleep(self._broker.delay_s)
        while not self._ended:
            batch = self._next()
            if batch:
                return batch
            await self._bell.wait()
        raise StopAsyncIteration

    def _next(self) -> Sequence[Delivery]:
        broker = self._broker
        with broker._up():
            if self._log.epoch != self._epoch:
                raise Unavailable(f"the log of {self._topic!r} was put back or made anew: look at its bounds again")
            for _ in self._read:
                number = self._turn
                # The next partition first at the next call, so that a busy one does not starve the others.
                self._turn = (self._turn + 1) % len(self._read)
                while batch := self._log.partitions[number].after(self._read[number], self._batch_max):
                    self._read[number] = batch[-1].position
                    if broker._faults:
                        batch = [each for each in batch if not broker._withheld(self._topic, each, self._client)]
                    if batch:
                        return batch
            return ()

    def end(self) -> None:
        self._ended = True
        self._bell.ring()

    def leave(self) -> None:
        self.end()
        with self._broker._lock:
            self._log.readers.discard(self._bell)


class _Listener:
    """What one listener has not heard yet: the last digest of each node, so never more than there are nodes."""

    def __init__(self, broker: MemoryBroker, topic: str) -> None:
        self._broker = broker
        self._log = broker._topic(topic)
        now = time.monotonic()
        self._pending = {node: Announced(node, body, now - at) for node, (body, at) in self._log.digests.items()}
        self._caught_up = False
        self._ended = False
        self.bell = _Bell()
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
            with self._broker._up():
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
        with self._broker._lock:
            self._log.listeners.discard(self)


def _no_groups() -> FeatureUnsupported:
    return FeatureUnsupported("the memory connector has no groups", hint="receive with group=None")


def _read(url: str) -> tuple[str, dict[str, str]]:
    """Name and options of a URL."""
    parts = urlsplit(url)
    name = unquote(parts.netloc + parts.path)
    if parts.scheme != "memory" or not name:
        raise ConfigError(f"{url!r} is not a URL of the memory connector", hint="write memory://NAME")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - {"partitions", "client", "bytes_max"}):
        raise ConfigError(f"{url!r} has an unknown option {unknown[0]!r}", hint="partitions, client, bytes_max")
    return name, options


def _number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{option}={text!r} is not a number")
    return int(text)
