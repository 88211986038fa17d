"""One call of `EventStore.append`, decided: first the drafts, then what was received, then what is void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Draft, Offset, Stored
from synckit_streams.model.exchange import Arrival, Moved, PlaceRun, Raised
from synckit_streams.sync import adoption, arrivals, drafts
from synckit_streams.sync.changes import Changes
from synckit_streams.sync.drafts import Prepared
from synckit_streams.sync.facts import Facts
from synckit_streams.sync.ledger import Ledger
from synckit_streams.sync.turn import Turn


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked; see `EventStore.append` for the arguments, and `EventStore.adopt` for `moved`."""

    drafts: Sequence[Draft] = ()
    received: Sequence[Arrival] = ()
    now_ms: int
    echoes: Sequence[PlaceRun] = ()
    offsets: Mapping[str, Offset] = {}
    voids: Sequence[Key] = ()
    forget: Sequence[str] = ()
    traceparent: str = ""
    alarms: Sequence[Raised] = ()
    moved: Moved | None = None

    @property
    def only_new(self) -> bool:
        """Whether it brings local events that nobody can have written before, and nothing else."""
        return not (
            self.received
            or self.echoes
            or self.offsets
            or self.voids
            or self.forget
            or self.alarms
            or self.moved
            or any(not isinstance(draft, Draft) or draft.id is not None for draft in self.drafts)
        )

    @property
    def come(self) -> Sequence[Arrival]:
        """The events that come from elsewhere, for whoever looks up what is known of them."""
        if self.moved is None:
            return self.received
        return [Arrival(stored.event, hash, None) for stored, hash in self.moved.rows]

    @property
    def events(self) -> int:
        """How many events it brings."""
        return len(self.drafts) + len(self.received)


def decide(
    request: Request,
    prepared: Sequence[Prepared],
    repeats: Mapping[str, Stored],
    ledger: Ledger,
    facts: Facts,
    changes: Changes,
) -> Turn:
    """Do what a request asks. Its drafts have passed `drafts.prepare` and `drafts.check`, so nothing raises here."""
    turn = Turn(ledger, facts, changes)
    if ledger.ripe:
        turn.ripen()
    if prepared:
        drafts.write(turn, prepared, repeats, now_ms=request.now_ms)
    if request.forget:
        arrivals.forget(turn, request.forget)
    if request.echoes:
        arrivals.recognise(turn, request.echoes)
    if request.received:
        arrivals.receive(turn, request.received)
    if request.voids:
        arrivals.declare_void(turn, request.voids)
    if request.moved is not None:
        adoption.adopt(turn, request.moved)
    changes.offsets.update(request.offsets)
    for alarm in request.alarms:
        changes.alarms.append(alarm._replace(first_ms=request.now_ms, last_ms=request.now_ms))
    return turn
