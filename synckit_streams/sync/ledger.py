"""What one append transaction decides by, the same for every store, with no I/O.

Theory of operation. The ledger mirrors what the store's own transaction would read: which events are here (`Stream`:
numbers and the sum of the hashes, per origin), which are held and for what, which keys are void or refused, and what
each recently touched aggregate has seen. `wants` says which rows the store must look up; a `Turn` decides, changes the
mirror, and gathers the rows to write. If the transaction then fails, the store throws the ledger away and loads a new
one: the mirror is never ahead of the disk.

Around it: `facts` is what a store is asked, `changes` what it must write, `stream` and `waiting` are parts of the
mirror, `drafts` and `arrivals` the two kinds of request, `turn` the steps they share, and `request` the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise

import msgspec

from synckit_streams.errors import Invalid
from synckit_streams.model.clock import COUNTER_MAX, Key, VersionVector
from synckit_streams.model.event import Draft, Event
from synckit_streams.model.exchange import Arrival, Summary
from synckit_streams.model.seen import Seen
from synckit_streams.sync.changes import Aside, Changes, Row
from synckit_streams.sync.facts import Facts, Fork, Known, Wants
from synckit_streams.sync.stream import Stream
from synckit_streams.sync.waiting import Waiting

__all__ = ["Aside", "Changes", "Facts", "Fork", "Known", "Ledger", "Row", "Stream", "Wants"]

AGGREGATES_CACHED = 20_000

_decode_pairs = msgspec.msgpack.Decoder(list[tuple[str, int]]).decode
_encode = msgspec.msgpack.Encoder().encode


class Ledger:
    """The mirror. See the module's text.

    Args:
        log: Identity of the store's log.
        topics: The topics this node replicates; None is every topic.
        held_max: How many events may be held.
        dice: Random bytes.
        draw_origin: Gives a new origin; called at the first write after an open, or when ours turns out to be shared.
    """

    def __init__(
        self,
        *,
        log: str,
        topics: Iterable[str] | None,
        held_max: int,
        dice: Callable[[int], bytes],
        draw_origin: Callable[[], str],
    ) -> None:
        self.log = log
        self.topics = None if topics is None else frozenset(topics)
        self.held_max = held_max
        self.dice = dice
        self.position = 0
        self.origin = ""
        self.at_packed = 0
        """The greatest hybrid time that this node has given to an event."""
        self.streams: dict[str, dict[str, Stream]] = {}
        self.waiting = Waiting()
        self.ripe: list[tuple[bytes, Event]] = []
        """Loaded as held, but ready: what they waited for is no longer asked for (a topic was given up)."""
        self.voids: set[Key] = set()
        self.refused: dict[Key, str] = {}
        self.aggregates: dict[Fork, Known] = {}
        self._draw_origin = draw_origin
        self._id_time = 0

    # --- loading -----------------------------------------------------------------------------------------------------

    def stream(self, topic: str, origin: str) -> Stream:
        """The stream of an origin, made if it is new."""
        of_topic = self.streams.setdefault(topic, {})
        found = of_topic.get(origin)
        if found is None:
            found = of_topic[origin] = Stream()
        return found

    def load_held(self, event: Event, hash: bytes) -> None:
        """Load one held event, after everything else."""
        cause = self.missing(event)
        if cause is None:
            self.ripe.append((hash, event))
        else:
            self.waiting.add(event, hash, cause)

    # --- reading -----------------------------------------------------------------------------------------------------

    def __contains__(self, key: Key) -> bool:
        of_topic = self.streams.get(key[0])
        stream = of_topic.get(key[1]) if of_topic else None
        return stream is not None and key[2] in stream

    def summary(self, topic: str) -> Summary:
        """What is here of a topic."""
        streams = self.streams.get(topic, {})
        held, wanted = self.waiting.of_topic(topic)
        return Summary(
            seen=Seen({origin: stream.intervals for origin, stream in streams.items() if stream.ranges}),
            sums={origin: stream.total for origin, stream in streams.items() if stream.ranges},
            held=held,
            wanted=wanted,
            refused={key: reason for key, reason in self.refused.items() if key.topic == topic},
            voids=frozenset(key for key in self.voids if key.topic == topic),
        )

    def held(self, *, after: bytes, limit: int) -> list[tuple[Event, bytes]]:
        """See `EventStore.held`."""
        found = {**self.waiting.events(), **dict(self.ripe)}
        hashes = sorted(hash for hash in found if hash > after)
        return [(found[hash], hash) for hash in hashes[:limit]]

    def voids_after(self, after: Key | None, limit: int) -> list[Key]:
        """See `EventStore.voids`."""
        return sorted(key for key in self.voids if after is None or key > after)[:limit]

    def wants(self, drafts: Iterable[Draft], received: Iterable[Arrival]) -> Wants:
        """What the store must look up before it decides on checked drafts and on what was received."""
        ids: list[str] = []
        keys: list[Key] = []
        forks: dict[Fork, None] = {}
        aggregates = self.aggregates
        for draft in drafts:
            if draft.id is not None:
                ids.append(draft.id)
            fork = (draft.topic, draft.aggregate_id)
            if fork not in aggregates:
                forks[fork] = None
        streams = self.streams
        for arrival in received:
            event = arrival[0]
            if event is None or arrival[4]:
                continue
            of_topic = streams.get(event.topic)
            stream = of_topic.get(event.origin) if of_topic else None
            if stream is not None and event.seq in stream:
                keys.append(Key(event.topic, event.origin, event.seq))
            else:
                ids.append(event.id)
                fork = (event.topic, event.aggregate_id)
                if fork not in aggregates:
                    forks[fork] = None
        return Wants(ids, keys, list(forks))

    def missing(self, event: Event) -> Key | None:
        """The first cause of an event that is not here, or None if the event is ready.

        Raises:
            FrameMalformed, Invalid: the context is not one, or covers the event itself, so that it would wait for ever.
        """
        topic, voids = event.topic, self.voids
        streams = self.streams.get(topic, {})
        if event.prev:
            stream = streams.get(event.origin)
            if stream is None or event.prev not in stream:
                cause = Key(topic, event.origin, event.prev)
                if cause not in voids:
                    return cause
        if event.context_bytes:
            for origin, seq in pairs(event.context_bytes):
                stream = streams.get(origin)
                if stream is None or seq not in stream:
                    cause = Key(topic, origin, seq)
                    if cause not in voids:
                        if origin == event.origin and seq >= event.seq:
                            raise Invalid(f"the context of {event.key} covers the event itself")
                        return cause
        if event.after_bytes:
            for cause in event.after:
                if self.replicates(cause.topic) and cause not in self and cause not in voids:
                    return cause
        return None

    def replicates(self, topic: str) -> bool:
        """Whether an event waits for a cause that is of this topic."""
        return self.topics is None or topic in self.topics

    def known(self, fork: Fork, facts: Facts, changes: Changes) -> Known | None:
        """What is known of an aggregate, to be read and changed; None for a new one.

        What the disk knows is worth remembering. An aggregate that only this transaction has seen is not: in a bulk
        load most are never written again.
        """
        known = self.aggregates.get(fork)
        if known is not None:
            return known
        known, late = facts.aggregate(fork), changes.late.get(fork)
        if known is None:
            return late
        if late is not None:
            for origin, seq in late.last.items():
                known.last[origin] = max(seq, known.last.get(origin, 0))
            known.at_packed = max(known.at_packed, late.at_packed)
        self.aggregates[fork] = known
        return known

    # --- what a turn draws -------------------------------------------------------------------------------------------

    def own_origin(self) -> str:
        """Under which origin to number; drawn if there is none."""
        if not self.origin:
            self.origin = self._draw_origin()
        return self.origin

    def new_ids(self, times: int, now_ms: int) -> list[str]:
        """UUIDv7: 48 bits of time, 12 bits that count within the millisecond, 62 random ones (RFC 9562)."""
        # Ids that ascend keep the index on them small and fast; a counter that overflows borrows from the next ms.
        if not times:
            return []
        # The two upper bits of each eight random bytes say "RFC 9562".
        noise = int.from_bytes(self.dice(8 * times), "big")
        noise &= int.from_bytes(b"\x3f\xff\xff\xff\xff\xff\xff\xff" * times, "big")
        noise |= int.from_bytes(b"\x80\0\0\0\0\0\0\0" * times, "big")
        tails = noise.to_bytes(8 * times, "big").hex()
        value = max(self._id_time, (now_ms << 12) - 1)
        self._id_time = value + times
        ids: list[str] = []
        time, head = -1, ""
        for at in range(0, 16 * times, 16):
            value += 1
            if value >> 12 != time:
                time = value >> 12
                text = f"{time & 0xFFFFFFFFFFFF:012x}"
                head = f"{text[:8]}-{text[8:]}-7"
            ids.append(f"{head}{value & 0xFFF:03x}-{tails[at : at + 4]}-{tails[at + 4 : at + 16]}")
        return ids

    def settle(self, changes: Changes) -> None:
        """After a commit: let go of what the cache must not, or need not, keep."""
        for fork in changes.unsure:
            self.aggregates.pop(fork, None)
        surplus = len(self.aggregates) - AGGREGATES_CACHED
        if surplus > 0:
            for fork in list(islice(self.aggregates, surplus)):
                del self.aggregates[fork]


def pairs(raw: bytes) -> Sequence[tuple[str, int]]:
    """What `VersionVector.from_bytes(raw).items()` gives, or raises, at a quarter of the cost for what is in order."""
    try:
        found = _decode_pairs(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return list(VersionVector.from_bytes(raw).items())
    if (
        found
        and _encode(found) == raw
        and all(0 < seq <= COUNTER_MAX for _, seq in found)
        and (len(found) == 1 or all(one[0] < other[0] for one, other in pairwise(found)))
    ):
        return found
    return list(VersionVector.from_bytes(raw).items())
