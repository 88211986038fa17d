"""What a member of a Kafka group has of its partitions: which messages are open, and how far all is done. No I/O.

What was read of a partition and is not acknowledged is *open*. The group's position is the first open message, or what
was read if nothing is open: so it never passes one that is not done. What comes again comes from here, since Kafka
delivers nothing twice to a member.

With the position the broker keeps a *note*: when the message there was written, and its checksum. Whoever begins there
looks whether it is still that message.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from synckit_connectors.kafka_wire import LAST, NEXT, mark_of
from synckit_streams.ports.connector import Delivery


class Held:
    """A message that is open."""

    __slots__ = ("attempts", "delivery", "due_s", "in_hand", "timestamp")

    def __init__(self, delivery: Delivery, timestamp: int) -> None:
        self.delivery = delivery
        self.timestamp = timestamp
        self.attempts = 0
        self.in_hand = False
        """The caller has it."""
        self.due_s = math.inf
        """When it comes again."""


class Share:
    """One partition that we were given."""

    def __init__(self, position: int, *, passed: int = 0, known: bool = True) -> None:
        self.committed = position if known else -1
        """What the broker has as the group's position; -1 is that it has to be told."""
        self.passed = passed
        """What lies up to here counts as acknowledged, though it may come."""
        self.read = position
        self.last: tuple[int, bytes] | None = None
        """Time and body of what was read last."""
        self.open: dict[int, Held] = {}
        """By position, in ascending order: only what was read is put in, and behind what is there."""

    @property
    def done(self) -> int:
        """The position up to which everything is acknowledged."""
        return next(iter(self.open)) - 1 if self.open else self.read

    @property
    def note(self) -> str:
        """What is to be found at `done`."""
        for held in self.open.values():
            return f"{NEXT} {mark_of(held.timestamp, held.delivery.message.body)}"
        return f"{LAST} {mark_of(*self.last)}" if self.last else ""

    def take(self, delivery: Delivery, timestamp: int) -> Held | None:
        """What was read; None if that is nothing new."""
        position = delivery.position
        if position <= self.read:
            return None
        self.read, self.last = position, (timestamp, delivery.message.body)
        if position <= self.passed:
            return None
        held = self.open[position] = Held(delivery, timestamp)
        return held


class Shares:
    """All partitions that we were given, and what comes of them next.

    Args:
        batch_max: Largest batch.
        wait_s: After so long in the caller's hands a message comes again.
    """

    def __init__(self, batch_max: int, wait_s: float) -> None:
        self._batch_max = max(batch_max, 1)
        self._wait_s = wait_s
        self.of: dict[int, Share] = {}
        """By partition."""
        self._new: deque[list[Held]] = deque()
        self._due_s = math.inf
        """Nothing comes again before."""

    def drop(self) -> None:
        """They are others' now."""
        self.of.clear()
        self._new.clear()
        self._due_s = math.inf

    def take(self, number: int, read: Iterable[tuple[Delivery, int]]) -> None:
        """What was read of a partition, with the times when it was written; all of it becomes one batch."""
        if (share := self.of.get(number)) is None:
            return
        batch = [held for each in read if (held := share.take(*each)) is not None]
        if batch:
            self._new.append(batch)

    def next(self, now_s: float) -> list[Held]:
        """A batch: what comes again before what is new; empty if there is neither."""
        return self._again(now_s) or (self._new.popleft() if self._new else [])

    def _again(self, now_s: float) -> list[Held]:
        if now_s < self._due_s:
            return []
        self._due_s = math.inf
        batch: list[Held] = []
        for share in self.of.values():
            for held in share.open.values():
                if held.due_s > now_s:
                    self._due_s = min(self._due_s, held.due_s)
                elif len(batch) < self._batch_max and (
                    not batch or batch[0].delivery.partition == held.delivery.partition
                ):
                    batch.append(held)
                else:
                    self._due_s = now_s
        for held in batch:
            held.in_hand, held.due_s = False, math.inf
        return batch

    def due_in_s(self, now_s: float) -> float:
        """When something comes again."""
        return max(self._due_s - now_s, 0.0)

    def hand(self, batch: list[Held], now_s: float) -> list[Delivery]:
        """What of a batch is still ours to give, and open. The caller's time begins."""
        handed: list[Delivery] = []
        for held in batch:
            delivery = held.delivery
            share = self.of.get(delivery.partition)
            if share is None or share.open.get(delivery.position) is not held:
                continue
            held.attempts += 1
            held.in_hand, held.due_s = True, now_s + self._wait_s
            if held.attempts > 1:
                delivery = msgspec.structs.replace(delivery, attempt=held.attempts)
            handed.append(delivery)
        self._due_s = min(self._due_s, now_s + self._wait_s)
        return handed

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """They are done, as far as they are open here."""
        for each in deliveries:
            if (share := self.of.get(each.partition)) is not None:
                share.open.pop(each.position, None)

    def put_off(self, deliveries: Sequence[Delivery], due_s: float, *, in_hand: bool) -> None:
        """They come again at that time, and not before; until then the caller keeps them, or nobody has them."""
        for each in deliveries:
            share = self.of.get(each.partition)
            held = None if share is None else share.open.get(each.position)
            if held is not None and held.in_hand:
                held.in_hand, held.due_s = in_hand, due_s
                self._due_s = min(self._due_s, due_s)

    def extend(self, deliveries: Sequence[Delivery], now_s: float) -> None:
        """The caller's time begins anew."""
        self.put_off(deliveries, now_s + self._wait_s, in_hand=True)

    @property
    def owed(self) -> bool:
        """Whether more is done than the broker knows."""
        return any(share.done > share.committed for share in self.of.values())

    @property
    def open(self) -> int:
        """How many messages are in memory."""
        return sum(len(share.open) for share in self.of.values())

    @property
    def pending(self) -> int:
        """How many messages were delivered and are not acknowledged."""
        return sum(held.attempts > 0 for share in self.of.values() for held in share.open.values())

    def in_hand(self, now_s: float) -> bool:
        """Whether the caller may still acknowledge something in time."""
        return any(held.in_hand and held.due_s > now_s for share in self.of.values() for held in share.open.values())
