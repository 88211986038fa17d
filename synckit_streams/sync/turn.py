"""One request's turn within a transaction: the steps that local and received events share, and what the request did.

`place` is the rule for a key that was given to two events (a store was copied or put back, and then both were
written): the event with the least hash keeps the key. The other one is issued again, same id and context, under the
origin `origin~hash8`, which everybody who does this derives alike, so that it is one event wherever it is done. Rows of
the log keep the fact that they hold: who is past a row has counted it, so a fact never moves behind a reader or before
one that has not read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.codec import event_content_hash, event_hash
from synckit_streams.model.event import Event, Stored
from synckit_streams.model.exchange import AppendResult, PlaceRun, Reuse, Summary
from synckit_streams.sync.changes import Changes, Row
from synckit_streams.sync.facts import Facts, Fork, Known
from synckit_streams.sync.ledger import Ledger, pairs
from synckit_streams.sync.stream import Stream


class Turn:
    """See the module's text; the fields are those of `AppendResult`."""

    def __init__(self, ledger: Ledger, facts: Facts, changes: Changes) -> None:
        self.ledger = ledger
        self.facts = facts
        self.changes = changes
        self._stream: Stream | None = None  # the last one that was stored into
        self.topics: set[str] = set()
        self.appended: list[Stored] = []
        self.fresh = 0
        self.stored: list[Stored] = []
        self.released = 0
        self.duplicates = 0
        self.held: list[Key] = []
        self.dropped: list[Key] = []
        self.quarantined: list[str] = []
        self.twins: list[tuple[Key, str]] = []
        self.reused: list[Reuse] = []
        self.conflicts: dict[Fork, None] = {}
        self.runs: list[PlaceRun] = []

    def results(self, summaries: Mapping[str, Summary], drafts: Sequence[int]) -> list[AppendResult]:
        """What the request did, once its whole transaction is decided: a later request may have moved a reused key.

        Args:
            summaries: Of every topic that changed.
            drafts: How many drafts each caller brought, of those who share the request (of new drafts only). To each
                his own events; to the first one whatever else came of it.
        """
        current = self.changes.current if self.changes.reused else list
        mine = {topic: summaries[topic] for topic in self.topics}
        first = AppendResult(
            appended=tuple(current(self.appended[: drafts[0]])),
            fresh=self.fresh if len(drafts) == 1 else drafts[0],
            stored=tuple(current(self.stored)),
            released=self.released,
            duplicates=self.duplicates,
            held=tuple(self.held),
            dropped=tuple(self.dropped),
            quarantined=tuple(self.quarantined),
            twins=tuple(self.twins),
            reused=tuple(self.reused),
            conflicts=tuple(self.conflicts),
            runs=tuple(self.runs),
            summaries=mine,
        )
        results, at = [first], drafts[0]
        for count in drafts[1:]:
            appended = tuple(current(self.appended[at : at + count]))
            results.append(AppendResult(appended=appended, fresh=count, summaries=mine))
            at += count
        return results

    # --- looking -----------------------------------------------------------------------------------------------------

    def under(self, key: Key) -> tuple[Stored, bytes] | None:
        """The event under a key, also one that this very transaction stores or moves."""
        row = self.changes.under(key)
        if row is not None:
            return Stored(row.event, row.position, self.ledger.log, row.twin), row.hash
        return self.facts.by_key(key)

    def hash_of(self, key: Key) -> bytes | None:
        """The hash of the event under a key."""
        row = self.changes.under(key)
        return row.hash if row is not None else self.facts.hash_of(key)

    def latest(self, causes: Iterable[Key]) -> int:
        """The greatest hybrid time among some events that are here."""
        found = [self.under(cause) for cause in causes]
        return max((each[0].event.at_packed for each in found if each is not None), default=0)

    # --- storing -----------------------------------------------------------------------------------------------------

    def store(self, event: Event, hash: bytes, stream: Stream) -> None:
        """Put a ready event, under a key that is not taken, at the end of the log."""
        stream.add(event.seq, hash)
        if stream.at_packed < event.at_packed:
            stream.at_packed = event.at_packed
        if stream is not self._stream:
            self._stream = stream
            self.changes.streams.add((event.topic, event.origin))
        fork = (event.topic, event.aggregate_id)
        known = self.ledger.known(fork, self.facts, self.changes)
        if known is None:
            self.changes.late[fork] = Known({event.origin: event.seq}, event.at_packed)
        else:
            self._meet(event, fork, known)
            _learn(event, known)
        self._append(event, hash)

    def _meet(self, event: Event, fork: Fork, known: Known) -> None:
        """Note whether the aggregate holds an event that this one's writer did not know."""
        context = dict(pairs(event.context_bytes)) if event.context_bytes else {}
        for origin, seq in known.last.items():
            if seq > context.get(origin, 0):
                self.conflicts[fork] = None
                return

    def _append(self, event: Event, hash: bytes) -> None:
        """A new row at the end, marked if its id is in the log already."""
        ledger, changes, id = self.ledger, self.changes, event.id
        earlier = changes.ids.get(id) or self.facts.by_id(id)
        position = ledger.position = ledger.position + 1
        here = Stored(event, position, ledger.log, earlier is not None)
        changes.rows.append(Row(position, event, hash, earlier is not None))
        self.stored.append(here)
        if earlier is None:
            changes.ids[id] = here
        elif event_content_hash(earlier.event) != event_content_hash(event):
            self.twins.append((event.key, id))
        if ledger.refused:
            ledger.refused.pop(event.key, None)  # the key came with a content that may be stored

    def take(self, event: Event, hash: bytes) -> None:
        """Put a ready event into the log, whether its key is taken or not, and release what waited for it."""
        key = event.key
        if key in self.ledger:
            for placed in self.place(event, hash, None):
                self.release(placed)
        else:
            self.store(event, hash, self.ledger.stream(key.topic, key.origin))
            self.release(key)

    def release(self, key: Key) -> None:
        """Store what waited for a key, and what waited for that, and so on."""
        waiting = self.ledger.waiting
        come = [key]
        while come and waiting:
            for hash, event in waiting.waiters(come.pop()):
                cause = self.ledger.missing(event)
                if cause is not None:
                    waiting.add(event, hash, cause)
                    continue
                waiting.drop(hash)
                if self.changes.held_added.pop(hash, None) is None:
                    self.changes.held_gone.append(hash)
                self.released += 1
                self.topics.add(event.topic)
                if event.key in self.ledger:
                    before = len(self.reused)
                    come.extend(self.place(event, hash, None))
                    self.reused[before:] = [each._replace(held=True) for each in self.reused[before:]]
                else:
                    self.store(event, hash, self.ledger.stream(event.topic, event.origin))
                    come.append(event.key)

    def ripen(self) -> None:
        """Store what was held when the ledger was loaded, although nothing that it waits for is missing."""
        ripe, self.ledger.ripe = self.ledger.ripe, []
        for hash, event in ripe:
            self.changes.held_gone.append(hash)
            self.released += 1
            self.topics.add(event.topic)
            self.take(event, hash)

    # --- one key, two events -----------------------------------------------------------------------------------------

    def place(self, event: Event, hash: bytes, row: Stored | None) -> list[Key]:
        """Put an event under its key, which may be taken; see the module's text. Gives the keys that are new here.

        Args:
            event: Its key names the place.
            hash: Of the event.
            row: Where the event stands already, under a key that it has lost; None for a newcomer.
        """
        key, ledger = event.key, self.ledger
        stream = ledger.stream(key.topic, key.origin)
        if key.seq not in stream:
            stream.add(key.seq, hash)
            self._put(event, hash, row)
            return [key]
        found = self.under(key)
        if found is None or found[1] == hash:  # here already, just so
            if row is None:
                self.duplicates += 1
            elif found is not None:
                self._merge(event, hash, row, found[0])
            return []
        if key.origin == ledger.origin:
            # Somebody else writes under our origin: this is a copy, or that is one.
            ledger.origin = ""
        there, there_hash = found
        if hash > there_hash:
            again = reissued(event, hash)
            new = self.place(again, event_hash(again), row)
            if new or row is not None:
                self.reused.append(Reuse(key, there_hash, again))
            return new
        again = reissued(there.event, there_hash)
        new = self.place(again, event_hash(again), there)
        self.reused.append(Reuse(key, hash, again))
        stream.replace(there_hash, hash)
        self._put(event, hash, row)
        return new

    def _put(self, event: Event, hash: bytes, row: Stored | None) -> None:
        """An event that has got its key, into the row in which it stands, or into a new one."""
        ledger, changes = self.ledger, self.changes
        changes.reused = True
        changes.streams.add((event.topic, event.origin))
        stream = ledger.stream(event.topic, event.origin)
        stream.at_packed = max(stream.at_packed, event.at_packed)
        if row is None:
            self._append(event, hash)
        else:
            changes.put(Row(row.position, event, hash, row.twin))
        fork = (event.topic, event.aggregate_id)
        known = ledger.aggregates.get(fork) or changes.late.get(fork)
        if known is None:
            changes.late[fork] = Known({event.origin: event.seq}, event.at_packed)
        else:
            _learn(event, known)
        changes.unsure.add(fork)

    def _merge(self, event: Event, hash: bytes, row: Stored, other: Stored) -> None:
        """One event stands in two rows: the earlier one stays, since that is where readers count the fact."""
        if row.position < other.position:
            self.changes.remove(other.position)
            self.changes.put(Row(row.position, event, hash, row.twin))
        else:
            self.changes.remove(row.position)


def _learn(event: Event, known: Known) -> None:
    """What the event's aggregate has seen now."""
    if known.last.get(event.origin, 0) < event.seq:
        known.last[event.origin] = event.seq
    if known.at_packed < event.at_packed:
        known.at_packed = event.at_packed


def reissued(event: Event, hash: bytes) -> Event:
    """An event that lost its key to another one, under the key that everybody gives it."""
    return msgspec.structs.replace(event, origin=f"{event.origin}~{hash.hex()[:8]}", seq=1, prev=0)
