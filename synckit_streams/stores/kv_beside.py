"""What stands beside the log in a key-value medium: who the store is, what is held or set aside, who stands where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import PlaceRun, Quarantined, Raised
from synckit_streams.ports.store import QUARANTINED_MAX
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores.kv_medium import Medium, Pair
from synckit_streams.stores.kv_rows import Writes, decode_event, encode
from synckit_streams.stores.place_rows import RunRows, run_of
from synckit_streams.sync.changes import Aside
from synckit_streams.sync.ledger import Changes, Fork, Ledger, Stream

ROWS_TOGETHER = 1_000
"""So many rows are read in one call where a whole table is."""

_decode_stream = msgspec.msgpack.Decoder(tuple[str, str, list[tuple[int, int]], bytes, int]).decode
_decode_offset = msgspec.msgpack.Decoder(tuple[str, str, int, bytes]).decode
_decode_aside = msgspec.msgpack.Decoder(tuple[str, str, int, bytes, Key | None]).decode
_decode_refused = msgspec.msgpack.Decoder(tuple[str, str, int, str]).decode
_decode_void = msgspec.msgpack.Decoder(tuple[str, str, int]).decode
_decode_place = msgspec.msgpack.Decoder(tuple[str, str, str, int, bytes]).decode
_decode_applied = msgspec.msgpack.Decoder(tuple[str, str, str, bytes]).decode
_decode_alarm = msgspec.msgpack.Decoder(Raised).decode


def rows(medium: Medium, prefix: bytes) -> Iterator[Pair]:
    """All rows whose keys begin with a prefix, page by page."""
    start, end = prefix, keys.end_of(prefix)
    while pairs := medium.page(start, end, ROWS_TOGETHER):
        yield from pairs
        start = pairs[-1][0] + b"\0"


def last_number(medium: Medium, prefix: bytes) -> int:
    """The greatest number in a table whose keys are a prefix and a number; 0 if it is empty."""
    pairs = medium.page(prefix, keys.end_of(prefix), 1, reverse=True)
    if not pairs:
        return 0
    number: int = keys.number_of(pairs[0][0][len(prefix) :])[0]
    return number


# --- who the store is -------------------------------------------------------------------------------------------------


def meta_key(name: str) -> bytes:
    """Where something about the store itself is."""
    return keys.META + name.encode()


def meta(medium: Medium) -> dict[str, str]:
    """Everything about the store itself, by name."""
    return {key[1:].decode(): value.decode() for key, value in rows(medium, keys.META)}


# --- loading ----------------------------------------------------------------------------------------------------------


def load_streams(medium: Medium, ledger: Ledger, node: str) -> dict[Fork, int]:
    """Fill a ledger with what is here of each stream; gives the numbers of the streams."""
    numbers: dict[Fork, int] = {}
    for key, value in rows(medium, keys.STREAM):
        topic, origin, ranges, total, at = _decode_stream(value)
        numbers[topic, origin] = int.from_bytes(key[1:], "big")
        if ranges:
            ledger.streams.setdefault(topic, {})[origin] = Stream(ranges, int.from_bytes(total, "big"), at)
        if node_of(origin) == node:
            ledger.at_packed = max(ledger.at_packed, at)
    return numbers


def stream_names(value: bytes) -> Fork:
    """Topic and origin of a stream."""
    topic, origin, *_ = _decode_stream(value)
    return topic, origin


def load_beside(medium: Medium, ledger: Ledger) -> None:
    """Fill a ledger whose streams are there with what is void, refused or held."""
    ledger.voids.update(Key(*_decode_void(value)) for _, value in rows(medium, keys.VOID))
    for _, value in rows(medium, keys.REFUSED):
        topic, origin, seq, reason = _decode_refused(value)
        if (key := Key(topic, origin, seq)) not in ledger:
            ledger.refused[key] = reason
    for hash, value in rows(medium, keys.HELD):
        ledger.load_held(decode_event(value), hash[1:])


# --- reading ----------------------------------------------------------------------------------------------------------


def offset_key(consumer: str) -> bytes:
    """Where it is kept where a consumer stands."""
    return keys.OFFSET + keys.text(consumer)


def offset_value(consumer: str, offset: Offset) -> bytes:
    """Where a consumer stands."""
    return encode((consumer, offset.log, offset.position, offset.fingerprint))


def offset_of(value: bytes) -> tuple[str, Offset]:
    """The consumer, and where it stands."""
    consumer, log, position, fingerprint = _decode_offset(value)
    return consumer, Offset(log, position, fingerprint)


def applied_prefix(projection: str) -> bytes:
    """Where all that is kept that a projection applied."""
    return keys.APPLIED + keys.text(projection)


def applied_key(projection: str, topic: str, aggregate_id: str) -> bytes:
    """Where it is kept what a projection applied of an aggregate."""
    return applied_prefix(projection) + keys.aggregate(topic, aggregate_id)


def applied_value(projection: str, topic: str, aggregate_id: str, state: bytes) -> bytes | None:
    """What a projection applied of an aggregate; None when that is nothing any more."""
    return encode((projection, topic, aggregate_id, state)) if state else None


def state_of(value: bytes) -> bytes:
    """The state that was applied."""
    return _decode_applied(value)[3]


def noted(medium: Medium) -> Iterator[str]:
    """Every name under which something was applied; one look for each."""
    start, end = keys.APPLIED, keys.end_of(keys.APPLIED)
    while pairs := medium.page(start, end, 1):
        projection = _decode_applied(pairs[0][1])[0]
        yield projection
        start = keys.end_of(applied_prefix(projection))


def applied(medium: Medium, projection: str, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str, bytes]]:
    """The next page of what a projection noted, in the order of the keys."""
    prefix = applied_prefix(projection)
    start = prefix if after is None else applied_key(projection, *after) + b"\0"
    found = (_decode_applied(value) for _, value in medium.page(start, keys.end_of(prefix), limit))
    return [(topic, aggregate_id, state) for _, topic, aggregate_id, state in found]


def runs_of(medium: Medium, reader: str | None) -> list[PlaceRun]:
    """Where a reader read what, oldest first; None is every reader, one after another."""
    of_reader = b"" if reader is None else keys.text(reader)
    return [run_of(_decode_place(value)) for _, value in rows(medium, keys.PLACE + of_reader)]


def alarms(medium: Medium) -> list[Raised]:
    """What was raised, the last one first."""
    found = [_decode_alarm(value) for _, value in rows(medium, keys.ALARM)]
    return sorted(found, key=lambda each: (-each.last_ms, each.kind, each.topic))


def quarantined(pairs: Iterable[Pair]) -> list[Quarantined]:
    """Rows of what was set aside."""
    return [Quarantined(keys.number_of(key[1:])[0], *_decode_aside(value)) for key, value in pairs]


# --- writing ----------------------------------------------------------------------------------------------------------


class Beside:
    """The tables beside the log, as the one who writes them knows them. Thrown away when a transaction fails.

    Args:
        medium: To look in.
    """

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._set_aside = last_number(medium, keys.QUARANTINE)
        (last,) = medium.get_many([meta_key("places")])
        self._places = RunRows(int(last or 0))

    def write(self, changes: Changes, writes: Writes) -> None:
        """What a transaction does to them.

        Args:
            changes: Of the transaction.
            writes: Where the rows go.
        """
        for hash in changes.held_gone:
            writes[keys.HELD + hash] = None
        for hash, event in changes.held_added.items():
            writes[keys.HELD + hash] = encode(event)
        if changes.asides:
            self._put_aside(changes.asides, writes)
        for key in changes.voids:
            writes[keys.VOID + keys.key(*key)] = encode(key)
        if changes.forget:
            for reader in set(changes.forget):
                writes.update((key, None) for key, _ in rows(self._medium, keys.PLACE + keys.text(reader)))
            self._places.forget(changes.forget)
        if changes.runs:
            self._put_places(changes.runs, writes)
        for consumer, offset in changes.offsets.items():
            writes[offset_key(consumer)] = offset_value(consumer, offset)
        if changes.alarms:
            self._raise(changes.alarms, writes)

    def _put_aside(self, asides: Sequence[Aside], writes: Writes) -> None:
        for reason, reader, place, raw, key in asides:
            self._set_aside += 1
            number = keys.number(self._set_aside)
            writes[keys.QUARANTINE + number] = encode((reason, reader, place, raw, key))
            if key is None:
                writes[keys.UNREAD + number] = b""
            else:
                writes[keys.REFUSED + keys.key(*key)] = encode((*key, reason))
        # Those of this transaction as well, where it brings more than are kept.
        end = keys.UNREAD + keys.number(max(self._set_aside - QUARANTINED_MAX + 1, 0))
        gone = [unread for unread, _ in self._medium.page(keys.UNREAD, end, 2 * QUARANTINED_MAX)]
        gone += [unread for unread in writes if unread[:1] == keys.UNREAD and unread < end]
        for unread in gone:
            writes[unread] = writes[keys.QUARANTINE + unread[1:]] = None

    def _put_places(self, runs: Iterable[PlaceRun], writes: Writes) -> None:
        added = self._places.add(runs)
        for number, reader, *rest in added:
            writes[keys.PLACE + keys.text(reader) + keys.number(number)] = encode((reader, *rest))
        writes[meta_key("places")] = b"%d" % max(row[0] for row in added)

    def _raise(self, raised: Iterable[Raised], writes: Writes) -> None:
        for alarm in raised:
            key = keys.ALARM + keys.text(alarm.kind) + keys.text(alarm.topic)
            before = writes.get(key) or self._medium.get_many([key])[0]
            if before is not None:
                earlier = _decode_alarm(before)
                alarm = alarm._replace(times=earlier.times + alarm.times, first_ms=earlier.first_ms)
            writes[key] = encode(alarm)
