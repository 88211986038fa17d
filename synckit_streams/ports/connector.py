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


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What a connector can do. What is False raises `FeatureUnsupported` when asked for.

    Args:
        ordering: Messages of one partition arrive in the order of their positions.
        durable: A message that was acknowledged survives a restart of the broker.
        replay: `receive` may start at any position that `bounds` shows.
        groups: `receive(group=…)` divides the messages over its members, and redelivers.
        dedup: The broker drops a second message with the same id within a window.
        delay: `nack(delay_s)` is kept by the broker.
        bytes_max: Largest message, headers included: each counts its name, its value and 4 bytes.
        partitions: How many partitions a topic of ours has.
    """

    ordering: bool = True
    durable: bool = True
    replay: bool = True
    groups: bool = False
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


class Lag(NamedTuple):
    """How far a reader is behind: messages not yet read, and of those delivered but not yet acknowledged."""

    messages: int
    pending: int = 0


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


@runtime_checkable
class Delivery(Protocol):
    """One received message. Acknowledge it only when its effect is durably committed."""

    @property
    def message(self) -> Message:
        """The message as it was sent, less what the broker does not carry (`partition_key` may be empty)."""

    @property
    def partition(self) -> int:
        """Where it lies."""

    @property
    def position(self) -> int:
        """Where it lies within the partition."""

    async def ack(self) -> None:
        """It is done. Without a group this does nothing."""

    async def nack(self, delay_s: float = 0.0) -> None:
        """Deliver it again (groups only)."""

    async def term(self) -> None:
        """Never deliver it again (groups only)."""


@runtime_checkable
class Connector(Protocol):
    """One broker. Made by `Class(url, **options)`; opened, used and closed on one event loop.

    An attribute `url`, without secrets, is the name under which a store keeps what was read there; without one that is
    the class's name.

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
        self, topic: str, *, group: str | None, start: Mapping[int, int], batch_max: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Delivery]]]:
        """A stream of batches, each of 1 to `batch_max` deliveries of *one* partition in ascending position.

        A position means one message for as long as the iterator lives. When the log may have become another one, be it
        deleted, made anew, or put back to a state before what was read, the iterator raises rather than go on: whoever
        reads joins again, looks at `bounds` and `peek`, and learns what has become of his place. What retention has
        trimmed is passed over; a `start` beyond the end waits for it.

        Args:
            topic: Whose log.
            group: None for a replica: every message, from `start`, with no position kept by the broker.
            start: Per partition, the last position already read; absent or 0 is from the beginning.
            batch_max: Largest batch. The receiver reads at most a few batches ahead: a slow reader costs no memory, and
                holds up no publisher.

        Raises:
            Unavailable: out of the iterator, when the connection is lost and does not come back by itself, or when the
                log was made anew or put back.
            FeatureUnsupported: a group, of a connector without groups.
        """

    async def lag(self, topic: str, *, group: str | None, start: Mapping[int, int]) -> Lag:
        """How far a group, or a reader that stands at `start`, is behind."""

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
