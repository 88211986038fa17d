"""What goes into a replica (`step`'s inputs), what it asks for (its effects), and what it tells its peers (`Digest`).

Inputs say what happened; effects say what to do. Nothing here does anything. A link is one connection to one broker; a
reader (`reader_name`) is one link, topic and partition, and is the key under which the store keeps its offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from synckit_streams.errors import FrameMalformed, Invalid, TooLarge
from synckit_streams.model.clock import COUNTER_MAX, Key
from synckit_streams.model.codec import HASH_BYTES, check_node_id, check_topic
from synckit_streams.model.event import Draft, Offset
from synckit_streams.model.exchange import AppendResult, Arrival, Bounds, PlaceRun, Summary
from synckit_streams.model.seen import Seen

DIGEST_VERSION = 1
DIGEST_INTERVALS_MAX = 1_000
"""Above this a rounded-down summary is sent: it claims less, which costs bandwidth and never data."""
DIGEST_BYTES_MAX = 512 * 1024
DIGEST_DOTS_MAX = 1_000
"""Of the refused and of the void ones, each, so many are told."""


def reader_name(link: str, topic: str, partition: int) -> str:
    """The consumer name of a link's reader in the store."""
    return f"{link}|{topic}|{partition}"


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells its peers of one topic; the broker keeps the last one of each node.

    Args:
        version: Of this form.
        node: Who tells.
        topic: Of what.
        number: Ascends with each digest of a node's life.
        seen: `Seen.to_wire` of what it holds, rounded down if it is large.
        whole: Whether `seen` is everything it holds.
        checksum: Sum of the hashes of all it holds, modulo 2^256, 32 bytes.
        places: Per partition, the broker's identity and the next position that it will read there.
        refused: Dots it will never take.
        voids: Dots it has declared lost for good.
        held: How many events wait there for a cause.
        resolver: Name and version.
        takes: False for a node that only pushes, and for one that is still reading other logs: nothing is owed to it.
        bridges: The other logs that it reads, and passes on to this one: the identity of the first partition of each.
    """

    version: int
    node: str
    topic: str
    number: int
    seen: dict[str, list[int]]
    whole: bool
    checksum: bytes
    places: dict[int, tuple[str, int]]
    refused: list[tuple[str, int]]
    voids: list[tuple[str, int]]
    held: int
    resolver: tuple[str, int]
    takes: bool = True
    bridges: list[str] = []


_encode_digest = msgspec.msgpack.Encoder().encode
_decode_digest = msgspec.msgpack.Decoder(Digest).decode


def digest_bytes(digest: Digest) -> bytes:
    """What is announced."""
    return _encode_digest(digest)


def digest_from_bytes(raw: bytes) -> tuple[Digest, Seen]:
    """The reverse; also gives its `Seen`.

    Raises:
        FrameMalformed: not a digest, of another version, or too large.
    """
    if len(raw) > DIGEST_BYTES_MAX:
        raise FrameMalformed(f"a digest of {len(raw)} bytes; at most {DIGEST_BYTES_MAX} are read")
    try:
        digest = _decode_digest(raw)
        seen = Seen.from_wire(digest.seen)
        check_topic(digest.topic)
        check_node_id(digest.node)
        Seen.of([*digest.refused, *digest.voids])
        if not all(0 <= position <= COUNTER_MAX for _, position in digest.places.values()):
            raise Invalid("a place is outside [0, 2^63)")
        if len(digest.checksum) != HASH_BYTES:
            raise Invalid(f"a checksum has {len(digest.checksum)} bytes")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Invalid, TooLarge) as error:
        raise FrameMalformed(f"not a digest: {error}") from error
    if digest.version != DIGEST_VERSION:
        raise FrameMalformed(f"a digest of version {digest.version}; this release reads {DIGEST_VERSION}")
    return digest, seen


# --- inputs ----------------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """What the store holds of each topic: after it was opened, and whenever we may have lost track of it."""

    summaries: Mapping[str, Summary]


class Write(NamedTuple):
    """Somebody writes here."""

    drafts: Sequence[Draft]


class Joined(NamedTuple):
    """A link has found a topic's log and looked at what the store remembers of it.

    Args:
        link: Which connection.
        topic: Which topic.
        bounds: Each partition's log, as it is now.
        stored: Where the store's reader stood, per partition.
        witness: Whether the message at that position is still the one that was read: True, False (another one), or
            None (it is not there).
        runs: Where this link's readers read what, per partition, as the store has it.
    """

    link: str
    topic: str
    bounds: Mapping[int, Bounds]
    stored: Mapping[int, Offset]
    witness: Mapping[int, bool | None]
    runs: Sequence[tuple[int, PlaceRun]]


class Left(NamedTuple):
    """A link is gone; what was published by it and not read back is unsent again."""

    link: str


class Meet(NamedTuple):
    """A meeting begins over a link: what this node has written until now is to be read back before it ends."""

    link: str


class Forgot(NamedTuple):
    """We do not know whether a batch became durable; the next `Joined` must bring the places from the store."""

    link: str
    topic: str


class Learned(NamedTuple):
    """Where other processes, which share the store, have read what: per partition, runs."""

    link: str
    topic: str
    runs: Sequence[tuple[int, PlaceRun]]


class Received(NamedTuple):
    """A batch from one partition, all up to and including `offset`; `echoes` are our own messages, come back.

    Without an offset it is a group's: what lies between these messages is with others, and the place moves by itself.
    """

    link: str
    topic: str
    partition: int
    arrivals: Sequence[Arrival]
    offset: Offset | None
    echoes: Sequence[PlaceRun] = ()


class Persisted(NamedTuple):
    """An append is durable; `cause` is the input that asked for it."""

    result: AppendResult
    cause: Write | Received | Joined | None = None


class Sent(NamedTuple):
    """The broker holds these events; whoever has read up to and including `barrier` has passed them."""

    link: str
    topic: str
    events: Seen
    barrier: Mapping[int, int]


class Failed(NamedTuple):
    """A publication did not go through; the events are unsent again."""

    link: str
    topic: str
    events: Seen


class Refused(NamedTuple):
    """The broker will not take these events (too large for it): not tried again before the next join."""

    link: str
    topic: str
    events: Seen


class Heard(NamedTuple):
    """A peer's digest, and for how long the broker has had it."""

    link: str
    digest: Digest
    seen: Seen
    age_ms: int


