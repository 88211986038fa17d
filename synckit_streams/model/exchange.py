"""What passes between a store, the core and a connector: arrivals, places, and what an append did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.seen import Seen


class Bounds(NamedTuple):
    """Where a partition's log begins and ends now.

    Args:
        identity: Of the log itself: another one after it was deleted and made again.
        first: Position of the oldest message that is still there; `end` when the log is empty.
        end: Position that the next message will get (or any number below it and above the last message).
    """

    identity: str
    first: int
    end: int


class Place(NamedTuple):
    """Where a message was read: the reader (a key of `append(offsets=…)`) and the position."""

    reader: str
    position: int


class Raised(NamedTuple):
    """An alarm, kept beside the log: somebody who looks in later has to learn of it too.

    Args:
        kind: One of `sync.protocol.AlarmKind`.
        topic: About which topic.
        evidence: What was seen, the last time.
        times: How often.
        first_ms: When first, by the wall clock, in milliseconds since 1970.
        last_ms: When last.
    """

    kind: str
    topic: str
    evidence: str
    times: int = 1
    first_ms: int = 0
    last_ms: int = 0


class Arrival(NamedTuple):
    """Something that was received.

    Args:
        event: None when not even the header could be read.
        hash: `event_hash`, checked by whoever decoded it.
        place: Where it was read; None when it did not come from a log.
        raw: The message's bytes, kept only for quarantine.
        reason: Why it cannot be taken; "" when it can.
    """

    event: Event | None
    hash: bytes
    place: Place | None
    raw: bytes = b""
    reason: str = ""


class Summary(NamedTuple):
    """What a store holds of one topic.

    Args:
        seen: Which events.
        sums: Per origin, the sum of their hashes modulo 2^256.
        held: Keys that wait for a cause.
        wanted: For each cause that somebody waits for and that is not here, in sorted order: its key.
        refused: Keys that were refused, with the reason.
        voids: Keys declared lost for good.
    """

    seen: Seen
    sums: Mapping[str, int]
    held: tuple[Key, ...] = ()
    wanted: tuple[Key, ...] = ()
    refused: Mapping[Key, str] = {}
    voids: frozenset[Key] = frozenset()


class PlaceRun(NamedTuple):
    """Where a run of events of one origin was last read: event `first + i` at `positions[i]`."""

    reader: str
    topic: str
    origin: str
    first: int
    positions: Sequence[int]


class Quarantined(NamedTuple):
    """One arrival that was set aside.

    Args:
        position: Ascends in the order in which they were set aside.
        reason: Why.
        reader: Where it was read; "" when it did not come from a log.
        place: The position there.
        raw: Its bytes.
        key: Of an event that is refused for good; None when it could not be read.
    """

    position: int
    reason: str
    reader: str
    place: int
    raw: bytes
    key: Key | None = None


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What moves from one store to another in one transaction; see `EventStore.adopt`.

    Args:
        rows: Of the log, in its order, each with its hash.
        held: Events that wait for a cause, each with its hash.
        voids: Keys that were declared lost for good.
        quarantine: What was set aside, in its order; the positions are given anew.
        runs: Where the events were read.
        offsets: Where each reader stands, in terms of the new log where it reads that.
        alarms: What was raised.
    """

    rows: Sequence[tuple[Stored, bytes]] = ()
    held: Sequence[tuple[Event, bytes]] = ()
    voids: Sequence[Key] = ()
    quarantine: Sequence[Quarantined] = ()
    runs: Sequence[PlaceRun] = ()
    offsets: Mapping[str, Offset] = {}
    alarms: Sequence[Raised] = ()


class Reuse(NamedTuple):
    """One key with two contents: which hash stays under the key, and the event issued again.

    Args:
        key: Of both.
        kept: Hash of the one that has the key now.
        reissued: The other one, as everybody issues it again.
        held: Whether the newcomer had waited for a cause: then the place that was noted for the key may be its own.
    """

    key: Key
    kept: bytes
    reissued: Event
    held: bool = False


class AppendResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one append did, all of it durable.

    Args:
        appended: One per draft, in the drafts' order; an event that was already there when the id repeats.
        fresh: How many of `appended` are new.
        stored: Received events that entered the log, the released ones included, in commit order.
        released: How many of `stored` had been held.
        duplicates: How many received events were here already.
        held: Keys that now wait for a cause.
        dropped: Keys let go because too many are held; they come again.
        quarantined: Reasons, one for each arrival that was set aside.
        twins: Pairs (key, id) stored although the id is there under another key *with other content*.
        reused: Keys that came with two contents.
        conflicts: Aggregates, as (topic, id), in which a received event met one that it did not know.
        runs: Where the arrivals were read.
        summaries: Of the topics that changed.
    """

    appended: tuple[Stored, ...] = ()
    fresh: int = 0
    stored: tuple[Stored, ...] = ()
    released: int = 0
    duplicates: int = 0
    held: tuple[Key, ...] = ()
    dropped: tuple[Key, ...] = ()
    quarantined: tuple[str, ...] = ()
    twins: tuple[tuple[Key, str], ...] = ()
    reused: tuple[Reuse, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    runs: tuple[PlaceRun, ...] = ()
    summaries: Mapping[str, Summary] = {}
