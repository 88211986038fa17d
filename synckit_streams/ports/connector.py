"""What a broker must do for us: carry messages, say where they lie, and keep one digest a node.

A broker is a fast, lossy, duplicating pipe. Nothing is correct because it promised something; so this port asks for
places (to know what was read), identity and fingerprints (to notice a log that was put back), and nothing more.

Positions are integers that ascend within one partition of one log; a connector maps its broker's own. Position 0 is
before the first message. `Bounds` are half-open: messages lie in `[first, end)`, except those trimmed in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from synckit_streams.model.exchange import Bounds as Bounds

ID_CHARS_MAX = 200
"""Of `Message.id`; ours have at most 60."""
BATCHES_HELD_MAX = 4
"""A member of a group that has not acknowledged so many times `batch_max` messages gets no more until it does."""


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What a connector can do. What is False raises `FeatureUnsupported` when asked for.

    Args:
        ordering: Messages of one partition arrive in the order of their positions.
        durable: A message that was acknowledged survives a restart of the broker.
        replay: `receive` may start at any position that `bounds` shows.
        times: `find` knows where the messages of a time begin.
        groups: `join` divides the messages over a group's members, and redelivers.
        taps: `tap` does so with somebody else's messages.
        trims: `trim` takes away what everybody has.
        dedup: The broker drops a second message with the same id within a window.
        delay: The delay of a `nack` is kept by the broker, so that it outlives the member.
        bytes_max: Largest message, headers included: each counts its name, its value and 4 bytes.
        partitions: How many partitions a topic of ours has.
    """

    ordering: bool = True
    durable: bool = True
    replay: bool = True
    times: bool = False
    groups: bool = False
    taps: bool = False
    trims: bool = False
    dedup: bool = False
    delay: bool = False
    bytes_max: int = 1024 * 1024
    partitions: int = 1


class Message(msgspec.Struct, frozen=True, gc=False):
    """What goes over the wire. What a wire would change or cannot carry is refused (`Rejected`), never adapted.

    Args:
        id: For the broker's own duplicate window; a re-publication has a new one. At most `ID_CHARS_MAX` characters of
            printable ASCII without blanks around them; empty for none.
        partition_key: Aggregate id, or any text, that decides the partition.
        headers: Names are HTTP tokens (letters, digits, ``!#$%&'*+-.^_`|~``) that keep their case. Values are printable
            ASCII without blanks around them; they may be empty. A connector may keep a prefix of names for itself.
        body: Bytes.
    """

    id: str
    partition_key: str
    headers: Mapping[str, str]
    body: bytes


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One received message, and where it lies.

    Args:
        message: As it was sent, less what the broker does not carry (`partition_key` may be empty).
        partition: Of the log.
        position: Within the partition.
        attempt: Which delivery to a group this is, at least; from 1. Without a group always 1.
    """

    message: Message
    partition: int
    position: int
    attempt: int = 1


def behind(bounds: Mapping[int, Bounds], start: Mapping[int, int]) -> int:
    """How many messages lie behind a reader that has read up to `start`."""
    return sum(max(each.end - max(start.get(number, 0) + 1, each.first), 0) for number, each in bounds.items())


class Progress(NamedTuple):
    """How far a group has come.

    Args:
        acknowledged: Per partition, the position up to which every message is acknowledged; 0, or left out, is none.
        waiting: Messages that were not delivered to any member yet.
        pending: Messages that were delivered and are not acknowledged.
    """

    acknowledged: Mapping[int, int]
    waiting: int
    pending: int

    @property
    def lag(self) -> int:
        """How many messages the group has still to acknowledge."""
        return self.waiting + self.pending


class Announced(NamedTuple):
    """One node's digest, as the broker kept or delivered it.

    Args:
        node: Who announced it.
        body: The digest's bytes; empty when the node took it back.
        age_s: For how long the broker has had it, by the *broker's* clock; 0 when it came live.
    """

    node: str
    body: bytes
    age_s: float


class Member(Protocol):
    """One of those who divide a topic's messages among them; an asynchronous iterator of batches.

    A batch has 1 to `batch_max` deliveries of *one* partition in ascending position. Messages come in the order of
    their positions; those that come again may come between others.

    The verbs take deliveries of this member, of any batch, in any order. They return when the broker has been told, as
    far as it answers; one that is told nothing delivers again, so that every message comes at least once. What this
    member does not hold any more (it was moved to another, or the time was over) they pass over in silence: it comes
    again, and whoever does the work has to know what he did.
    """

    def __aiter__(self) -> AsyncIterator[Sequence[Delivery]]:
        """Itself."""

    async def __anext__(self) -> Sequence[Delivery]:
        """The next batch; it may be cancelled, and takes nothing away then.

        The member reads at most a few batches ahead of the one that was taken last. While `BATCHES_HELD_MAX` times
        `batch_max` messages are delivered and not acknowledged, it gets only what comes again.

        Raises:
            Unavailable: the connection is lost for good, or the log was made anew or put back.
        """

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """They are done: their effect is durably committed. One call to the broker, or few, for all of them."""

    async def nack(self, deliveries: Sequence[Delivery], delay_s: float = 0.0) -> None:
        """Deliver them again, to any member, no sooner than in so many seconds. Others do not wait for them.

        Where `features.delay` is False the delay holds for as long as this member stays, and no longer.
        """

    async def term(self, deliveries: Sequence[Delivery]) -> None:
        """Never deliver them again, to nobody, though they are not done."""

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Somebody is still at work on them: their time begins anew."""

    async def settled(self) -> bool:
        """Whether the group has acknowledged everything that is in the log now, be it by this member or by others.

        While it is False there is more to come: to this member, or to one who has it, or who had it and died.

        Raises:
            Unavailable: the broker cannot be asked.
        """