class Looked(NamedTuple):
    """The answer to `Look`: where the logs end now; `known` is what was held before it was learned who has read what,
    where others share the store."""

    link: str
    topic: str
    bounds: Mapping[int, Bounds]
    known: Seen | None = None


class Tick(NamedTuple):
    """Time passes.

    Args:
        now_ms: Monotonic.
        dice: A draw from [0, 1).
        hurry: Somebody waits for a meeting to end: announce when that is all that is left, and let every random wait
            come out of the meeting's patience.
    """

    now_ms: int
    dice: float
    hurry: bool = False


class Mute(NamedTuple):
    """Publish nothing over a link (`on`), or again."""

    link: str
    on: bool


Input = (
    Opened
    | Write
    | Joined
    | Left
    | Meet
    | Forgot
    | Learned
    | Received
    | Persisted
    | Sent
    | Failed
    | Refused
    | Heard
    | Looked
    | Tick
    | Mute
)

# --- effects ---------------------------------------------------------------------------------------------------------


class Persist(NamedTuple):
    """Append this, durably, and come back with `Persisted`."""

    drafts: Sequence[Draft] = ()
    received: Sequence[Arrival] = ()
    echoes: Sequence[PlaceRun] = ()
    offsets: Mapping[str, Offset] = {}
    voids: Sequence[Key] = ()
    forget: Sequence[str] = ()
    cause: Write | Received | Joined | None = None


class Publish(NamedTuple):
    """Send these events, and come back with `Sent` or `Failed`. `again` if some may have been published before."""

    link: str
    topic: str
    events: Seen
    again: bool


class Announce(NamedTuple):
    """Let the broker keep this digest as our last one."""

    link: str
    digest: Digest


class Look(NamedTuple):
    """Ask where the logs end, and come back with `Looked`."""

    link: str
    topic: str


class AlarmKind(StrEnum):
    """What must not be passed over in silence."""

    REWOUND = "rewound"
    """A broker's log was put back to an earlier state."""
    RECREATED = "recreated"
    """A broker's log was deleted and made again."""
    TRIMMED = "trimmed"
    """Messages that we had not read are gone from the broker's log."""
    DOT_REUSED = "dot-reused"
    """One key came with two contents."""
    TWINS = "twins"
    """One id came with two contents, written on two nodes."""
    DIGEST_MISMATCH = "digest-mismatch"
    """A peer claims the same events and another checksum."""
    RESOLVER_DIFFERS = "resolver-differs"
    """A peer resolves the topic by another rule."""
    QUARANTINED = "quarantined"
    """Something that arrived could not be taken."""
    HELD_FULL = "held-full"
    """Too many events wait for a cause; the newest was let go, and comes again."""
    REFUSED = "refused"
    """The broker will not take an event of ours."""
    VOID = "void"
    """An event that others wait for is held by nobody any more."""


class Alarm(NamedTuple):
    """Tell the operator."""

    kind: AlarmKind
    topic: str
    evidence: str


Effect = Persist | Publish | Announce | Look | Alarm


class Standing(NamedTuple):
    """How far a topic is from complete, by everything this replica has heard.

    Args:
        complete: Nothing is missing, as far as any live peer knows.
        missing: Events that somebody has and we lack, or that we have and no connector has acknowledged.
        reasons: Which of the conditions do not hold, in words.
    """

    complete: bool
    missing: Seen
    reasons: tuple[str, ...]
