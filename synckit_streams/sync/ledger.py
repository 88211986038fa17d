"""What one append transaction decides, the same for every store, with no I/O.

Theory of operation. The ledger mirrors what the store's own transaction would read: which events are here (`Seen` and
the sums of their hashes, per origin), which are held and for what, which keys are void or refused, and what each
recently touched aggregate has seen. `wants` says which rows the store must look up; `apply` decides, changes the
mirror, and returns the rows to write. If the transaction then fails, the store throws the ledger away and loads a new
one: the mirror is never ahead of the disk.

Order matters in one place: a draft request is checked whole before anything changes, so that callers who share a group
commit are isolated from one another. Received events never raise because of their content: one bad event would block
its batch for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple, Protocol

import msgspec

from synckit_streams.errors import CauseUnknown, IdReused, SyncKitError, TooLarge
from synckit_streams.model.clock import Key, keys_bytes, vector_bytes
from synckit_streams.model.codec import (
    CONTEXT_BYTES_MAX,
    DIGEST_MODULUS,
    check_draft,
    content_hash,
    encode_metadata,
    encode_payload,
    event_content_hash,
    event_hash,
    refusal,
)
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.model.exchange import AppendResult, Arrival, PlaceRun, Reuse, Summary
from synckit_streams.model.seen import Intervals, Seen, contains, union

AGGREGATES_CACHED = 50_000

Fork = tuple[str, str]
"""(topic, origin), or (topic, aggregate id): a pair of names within a topic."""

_encode = msgspec.msgpack.Encoder().encode


class Known(NamedTuple):
    """What a store knows of one aggregate: per origin the last number, and the greatest hybrid time."""

    last: dict[str, int]
    at_packed: int


class Wants(NamedTuple):
    """Rows to look up before `apply`: by id, by key, and the aggregates whose last numbers are not in the mirror."""

    ids: list[str]
    keys: list[Key]
    aggregates: list[Fork]


class Facts(Protocol):
    """What the store found. It must answer for all that `wants` named, quickly, and for anything else as it can."""

    def by_id(self, id: str) -> Stored | None:
        """The first event with this id."""

    def hash_of(self, key: Key) -> bytes | None:
        """The hash of the event under a key that `wants` named; None if it is not there."""

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """The event under a key, and its hash."""

    def aggregate(self, fork: Fork) -> Known | None:
        """What is known of an aggregate; None for a new one."""


class Stream:
    """All events of one origin in one topic: which numbers are here, and the sum of their hashes."""

    __slots__ = ("at_packed", "ranges", "total")

    def __init__(self, ranges: Intervals = (), total: int = 0, at_packed: int = 0) -> None:
        self.ranges: list[tuple[int, int]] = list(ranges)
        self.total = total
        self.at_packed = at_packed

    @property
    def last(self) -> int:
        """The greatest number here; 0 if none is."""
        return self.ranges[-1][1] if self.ranges else 0

    def __contains__(self, seq: int) -> bool:
        ranges = self.ranges
        if not ranges or seq > ranges[-1][1]:
            return False
        return seq >= ranges[-1][0] or contains(tuple(ranges), seq)

    def add(self, seq: int, hash: bytes) -> None:
        """One more event."""
        ranges = self.ranges
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seq)
        elif not ranges or seq > ranges[-1][1]:
            ranges.append((seq, seq))
        else:
            self.ranges = list(union(tuple(ranges), ((seq, seq),)))
        self.total = (self.total + int.from_bytes(hash, "big")) % DIGEST_MODULUS


class Row(NamedTuple):
    """One event to insert into the log."""

    position: int
    event: Event
    hash: bytes
    twin: bool


class Aside(NamedTuple):
    """One arrival to set aside; `key` when its header was readable and it is refused for good."""

    arrival: Arrival
    reason: str
    key: Key | None


class Changes:
    """What one transaction must write, gathered over every request in it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.rekeyed: list[tuple[int, Event, bytes]] = []
        """(position, the event under its new key, its hash): what a reused key does to the row that was there."""
        self.held_added: dict[Key, tuple[Event, bytes]] = {}
        self.held_gone: list[Key] = []
        self.asides: list[Aside] = []
        self.streams: set[Fork] = set()
        self.voids: list[Key] = []
        self.runs: list[PlaceRun] = []
        self.offsets: dict[str, Offset] = {}
        self.forget: list[str] = []
        self.ids: dict[str, Stored] = {}
        self.hashes: dict[Key, bytes] = {}
        self.late: dict[Fork, Known] = {}
        """Aggregates that are not cached, as far as this transaction added to them."""

    def rekey(self, position: int, event: Event, hash: bytes) -> None:
        """Put another event on a row, whether it is on the disk already or only about to be."""
        for at, row in enumerate(self.rows):
            if row.position == position:
                self.rows[at] = Row(position, event, hash, row.twin)
                return
        self.rekeyed.append((position, event, hash))

    def __bool__(self) -> bool:
        return bool(
            self.rows or self.rekeyed or self.held_added or self.held_gone or self.asides or self.voids
            or self.runs or self.offsets or self.forget
        )  # fmt: skip