@runtime_checkable
class Connector(Protocol):
    """One broker. Made by `Class(url, **options)`; opened, used and closed on one event loop.

    An attribute `url`, without secrets, is the name under which a store keeps what was read there; without one that is
    the class's name. A method `address_of(topic)` says where a topic's events lie on the broker (a subject, a topic, a
    key), for whoever reads them with other tools; without one nobody is told.

    Every method may raise `Unavailable`, `Timeout`, `Rejected` or `Unauthorised`, and no exception of the driver's.
    Each call ends, also when the broker is frozen; each may be cancelled at any time, and the next one finds the
    connector usable. Before `open` and after `close` every call but these two raises `ConnectorError`.

    Topics and node ids are any text; two of them never share a log or a digest.
    """

    @property
    def features(self) -> Features:
        """What it can do; known before `open` as far as no server has to be asked, exact after it."""

    async def open(self) -> None:
        """Connect; if it is open already, make sure that the broker still answers, and connect anew if it does not.

        Whoever uses it opens it before each meeting and closes it once, at the end: a failure is no reason to close.
        Readers that are running go on. May be called after `close`, too.

        Raises:
            Unavailable: within 3 s if nobody listens there. It may be opened again.
        """

    async def close(self) -> None:
        """Let go of everything; never raises because the broker is gone. May be called twice.

        Whoever waits in an iterator of this connector comes to its end, without an error.
        """

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """Each partition's log, made on demand; asked anew at every call."""

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """The message at just this position, with id, headers and body as `receive` delivers it; None if there is none.

        The fingerprint of what was read there is compared with it: so it is asked of whoever decides what the log is,
        and not of a replica that may be behind.
        """

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """Publish, and return when the broker holds all of them durably. What was refused is for the caller to find.

        Returns:
            Per partition, a position such that whoever has read up to *and including* it has passed every one of
            these messages that the broker kept. A partition that got none of them is left out.

        Raises:
            TooLarge: a message is above `features.bytes_max`; nothing of the call is stored.
            Rejected: a message has an id or a header that cannot be carried, and nothing of the call is stored; or the
                broker refused a message (the others may be there), or called one that it should not know a duplicate.
        """

    def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Delivery]]]:
        """For a replica: a stream of batches, each of 1 to `batch_max` deliveries of *one* partition in ascending
        position, beginning where the reader's own store says. The broker keeps no position.

        A position means one message for as long as the iterator lives. When the log may have become another one, be it
        deleted, made anew, or put back to a state before what was read, the iterator raises rather than go on: whoever
        reads joins again, looks at `bounds` and `peek`, and learns what has become of his place. What retention has
        trimmed is passed over; a `start` beyond the end waits for it.

        Args:
            topic: Whose log.
            start: Per partition, the last position already read; absent or 0 is from the beginning.
            batch_max: Largest batch. The receiver reads at most a few batches ahead: a slow reader costs no memory, and
                holds up no publisher.

        Raises:
            Unavailable: out of the iterator, when the connection is lost and does not come back by itself, or when the
                log was made anew or put back.
        """

    def join(
        self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int
    ) -> AbstractAsyncContextManager[Member]:
        """For workers: become a member of a group, which divides the messages over its members and redelivers.

        The broker keeps the group's position. A message is with one member at a time: until it is acknowledged, until
        the member leaves or dies, or until the connector's `ack_wait_s` is over without an `extend`; in the latter
        cases it comes again, to any member. Leaving the context gives up what is not acknowledged, at once.

        Args:
            topic: Whose log.
            group: Any text; two groups never share a position.
            start: For a group that is new to the broker: per partition, the last position that counts as acknowledged.
            batch_max: Largest batch.

        Raises:
            FeatureUnsupported: `features.groups` is False.
        """

    def tap(
        self, source: str, *, group: str, batch_max: int, at_ms: int | None = None
    ) -> AbstractAsyncContextManager[Member]:
        """`join`, for somebody else's messages: a Kafka topic, a JetStream stream or a Redis stream that is not ours.

        Nothing there is changed but the group's position. A delivery's message has as `id` where it lies, which is
        another for each message, the same whenever it comes again, and also names the log; as `partition_key` its key,
        if that is text; as `headers` those that are text; as `body` what its producer wrote.

        Args:
            source: The broker's own name of it.
            group: See `join`.
            batch_max: See `join`.
            at_ms: For a group that is new to the broker: begin with what came at that time or later; None is from the
                beginning.

        Raises:
            Rejected: there is no such source; it is never made.
            FeatureUnsupported: `features.taps` is False.
        """

    async def progress(self, topic: str, *, group: str) -> Progress:
        """How far a group has come; of one that nobody joined yet, that nothing is acknowledged.

        Raises:
            FeatureUnsupported: `features.groups` is False.
        """

    async def find(self, topic: str, *, at_ms: int) -> Mapping[int, int]:
        """Where to begin for what the broker got at a time or later: a `start` for `receive` and `join`.

        Args:
            topic: Whose log.
            at_ms: By the broker's clock, in milliseconds since 1970 (UTC).

        Raises:
            FeatureUnsupported: `features.times` is False.
        """

    async def trim(self, topic: str, *, below: Mapping[int, int]) -> None:
        """Take away the messages below these positions, as far as no group has still to acknowledge them.

        Groups say by themselves how far they are, replicas do not: so a position is the least that one of them has
        still to read. What is taken away is like what retention takes: readers pass over it, and no position comes
        again.

        Args:
            topic: Whose log.
            below: Per partition, the first position that stays. Nothing happens to a partition that is left out.

        Raises:
            FeatureUnsupported: `features.trims` is False.
        """

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """Keep this digest as the node's last one for the topic, and tell who listens; empty takes it back.

        Raises:
            TooLarge: it is above `features.bytes_max`.
        """

    def listen(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Announced]]:
        """First the last digest of every node, then each new one as it comes, also this connector's own.

        After the retained ones, and whenever it has caught up, the iterator yields `Announced("", b"", 0.0)` once, so
        that a reader knows that it has heard everything that was there. Who is slow may miss a digest that a newer one
        of the same node has replaced. It raises as `receive` does when the connection is lost for good.
        """
