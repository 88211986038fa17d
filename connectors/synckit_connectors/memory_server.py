"""The broker in this process: lists behind a lock, and the switchboard of its faults.

Appending never waits for a reader: readers hold a position, not a queue, and are only told that there is something new.
That is why any event loop of any thread may use the same name at once. When a log is put back or made anew, readers are
cut off with `Unavailable`, as a real server's restart would: they have to look at `bounds` again.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol
from zlib import crc32

import msgspec

from synckit_streams.errors import ConfigError, Unavailable
from synckit_streams.ports.connector import Announced, Delivery, Message, Progress

Where = Callable[[str, Message], bool]
"""Chooses messages for a fault: (topic, message) -> does it strike?"""


def everything(topic: str, message: Message) -> bool:
    """The `Where` that strikes always."""
    return True


class Ear(Protocol):
    """Who listens to digests."""

    bell: Bell

    def tell(self, announced: Announced) -> None:
        """This was said."""


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


class Partition:
    """Messages without a hole: the one at position p is `deliveries[p - first]`."""

    def __init__(self) -> None:
        self.first = 1
        self.deliveries: list[Delivery] = []
        self.came_ms: list[int] = []
        """When each of them came."""

    @property
    def end(self) -> int:
        return self.first + len(self.deliveries)

    def at(self, position: int) -> Message | None:
        if self.first <= position < self.end:
            return self.deliveries[position - self.first].message
        return None

    def after(self, position: int, count_max: int) -> list[Delivery]:
        start = max(position + 1 - self.first, 0)
        return self.deliveries[start : start + count_max]

    def add(self, message: Message, number: int, came_ms: int) -> None:
        self.deliveries.append(Delivery(message, number, self.end))
        self.came_ms.append(came_ms)

    def cut(self, first: int, end: int) -> None:
        """Keep what lies in `[first, end)`."""
        kept = slice(max(first - self.first, 0), max(end - self.first, 0))
        self.deliveries, self.came_ms = self.deliveries[kept], self.came_ms[kept]

    def before(self, at_ms: int) -> int:
        """The position of the last message that came before a time."""
        return self.first - 1 + bisect_left(self.came_ms, at_ms)


class Pending(NamedTuple):
    """A delivery that a group has still to acknowledge."""

    delivery: Delivery
    member: object
    """Who has it; None when it was given back."""
    due_s: float
    """When it is delivered again, by the monotonic clock."""


class Group:
    """What a group has taken of a log: up to which message, and which of those are not acknowledged.

    Whoever of the members asks first gets the next messages, as of a JetStream durable or a Redis group.
    """

    def __init__(self, partitions: Sequence[Partition], start: Mapping[int, int]) -> None:
        self._partitions = partitions
        self._taken = [start.get(number, 0) for number in range(len(partitions))]
        self._pending: dict[tuple[int, int], Pending] = {}
        self._turn = 0

    def take(self, member: object, count_max: int, wait_s: float) -> list[Delivery]:
        """The next batch for a member: what is to be delivered again first."""
        now = time.monotonic()
        batch = self._again(now, count_max) or self._new(count_max)
        for each in batch:
            self._pending[each.partition, each.position] = Pending(each, member, now + wait_s)
        return batch

    def _again(self, now: float, count_max: int) -> list[Delivery]:
        due = sorted(where for where, pending in self._pending.items() if pending.due_s <= now)
        batch: list[Delivery] = []
        for number, position in due:
            if self._partitions[number].at(position) is None:
                del self._pending[number, position]  # trimmed meanwhile
            elif len(batch) < count_max and (not batch or batch[0].partition == number):
                last = self._pending[number, position].delivery
                batch.append(msgspec.structs.replace(last, attempt=last.attempt + 1))
        return batch

    def _new(self, count_max: int) -> list[Delivery]:
        for _ in self._partitions:
            number = self._turn
            self._turn = (self._turn + 1) % len(self._partitions)
            if batch := self._partitions[number].after(self._taken[number], count_max):
                self._taken[number] = batch[-1].position
                return batch
        return []

    def held(self, member: object) -> int:
        """How many deliveries a member has, and has still time for."""
        now = time.monotonic()
        return sum(pending.member is member and pending.due_s > now for pending in self._pending.values())

    def settle(self, member: object, deliveries: Sequence[Delivery]) -> None:
        """They come no more, as far as the member has them."""
        for each in self._of(member, deliveries):
            del self._pending[each.partition, each.position]

    def put_off(self, member: object, deliveries: Sequence[Delivery], delay_s: float, *, keep: bool) -> None:
        """They come again so much later; until then the member keeps them, or nobody has them."""
        due_s = time.monotonic() + delay_s
        for each in self._of(member, deliveries):
            there = self._pending[each.partition, each.position]
            self._pending[each.partition, each.position] = Pending(there.delivery, member if keep else None, due_s)

    def _of(self, member: object, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [
            each
            for each in deliveries
            if (there := self._pending.get((each.partition, each.position))) is not None and there.member is member
        ]

    def leave(self, member: object) -> None:
        """What a member has comes again, to others, at once."""
        for where, pending in self._pending.items():
            if pending.member is member:
                self._pending[where] = Pending(pending.delivery, None, 0.0)

    def due_in_s(self) -> float | None:
        """When something comes again; None if nothing does."""
        due = min((pending.due_s for pending in self._pending.values()), default=None)
        return None if due is None else max(due - time.monotonic(), 0.0)

    def rewind(self, number: int, position: int) -> None:
        """The log was put back: what lies behind is not there any more."""
        self._taken[number] = min(self._taken[number], position)
        for where in [each for each in self._pending if each[0] == number and each[1] > position]:
            del self._pending[where]

    def progress(self) -> Progress:
        acknowledged = dict(enumerate(self._taken))
        for number, position in self._pending:
            acknowledged[number] = min(acknowledged[number], position - 1)
        waiting = sum(max(part.end - 1 - taken, 0) for part, taken in zip(self._partitions, self._taken, strict=True))
        return Progress(acknowledged, waiting, len(self._pending))


class Log:
    """One log with its partitions, the digests beside it, and who waits for news of either."""

    def __init__(self, partitions: int) -> None:
        self.identity = uuid.uuid4().hex
        self.epoch = 0
        """Grows when the log is put back or made anew; a reader of an older one is cut off."""
        self.partitions = [Partition() for _ in range(partitions)]
        self.digests: dict[str, tuple[bytes, float]] = {}
        self.groups: dict[str, Group] = {}
        self.readers: set[Bell] = set()
        self.listeners: set[Ear] = set()


class Bell:
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

    async def wait(self, patience_s: float | None = None) -> None:
        """Return when it was rung since the last time, or when the patience is over.

        The caller looks for news *after* this, never before.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
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
        self.lock = threading.RLock()
        self._topics: dict[str, Log] = {}
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
        with self.lock:
            self._down = down
            for topic in self._topics.values():
                ring(topic)

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
        with self.lock:
            self._faults.clear()
            self._delay_s = 0.0
            self.down = False

    def rewind(self, topic: str, position: int, *, partition: int = 0) -> None:
        """Put the log back to how it was when `position` was its last message; its identity does not change.

        What is written next gets the positions again that others had: the fault that length and identity alone miss.
        """
        with self.lock:
            log = self.topic(topic)
            part = log.partitions[partition]
            part.cut(part.first, position + 1)
            part.first = min(part.first, position + 1)
            for group in log.groups.values():
                group.rewind(partition, position)
            log.epoch += 1
            ring(log)

    def recreate(self, topic: str) -> None:
        """Delete the log and make it anew: empty, with another identity. Digests stay."""
        with self.lock:
            log = self.topic(topic)
            log.identity = uuid.uuid4().hex
            log.partitions = [Partition() for _ in log.partitions]
            log.groups.clear()
            log.epoch += 1
            ring(log)

    def trim(self, topic: str, below: int, *, partition: int = 0) -> None:
        """Remove the messages below this position, as retention does."""
        with self.lock:
            part = self.topic(topic).partitions[partition]
            below = min(below, part.end)
            part.cut(below, part.end)
            part.first = max(part.first, below)

    def messages(self, topic: str, *, partition: int = 0) -> list[Message]:
        """What the log holds now, oldest first."""
        with self.lock:
            return [delivery.message for delivery in self.topic(topic).partitions[partition].deliveries]

    def _add(self, fault: Fault) -> Fault:
        with self.lock:
            self._faults.append(fault)
        return fault

    # ------------------------------------------------------------------------------------- what the connectors call

    def enter(self, token: int, partitions: int | None) -> None:
        with self.lock:
            if not self.partitions:
                self.partitions = partitions or 1
            elif partitions and partitions != self.partitions:
                raise ConfigError(
                    f"memory://{self.name} has {self.partitions} partitions, not {partitions}",
                    hint="the first connector of a name decides: give all of them the same number, or only the first",
                )
            self._members.add(token)

    def quit(self, token: int) -> bool:
        """True when that was the last one; all is forgotten then."""
        with self.lock:
            self._members.discard(token)
            if self._members:
                return False
            self._topics.clear()
            self.partitions = 0
            self.heal()
            return True

    @contextmanager
    def up(self) -> Iterator[None]:
        with self.lock:
            if self._down:
                raise Unavailable(f"memory://{self.name} is down")
            yield

    def topic(self, topic: str) -> Log:
        log = self._topics.get(topic)
        if log is None:
            log = self._topics[topic] = Log(self.partitions or 1)
        return log

    def store(self, topic: str, messages: Sequence[Message]) -> dict[int, int]:
        with self.up():
            log = self.topic(topic)
            touched: set[int] = set()
            several, now_ms = len(log.partitions), time.time_ns() // 1_000_000
            for message in messages:
                number = crc32(message.partition_key.encode()) % several if several > 1 else 0
                touched.add(number)
                part = log.partitions[number]
                for _ in range(self._copies(topic, message) if self._faults else 1):
                    part.add(message, number, now_ms)
            ring(log, listeners=False)
            return {number: log.partitions[number].end - 1 for number in touched}

    def _copies(self, topic: str, message: Message) -> int:
        copies = 1
        for fault in self._faults:
            if fault.reader is None and fault.strikes(topic, message):
                copies = 0 if fault.kind == "drop" else copies * 2
        return copies

    def log_of(self, topic: str) -> Log | None:
        """A topic's log if it is there; it is not made."""
        return self._topics.get(topic)

    def arrives(self, topic: str, batch: list[Delivery], client: str) -> list[Delivery]:
        """What of a batch comes to a reader."""
        if not self._faults:
            return batch
        return [each for each in batch if not self.withheld(topic, each, client)]

    def withheld(self, topic: str, delivery: Delivery, client: str) -> bool:
        return any(fault.reader == client and fault.strikes(topic, delivery.message) for fault in self._faults)

    def announce(self, topic: str, node: str, body: bytes) -> None:
        with self.up():
            log = self.topic(topic)
            if body:
                log.digests[node] = (body, time.monotonic())
            else:
                log.digests.pop(node, None)
            for listener in log.listeners:
                listener.tell(Announced(node, body, 0.0))


def ring(log: Log, *, listeners: bool = True) -> None:
    for bell in log.readers:
        bell.ring()
    if listeners:
        for listener in log.listeners:
            listener.bell.ring()


registry_lock = threading.RLock()
_brokers: weakref.WeakValueDictionary[str, MemoryBroker] = weakref.WeakValueDictionary()
# A weak entry is found by whoever holds the object; these hold it for those who do not: from the first use of a name
# until its last connector leaves.
_in_use: dict[str, MemoryBroker] = {}
# Connectors thrown away unclosed. The collector may run anywhere, also inside our own locked sections, so a finalizer
# only leaves a note here, and the next one who passes clears up.
thrown_away: deque[tuple[MemoryBroker, int]] = deque()


def memory_broker(name: str) -> MemoryBroker:
    """The broker behind `memory://NAME`, made if it is not there yet."""
    with registry_lock:
        while thrown_away:
            leave(*thrown_away.popleft())
        broker = _brokers.get(name)
        if broker is None:
            broker = _brokers[name] = MemoryBroker(name)
        _in_use[name] = broker
        return broker


tokens = itertools.count(1)


def leave(broker: MemoryBroker, token: int) -> None:
    with registry_lock:
        if broker.quit(token):
            _in_use.pop(broker.name, None)