class Outcome:
    """What one request did, being gathered; see `AppendResult` for the meaning of each."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []
        self.released = 0
        self.duplicates = 0
        self.held: list[Key] = []
        self.dropped: list[Key] = []
        self.quarantined: list[str] = []
        self.twins: list[tuple[Key, str]] = []
        self.reused: list[Reuse] = []


class Ready(NamedTuple):
    """A checked draft, ready to be numbered; `repeat` when its id is in the log already, with the same content."""

    draft: Draft
    payload: bytes
    metadata: bytes
    after: bytes
    context: bytes | None
    repeat: Stored | None


class Ledger:
    """The mirror. See the module's text.

    Args:
        log: Identity of the store's log.
        topics: The topics this node replicates.
        held_max: How many events may be held.
        dice: Random bytes.
        draw_origin: Gives a new origin; called at the first write after an open, or when ours turns out to be shared.
    """

    def __init__(
        self,
        *,
        log: str,
        topics: Iterable[str],
        held_max: int,
        dice: Callable[[int], bytes],
        draw_origin: Callable[[], str],
    ) -> None:
        self.log = log
        self.topics = frozenset(topics)
        self.held_max = held_max
        self.position = 0
        self.origin = ""
        self.at_packed = 0
        self.streams: dict[str, dict[str, Stream]] = {}
        self.held: dict[Key, tuple[Event, bytes]] = {}
        self.waiting: dict[Key, list[Key]] = {}
        self.voids: set[Key] = set()
        self.refused: dict[Key, str] = {}
        self._aggregates: OrderedDict[Fork, Known] = OrderedDict()
        self._checked: set[tuple[str, str]] = set()
        self._dice = dice
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

    def hold(self, event: Event, hash: bytes) -> None:
        """Load one held event."""
        self.held[event.key] = (event, hash)
        missing = self._missing(event)
        if missing is not None:
            self.waiting.setdefault(missing, []).append(event.key)

    # --- reading -----------------------------------------------------------------------------------------------------

    def __contains__(self, key: Key) -> bool:
        stream = self.streams.get(key.topic, {}).get(key.origin)
        return stream is not None and key.seq in stream

    def summary(self, topic: str) -> Summary:
        """What is here of a topic."""
        streams = self.streams.get(topic, {})
        return Summary(
            seen=Seen({origin: tuple(stream.ranges) for origin, stream in streams.items() if stream.ranges}),
            sums={origin: stream.total for origin, stream in streams.items() if stream.ranges},
            held=tuple(key for key in self.held if key.topic == topic),
            wanted=tuple(sorted({key for key, by in self.waiting.items() if any(each.topic == topic for each in by)})),
            refused={key: reason for key, reason in self.refused.items() if key.topic == topic},
            voids=frozenset(key for key in self.voids if key.topic == topic),
        )

    def wants(self, drafts: Sequence[Draft], received: Sequence[Arrival]) -> Wants:
        """What the store must look up before `apply`."""
        ids = [draft.id for draft in drafts if draft.id is not None]
        keys = [Key(*cause) for draft in drafts for cause in draft.after]
        aggregates = {
            fork: None for draft in drafts if (fork := (draft.topic, draft.aggregate_id)) not in self._aggregates
        }
        streams = self.streams
        for arrival in received:
            event = arrival.event
            if event is None or arrival.reason:
                continue
            of_topic = streams.get(event.topic)
            stream = of_topic.get(event.origin) if of_topic else None
            if stream is not None and event.seq in stream:
                keys.append(Key(event.topic, event.origin, event.seq))
            else:
                ids.append(event.id)
        return Wants(ids, keys, list(aggregates))

    def _missing(self, event: Event) -> Key | None:
        """The first cause of an event that is not here, or None if it is ready."""
        topic = event.topic
        if event.prev:
            cause = Key(topic, event.origin, event.prev)
            if cause not in self and cause not in self.voids:
                return cause
        if event.context_bytes:
            for origin, seq in event.context.items():
                cause = Key(topic, origin, seq)
                if cause not in self and cause not in self.voids:
                    return cause
        if event.after_bytes:
            for cause in event.after:
                if cause.topic in self.topics and cause not in self and cause not in self.voids:
                    return cause
        return None

    # --- drafts ------------------------------------------------------------------------------------------------------

    def check(self, drafts: Sequence[Draft], facts: Facts, changes: Changes) -> list[Ready]:
        """Everything about the drafts that can be wrong; nothing changes.

        Raises:
            IdReused, Invalid, TooLarge, CauseUnknown: nothing of the request may be written.
        """
        ready: list[Ready] = []
        ours: dict[str, bytes] = {}
        checked = self._checked
        for draft in drafts:
            # Topic and type recur; the rest is checked in full only when it is out of the ordinary.
            aggregate_id = draft.aggregate_id
            if (
                (draft.topic, draft.type) not in checked
                or draft.id is not None
                or draft.after
                or not isinstance(aggregate_id, str)
                or not aggregate_id.isascii()
                or not aggregate_id.isprintable()
                or not 0 < len(aggregate_id) < 1000
                or draft.schema_version != 1
            ):
                check_draft(draft)
                if len(checked) > 10_000:
                    checked.clear()
                checked.add((draft.topic, draft.type))
            payload = encode_payload(draft.data)
            metadata = encode_metadata(draft.metadata) if draft.metadata else b""
            for cause in draft.after:
                if Key(*cause) not in self:
                    raise CauseUnknown(f"`after` names {tuple(cause)}, which this store has never seen")
            context: bytes | None = None
            if draft.context is not None:
                for origin, seq in draft.context.items():
                    if Key(draft.topic, origin, seq) not in self:
                        raise CauseUnknown(f"the context names {origin}:{seq}, which this store has never seen")
                context = vector_bytes(draft.context)
                if len(context) > CONTEXT_BYTES_MAX:
                    raise TooLarge(f"the context has {len(context)} bytes; at most {CONTEXT_BYTES_MAX} are allowed")
            else:
                known = self._aggregates.get((draft.topic, aggregate_id)) or facts.aggregate(
                    (draft.topic, aggregate_id)
                )
                # Few writers cannot reach the limit, so few are not measured.
                if known and len(known.last) > 100 and len(vector_bytes(known.last)) > CONTEXT_BYTES_MAX - 128:
                    raise TooLarge(
                        f"the aggregate {aggregate_id!r:.80} has {len(known.last)} writers, too many to name",
                        hint="pass Draft.context with those that you have read",
                    )
            repeat: Stored | None = None
            if draft.id is not None:
                digest = content_hash(draft.topic, draft.type, aggregate_id, payload, metadata, draft.schema_version)
                repeat = changes.ids.get(draft.id) or facts.by_id(draft.id)
                earlier = ours.get(draft.id) or (repeat and event_content_hash(repeat.event))
                if earlier and earlier != digest:
                    raise IdReused(f"the id {draft.id!r} belongs to an event with other content")
                ours[draft.id] = digest
            after = keys_bytes(Key(*cause) for cause in draft.after) if draft.after else b""
            ready.append(Ready(draft, payload, metadata, after, context, repeat))
        return ready

    def write(
        self,
        ready: Sequence[Ready],
        facts: Facts,
        changes: Changes,
        outcome: Outcome,
        *,
        now_ms: int,
        traceparent: str,
    ) -> tuple[list[Stored], int]:
        """Number the drafts that `check` passed; the second value is how many are new."""
        if not any(each.repeat is None for each in ready):
            return [each.repeat for each in ready if each.repeat is not None], 0
        if not self.origin:
            self.origin = self._draw_origin()
        origin, log, now = self.origin, self.log, now_ms << 16
        aggregates, rows = self._aggregates, changes.rows
        entropy = self._dice(8 * len(ready))
        stored: list[Stored] = []
        fresh = 0
        stream_topic, stream = "", Stream()
        for at, (draft, payload, metadata, after, context, repeat) in enumerate(ready):
            if draft.id is not None:
                repeat = repeat or changes.ids.get(draft.id)
            if repeat is not None:
                stored.append(repeat)
                continue
            topic = draft.topic
            if topic != stream_topic:
                stream_topic, stream = topic, self.stream(topic, origin)
                changes.streams.add((topic, origin))
            fork = (topic, draft.aggregate_id)
            known = aggregates.get(fork) or self._known(fork, facts, changes)
            if context is None:
                context = vector_bytes(known.last)
                at_packed = max(now, self.at_packed + 1, known.at_packed + 1)
            else:
                at_packed = max(now, self.at_packed + 1, known.at_packed + 1 if context else 0)
            if after:
                at_packed = max(at_packed, 1 + self._latest(draft.after, facts, changes))
            self.at_packed = at_packed
            seq = stream.last + 1
            event = Event(
                draft.id or self._new_id(now_ms, entropy[8 * at : 8 * at + 8]),
                topic, draft.type, draft.aggregate_id, payload, metadata,
                origin, seq, known.last.get(origin, 0), context, after, at_packed, draft.schema_version, traceparent,
            )  # fmt: skip
            hash = sha256(_encode(event)).digest()
            stream.add(seq, hash)
            stream.at_packed = at_packed
            self.position += 1
            rows.append(Row(self.position, event, hash, False))
            here = Stored(event, self.position, log)
            stored.append(here)
            fresh += 1
            if draft.id is not None:
                changes.ids[draft.id] = here
            known.last[origin] = seq
            aggregates[fork] = Known(known.last, at_packed)
            if self.waiting:
                self._release(event.key, facts, changes, outcome)
        return stored, fresh

    def _known(self, fork: Fork, facts: Facts, changes: Changes) -> Known:
        """An aggregate that is not cached: what the store found, and what this transaction has stored since."""
        found = facts.aggregate(fork) or Known({}, 0)
        late = changes.late.get(fork)
        if late is None:
            return found
        last = {origin: max(seq, late.last.get(origin, 0)) for origin, seq in found.last.items()}
        return Known({**late.last, **last}, max(found.at_packed, late.at_packed))

    def _latest(self, causes: Iterable[Key], facts: Facts, changes: Changes) -> int:
        """The greatest hybrid time among some causes."""
        latest = 0
        for cause in causes:
            found = self._under(Key(*cause), facts, changes)
            latest = max(latest, found[0].event.at_packed) if found else latest
        return latest

    def _under(self, key: Key, facts: Facts, changes: Changes) -> tuple[Stored, bytes] | None:
        """The event under a key, also one that this very transaction stores or re-keys."""
        if changes.rows or changes.rekeyed:
            for row in changes.rows:
                if row.event.key == key:
                    return Stored(row.event, row.position, self.log, row.twin), row.hash
            for position, event, hash in changes.rekeyed:
                if event.key == key:
                    return Stored(event, position, self.log), hash
        return facts.by_key(key)

    def _new_id(self, now_ms: int, entropy: bytes) -> str:
        """A UUIDv7: 48 bits of time, 12 bits that count within the millisecond, 62 random ones (RFC 9562)."""
        # Ids that ascend keep the index on them small and fast; a counter that overflows borrows from the next ms.
        self._id_time = max(self._id_time + 1, now_ms << 12)
        value = self._id_time
        text = (
            f"{(value >> 12) & 0xFFFFFFFFFFFF:012x}7{value & 0xFFF:03x}"
            f"{0x8000000000000000 | int.from_bytes(entropy, 'big') >> 2:016x}"
        )
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    # --- received ----------------------------------------------------------------------------------------------------

    def receive(self, received: Sequence[Arrival], facts: Facts, changes: Changes, outcome: Outcome) -> None:
        """Take what arrived; `outcome` gathers what `AppendResult` will say."""
        places: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for arrival in received:
            event, hash, place, _, reason = arrival
            if event is None or reason:
                changes.asides.append(Aside(arrival, reason or "unreadable", None))
                outcome.quarantined.append(reason or "unreadable")
                continue
            if not _is_plain(event) and (error := refusal(event)) is not None:
                self._refuse(arrival, error, changes, outcome)
                continue
            topic, origin, seq = event.topic, event.origin, event.seq
            if place is not None:
                group = (place.reader, topic, origin)
                if group in places:
                    places[group].append((seq, place.position))
                else:
                    places[group] = [(seq, place.position)]
            stream = self.stream(topic, origin)
            if seq in stream:
                self._again(event, hash, facts, changes, outcome)
                continue
            if origin == self.origin:
                # Under our own origin, and not written by us: somebody runs on a copy of this store.
                self.origin = ""
            key = Key(topic, origin, seq)
            if key in self.held:
                self._held_again(key, event, hash, changes, outcome)
                continue
            try:
                missing = self._missing(event)
            except SyncKitError as error:  # the context does not decode, although the hash is right
                self._refuse(arrival, error, changes, outcome)
                continue
            if missing is not None:
                if len(self.held) >= self.held_max:
                    outcome.dropped.append(key)
                    continue
                self.held[key] = (event, hash)
                self.waiting.setdefault(missing, []).append(key)
                changes.held_added[key] = (event, hash)
                outcome.held.append(key)
                continue
            self._store(event, hash, facts, changes, outcome)
            if self.waiting:
                self._release(key, facts, changes, outcome)
        for (reader, topic, origin), found in places.items():
            changes.runs.extend(_runs(reader, topic, origin, found))

    def _refuse(self, arrival: Arrival, error: SyncKitError, changes: Changes, outcome: Outcome) -> None:
        """Set aside, for good, an event that is intact and must not be stored."""
        assert arrival.event is not None
        key = arrival.event.key
        if key not in self.refused:
            self.refused[key] = str(error)
            changes.asides.append(Aside(arrival, str(error), key))
        outcome.quarantined.append(str(error))

    def _store(
        self,
        event: Event,
        hash: bytes,
        facts: Facts,
        changes: Changes,
        outcome: Outcome,
    ) -> None:
        topic, origin, seq, id = event.topic, event.origin, event.seq, event.id
        self.stream(topic, origin).add(seq, hash)
        changes.streams.add((topic, origin))
        earlier = changes.ids.get(id) or facts.by_id(id)
        if earlier is not None and event_content_hash(earlier.event) != event_content_hash(event):
            outcome.twins.append((Key(topic, origin, seq), id))
        self.position += 1
        changes.rows.append(Row(self.position, event, hash, earlier is not None))
        here = Stored(event, self.position, self.log, earlier is not None)
        outcome.stored.append(here)
        if earlier is None:
            changes.ids[id] = here
        changes.hashes[Key(topic, origin, seq)] = hash
        fork = (topic, event.aggregate_id)
        cached = self._aggregates.get(fork)
        known = cached or changes.late.get(fork) or Known({}, 0)
        if known.last.get(origin, 0) < seq:
            known.last[origin] = seq
        (self._aggregates if cached else changes.late)[fork] = Known(known.last, max(known.at_packed, event.at_packed))
        stream = self.streams[topic][origin]
        if stream.at_packed < event.at_packed:
            stream.at_packed = event.at_packed

    def _release(
        self,
        key: Key,
        facts: Facts,
        changes: Changes,
        outcome: Outcome,
    ) -> None:
        """Store what waited for this key, and what waited for that, and so on."""
        stack = [key]
        while stack:
            for waiter in self.waiting.pop(stack.pop(), ()):
                found = self.held.get(waiter)
                if found is None:
                    continue
                missing = self._missing(found[0])
                if missing is not None:
                    self.waiting.setdefault(missing, []).append(waiter)
                    continue
                del self.held[waiter]
                if changes.held_added.pop(waiter, None) is None:
                    changes.held_gone.append(waiter)
                self._store(found[0], found[1], facts, changes, outcome)
                outcome.released += 1
                stack.append(waiter)

    def _again(self, event: Event, hash: bytes, facts: Facts, changes: Changes, outcome: Outcome) -> None:
        """A key that is here already: a repetition, or the key was used twice."""
        key = event.key
        if changes.hashes.get(key) == hash or (key not in changes.hashes and facts.hash_of(key) == hash):
            outcome.duplicates += 1
            return
        found = self._under(key, facts, changes)
        if found is None or found[1] == hash:
            outcome.duplicates += 1
            return
        there, ours = found
        # Two contents under one key: the least hash stays, the other is issued again under an origin that everybody
        # who does this derives alike, so that it becomes one event wherever it is done.
        kept, moved, moved_hash = (ours, event, hash) if ours < hash else (hash, there.event, ours)
        reissue = msgspec.structs.replace(moved, origin=f"{key.origin}~{moved_hash.hex()[:8]}", seq=1, prev=0)
        reissue_hash = event_hash(reissue)
        stream = self.stream(key.topic, key.origin)
        if reissue.key not in self:
            outcome.reused.append(Reuse(key, kept, reissue))
        if kept == hash:  # the newcomer wins: what is in the log moves to its new key, the newcomer comes behind it
            stream.total = (stream.total + int.from_bytes(hash, "big") - int.from_bytes(ours, "big")) % DIGEST_MODULUS
            changes.streams.add((key.topic, key.origin))
            again = reissue.key in self
            if again:
                # The moved one is here under its new key too; the row that stood under the old key takes the newcomer.
                changes.rekey(there.position, event, hash)
            else:
                changes.rekey(there.position, reissue, reissue_hash)
                self.stream(reissue.topic, reissue.origin).add(1, reissue_hash)
                changes.streams.add((reissue.topic, reissue.origin))
                self.position += 1
                twin = (changes.ids.get(event.id) or facts.by_id(event.id)) is not None
                changes.rows.append(Row(self.position, event, hash, twin))
                outcome.stored.append(Stored(event, self.position, self.log, twin))
            changes.hashes[key] = hash
        elif reissue.key not in self:
            self._store(reissue, reissue_hash, facts, changes, outcome)
            self._release(reissue.key, facts, changes, outcome)
        for each in (event, there.event):
            self._aggregates.pop((each.topic, each.aggregate_id), None)
        if key.origin == self.origin:
            self.origin = ""

    def _held_again(self, key: Key, event: Event, hash: bytes, changes: Changes, outcome: Outcome) -> None:
        """A key that is held: keep the variant with the least hash; the other one comes again by repair."""
        if hash < self.held[key][1]:
            self.held[key] = (event, hash)
            changes.held_added[key] = (event, hash)
        outcome.duplicates += 1

    # --- the whole ---------------------------------------------------------------------------------------------------

    def declare_void(self, voids: Sequence[Key], facts: Facts, changes: Changes, outcome: Outcome) -> None:
        """Release what waits for keys that nobody holds any more."""
        for key in voids:
            key = Key(*key)
            if key not in self.voids and key not in self:
                self.voids.add(key)
                changes.voids.append(key)
                self._release(key, facts, changes, outcome)

    def apply(
        self,
        drafts: Sequence[Draft],
        received: Sequence[Arrival],
        facts: Facts,
        changes: Changes,
        *,
        now_ms: int,
        offsets: Mapping[str, Offset],
        voids: Sequence[Key] = (),
        forget: Sequence[str] = (),
        traceparent: str = "",
    ) -> AppendResult:
        """Decide one request; see `EventStore.append` for the arguments and errors."""
        ready = self.check(drafts, facts, changes) if drafts else ()
        touched: set[str] = {draft.topic for draft in drafts}
        outcome = Outcome()
        stored: Sequence[Stored] = ()
        fresh = 0
        if ready:
            stored, fresh = self.write(ready, facts, changes, outcome, now_ms=now_ms, traceparent=traceparent)
        runs_before = len(changes.runs)
        changes.forget.extend(forget)
        if received:
            self.receive(received, facts, changes, outcome)
            touched.update(arrival.event.topic for arrival in received if arrival.event is not None)
        if voids:
            self.declare_void(voids, facts, changes, outcome)
            touched.update(key[0] for key in voids)
        changes.offsets.update(offsets)
        return AppendResult(
            appended=tuple(stored),
            fresh=fresh,
            stored=tuple(outcome.stored),
            released=outcome.released,
            duplicates=outcome.duplicates,
            held=tuple(outcome.held),
            dropped=tuple(outcome.dropped),
            quarantined=tuple(outcome.quarantined),
            twins=tuple(outcome.twins),
            reused=tuple(outcome.reused),
            runs=tuple(changes.runs[runs_before:]),
            summaries={topic: self.summary(topic) for topic in touched},
        )

    def settle(self) -> None:
        """After a commit: let go of what the cache need not keep."""
        while len(self._aggregates) > AGGREGATES_CACHED:
            self._aggregates.popitem(last=False)


def _is_plain(event: Event) -> bool:
    """Whether an event is so ordinary that `refusal` need not look: the hot path of `receive`."""
    return (
        0 < event.prev + 1 <= event.seq < 1 << 62
        and 0 <= event.at_packed < 1 << 62
        and 0 < len(event.topic) < 25
        and 0 < len(event.aggregate_id) < 1000
        and 0 < len(event.id) < 60
        and 0 < len(event.type) < 60
        and 0 < len(event.origin) < 60
        and len(event.payload) <= 100_000
        and not event.metadata_json
        and not event.after_bytes
        and len(event.context_bytes) <= CONTEXT_BYTES_MAX
        and event.schema_version == 1
        and "\0" not in event.aggregate_id
        and "\0" not in event.id
    )


def _runs(reader: str, topic: str, origin: str, found: list[tuple[int, int]]) -> list[PlaceRun]:
    """Places of one origin's events, in runs of consecutive numbers; of a number read twice, the later place."""
    last: dict[int, int] = {}
    for seq, position in found:
        if position >= last.get(seq, 0):
            last[seq] = position
    runs: list[PlaceRun] = []
    positions: list[int] = []
    first = 0
    for seq in sorted(last):
        if positions and seq == first + len(positions):
            positions.append(last[seq])
            continue
        if positions:
            runs.append(PlaceRun(reader, topic, origin, first, positions))
        first, positions = seq, [last[seq]]
    runs.append(PlaceRun(reader, topic, origin, first, positions))
    return runs
