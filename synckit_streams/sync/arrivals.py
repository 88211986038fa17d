"""Received events: stored, held, set aside or known already; never an error because of their content.

One bad event that raised would block its batch for ever. What cannot be read is lost in transport: its bytes go to
quarantine, and the next exchange of digests brings the event again. What is intact but must not be stored is refused
for good, and its key is told to the peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, groupby
from operator import sub

import msgspec

from synckit_streams.errors import SyncKitError
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import refusal
from synckit_streams.model.event import Event
from synckit_streams.model.exchange import Arrival, PlaceRun
from synckit_streams.sync.changes import Aside
from synckit_streams.sync.places import even_parts
from synckit_streams.sync.stream import Stream
from synckit_streams.sync.turn import Turn, reissued


def receive(turn: Turn, received: Sequence[Arrival]) -> None:
    """Take what arrived, in the order of arrival."""
    ledger, waiting = turn.ledger, turn.ledger.waiting
    places: dict[tuple[str, str, str], tuple[list[int], list[int]]] = {}
    topic = origin = reader = ""
    stream = Stream()
    plain = False
    numbers: list[int] = []
    positions: list[int] = []
    for arrival in received:
        event, hash, place, _, reason = arrival
        if event is None or reason:
            _set_aside(turn, arrival, reason or "unreadable", None)
            continue
        if event.origin != origin or event.topic != topic:  # most of a batch is of one origin
            topic, origin = event.topic, event.origin
            stream = ledger.stream(topic, origin)
            plain = _is_plain_text(topic, 100) and _is_plain_text(origin, 255)
            turn.topics.add(topic)
            reader = ""
        seq = event.seq
        here = seq in stream
        if not here and origin == ledger.origin:
            # Under our own origin, and not written by us: somebody runs on a copy of this store.
            ledger.origin = ""
        if not (plain and _is_plain(event)) and (error := refusal(event)) is not None:
            _refuse(turn, arrival, event.key, error)
            continue
        if place is not None:
            if place.reader != reader:
                reader = place.reader
                numbers, positions = places.setdefault((reader, topic, origin), ([], []))
            numbers.append(seq)
            positions.append(place.position)
        if (here and turn.hash_of(event.key) == hash) or (waiting and hash in waiting):
            turn.duplicates += 1
            continue
        cause: Key | None = None
        if event.prev or event.context_bytes or event.after_bytes:
            try:
                cause = ledger.missing(event)
            except SyncKitError as error:  # the context does not decode, although the hash is right
                _refuse(turn, arrival, event.key, error)
                continue
        if cause is not None:
            _hold(turn, event, hash, cause)
        elif here:
            turn.take(event, hash)
            if place is not None and turn.hash_of(event.key) != hash:
                # It lost its key to the event that was here, which lies somewhere else in the log, or nowhere.
                numbers.pop()
                positions.pop()
                again = places.setdefault((reader, topic, reissued(event, hash).origin), ([], []))
                again[0].append(1)
                again[1].append(place.position)
        else:
            turn.store(event, hash, stream)
            if waiting:
                turn.release(event.key)
    for (reader, topic, origin), found in places.items():
        if found[0]:
            _note(turn, runs_of(reader, topic, origin, *found))


def recognise(turn: Turn, echoes: Sequence[PlaceRun]) -> None:
    """Note where events of this store were read again; see `EventStore.append`."""
    for run in echoes:
        turn.topics.add(run.topic)
        turn.duplicates += len(run.positions)
    _note(turn, echoes)


def _note(turn: Turn, runs: Sequence[PlaceRun]) -> None:
    turn.runs.extend(runs)
    turn.changes.runs.extend(runs)


def declare_void(turn: Turn, voids: Sequence[Key]) -> None:
    """Release what waits for keys that nobody holds any more. They do not enter `Seen`: a late original is taken."""
    for key in voids:
        key = Key(*key)
        turn.topics.add(key.topic)
        if key not in turn.ledger.voids and key not in turn.ledger:
            turn.ledger.voids.add(key)
            turn.changes.voids.append(key)
            turn.release(key)


def forget(turn: Turn, readers: Sequence[str]) -> None:
    """Give up the places of readers whose log was lost, also those that this transaction was about to write."""
    changes = turn.changes
    changes.forget.extend(readers)
    changes.runs = [run for run in changes.runs if run.reader not in readers]


def _hold(turn: Turn, event: Event, hash: bytes, cause: Key) -> None:
    ledger = turn.ledger
    if cause.origin == ledger.origin:
        # It follows an event of ours that we never wrote: a copy of this store did, or this one was put back.
        ledger.origin = ""
    if len(ledger.waiting) >= ledger.held_max:
        # The newest goes, not one that may be about to be released. `Seen` lacks it, so it comes back.
        turn.dropped.append(event.key)
        return
    ledger.waiting.add(event, hash, cause)
    turn.changes.held_added[hash] = event
    turn.held.append(event.key)


def _refuse(turn: Turn, arrival: Arrival, key: Key, error: SyncKitError) -> None:
    """Set aside, for good, an event that is intact and must not be stored."""
    reason = str(error)
    if key in turn.ledger.refused or key in turn.ledger:  # told already; or the key has an event that may be stored
        turn.quarantined.append(reason)
        return
    turn.topics.add(key.topic)
    turn.ledger.refused[key] = reason
    _set_aside(turn, arrival, reason, key)


def _set_aside(turn: Turn, arrival: Arrival, reason: str, key: Key | None) -> None:
    raw = arrival.raw
    if not raw and arrival.event is not None:
        try:
            raw = msgspec.msgpack.encode(arrival.event)
        except (UnicodeEncodeError, OverflowError):  # an event that was never on any wire
            raw = repr(arrival.event).encode("utf-8", "backslashreplace")
    reader, place = arrival.place or ("", 0)
    turn.changes.asides.append(Aside(reason, reader, place, raw, key))
    turn.quarantined.append(reason)


def _is_plain(event: Event) -> bool:
    """Whether all but the topic and the origin of an event is so ordinary that `refusal` need not look."""
    return (
        0 <= event.prev < event.seq < 1 << 62
        and 0 <= event.at_packed < 1 << 62
        and event.schema_version == 1
        and not event.metadata_json
        and not event.after_bytes
        and not event.traceparent
        and len(event.context_bytes) < 1000  # `missing` looks at it
        and len(event.payload) <= 100_000
        and _is_plain_text(event.id, 255)
        and _is_plain_text(event.aggregate_id, 1000)
        and _is_plain_text(event.type, 255)
    )


def _is_plain_text(text: str, length_max: int) -> bool:
    """Whether a name is allowed beyond doubt: ASCII has no lone surrogate, and as many bytes as characters."""
    return text.isascii() and 0 < len(text) < length_max and "\0" not in text


def runs_of(reader: str, topic: str, origin: str, numbers: Sequence[int], positions: Sequence[int]) -> list[PlaceRun]:
    """Places of one origin's events, in runs of consecutive numbers; of a number read twice, the later place."""
    if list(numbers) != list(range(numbers[0], numbers[0] + len(numbers))):  # rarely
        last: dict[int, int] = {}
        for seq, position in zip(numbers, positions, strict=True):
            if position >= last.get(seq, 0):
                last[seq] = position
        numbers = sorted(last)
        positions = [last[seq] for seq in numbers]
    runs: list[PlaceRun] = []
    behind = 0
    for start, together in groupby(map(sub, numbers, count())):
        ahead = behind + len(list(together))
        # A frame each, or a constant step: what takes a few bytes on the disk, however many events it is.
        for part in even_parts(positions[behind:ahead]):
            runs.append(PlaceRun(reader, topic, origin, start + behind, part))
            behind += len(part)
    return runs
