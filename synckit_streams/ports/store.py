"""What a store must do: one append transaction that decides everything, paged reads, and nothing else.

`append` allocates numbers and contexts, removes duplicates, holds what is early, and moves the reader's offset, all in
one transaction. How it decides is the same for every store (`synckit_streams.sync.ledger`); a store reads the facts
that the ledger wants and writes the rows that it returns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.model.exchange import AppendResult, Arrival, Moved, PlaceRun, Quarantined, Raised, Summary
from synckit_streams.model.seen import Interval


class StoreFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What a store can do.

    Args:
        durable: What was appended survives a crash of the process and of the machine.
        atomic_offsets: A projection's effect and its offset commit together.
        sql: `Transaction.execute` takes SQL.
        listen: `wait` wakes for what *another process* wrote.
        shared: Many processes may have it open.
        leases: `lease` divides work among all who have it open.
    """

    durable: bool
    atomic_offsets: bool = True
    sql: bool = False
    listen: bool = False
    shared: bool = False
    leases: bool = False


QUARANTINED_MAX = 1_000
"""So many of the last arrivals that could not be read are kept; older ones go, since what was lost in transport comes
again, and somebody else's messages must not fill the disk. What is refused for good is all kept."""


LEASE_S_MAX = 86_400.0
"""A lease holds for a day at most; whoever wants it for longer renews it."""


class Lease(NamedTuple):
    """Something that one holder has to himself for a while.

    Args:
        name: Of what: any text.
        holder: Who has it.
        token: Ascends each time that the name is taken, so that an earlier holder's is told from the present one's.
    """

    name: str
    holder: str
    token: int


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Who opens a store, and how.

    Args:
        node: The node id.
        topics: The topics that this node replicates; `after` on any other topic delays nothing. None is every topic:
            for whoever must not let anything go that a node holds back.
        held_max: How many events may wait for their causes.
        dice: Random bytes; injected so that a simulation replays.
    """

    node: str
    topics: tuple[str, ...] | None
    held_max: int = 10_000
    dice: Callable[[int], bytes]


class Transaction(Protocol):
    """One open transaction of the store: an effect, the events that it gives rise to, and how far it has come."""

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement of the store's SQL, and return its rows.

        Raises:
            FeatureUnsupported: the store has no SQL.
        """

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each row, in one call."""

    async def offset(self, consumer: str) -> Offset | None:
        """Where a consumer stands, as this transaction sees it."""

    async def set_offset(self, consumer: str, offset: Offset) -> None:
        """Move a consumer."""

    async def set_offsets(self, offsets: Mapping[str, Offset]) -> None:
        """Move some consumers, in one call to the store."""

    async def applied(self, projection: str, aggregates: Sequence[tuple[str, str]]) -> Sequence[bytes | None]:
        """What a projection noted as the last state that it applied of each of some aggregates (topic and id); None at
        first. One call to the store for all of them."""

    async def note_applied(self, projection: str, states: Sequence[tuple[str, str, bytes]]) -> None:
        """Note for some aggregates (topic and id) the states that it applies in this transaction; b"" is no state, and
        removes the note."""

    async def forget_applied(self, projection: str) -> None:
        """Remove all notes of a projection: it begins anew."""

    async def append(self, drafts: Sequence[Draft], *, now_ms: int, traceparent: str = "") -> None:
        """Write local events with this transaction, as `EventStore.append` would.

        They are numbered and written as the last thing before the commit, so an event of somebody else's that is
        written while the block runs comes before them, and the block itself does not see them. All that is appended in
        one block is one request.

        Args:
            drafts: As they are now: what becomes of the list later, or of the data in it, changes nothing.
            now_ms: Wall clock, in milliseconds since 1970.
            traceparent: W3C trace context that these drafts carry.

        Raises:
            Invalid, TooLarge: about a draft; none of this call is appended.
            IdReused, TooLarge, CauseUnknown: at the end of the block, about a draft; nothing of the block is written.
        """

    @property
    def appended(self) -> AppendResult | None:
        """What became of the drafts, as `EventStore.append` tells it; None before the block has ended, and if it
        appended nothing or was not committed."""


@runtime_checkable
class SharedPlaces(Protocol):
    """What a store that several processes share can say besides: what the others have read."""

    async def runs_since(self, reader: str, mark: int) -> tuple[Sequence[PlaceRun], int]:
        """Where this reader has read what since a mark, and the mark for the next time; some of it may be known.

        Args:
            reader: As in `EventStore.runs`.
            mark: Of the last time; 0 gives everything.
        """


@runtime_checkable
class EventStore(Protocol):
    """One node's log. Made by `Class(url, **options)`.

    With the option `read_only=True` it is there to be looked at, also while its node has it open: `open` takes nothing
    from anybody, makes nothing and leaves nothing behind, the node that it is opened for does not matter, and `append`
    and `transaction` raise `StoreError`. What is asked is answered as the store stands at that moment.

    Every method may raise `StoreBusy`, `StoreFull`, `StoreCorrupt` or `StoreClosed`, and no exception of the driver's.
    """

    @property
    def features(self) -> StoreFeatures:
        """What it can do."""

    @property
    def name(self) -> str:
        """What it is called in messages: a path, or a URL without user and password."""

    @property
    def id(self) -> str:
        """Identity of the log; known after `open`."""

    @property
    def nodes(self) -> Sequence[str]:
        """The node ids under which this log was written, the present one last; known after `open`. What was written
        under an earlier one is still this node's to send: nobody else may have it."""

    @property
    def origin(self) -> str:
        """Under which origin the next local event is numbered; drawn at the first write after an open. For a reader:
        under which one the node has written last. "" when there is none yet."""

    async def open(self, opening: Opening) -> None:
        """Take the store for a node.

        Raises:
            StoreInUse: another node has it.
            StoreCorrupt: not a store, or damaged.
            SchemaNewer: written by a newer version.
            StoreMissing: opened for reading only, and there is no store.
        """

    async def close(self) -> None:
        """Give it back; a clean close lets the next open keep the incarnation. May be called twice."""

    async def append(
        self,
        drafts: Sequence[Draft] = (),
        received: Sequence[Arrival] = (),
        *,
        now_ms: int,
        echoes: Sequence[PlaceRun] = (),
        offsets: Mapping[str, Offset] | None = None,
        voids: Sequence[Key] = (),
        forget: Sequence[str] = (),
        traceparent: str = "",
        alarms: Sequence[Raised] = (),
    ) -> AppendResult:
        """One transaction: number and store the drafts, take what was received, move the readers.

        For drafts it raises; for received events it never does because of their content.

        Args:
            drafts: Written here.
            received: Arrived, in the order of arrival.
            now_ms: Wall clock, in milliseconds since 1970; the caller is the only one who reads a clock.
            echoes: Where events of this store were read in a log, by whoever knows that it is them (their messages came
                back byte for byte): duplicates that need no look at their content.
            offsets: Where each reader stands once this is committed.
            voids: Keys that nobody holds any more: what waits for them is released.
            forget: Readers whose log was lost or put back: the places read in it are void.
            traceparent: W3C trace context that the drafts carry.
            alarms: What must not be passed over in silence; one of a kind and topic is kept, and how often it came.

        Raises:
            IdReused, Invalid, TooLarge, CauseUnknown: about the drafts; nothing was written.
        """

    async def adopt(self, moved: Moved) -> AppendResult:
        """One transaction: take what comes out of another store as it stood there.

        Nothing is judged: rows keep their positions, what was held is held, what was refused is refused. The log comes
        first, in as many calls as one likes, and what lies beside it last.

        Raises:
            StoreError: a position is not behind the end of this log, or events are held here already; nothing was
                written.
        """

    async def log(self, topic: str | None = None, *, after: Offset | None, limit: int) -> Sequence[Stored]:
        """The next page of the log, in commit order.

        Raises:
            Invalid: `after` is of another log.
        """

    async def end(self) -> Offset:
        """The last position of the log."""

    async def topics(self) -> Sequence[str]:
        """Every topic of which the store holds an event, sorted."""

    async def aggregate(self, topic: str, aggregate_id: str) -> Sequence[Event]:
        """Every event of one aggregate, twins included, in commit order."""

    async def aggregate_many(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Sequence[Event]]:
        """The same of some aggregates (topic and id), in the order in which they are named; few enough, and small
        enough, to be in memory together. A store that has to ask elsewhere asks once for all of them."""

    async def aggregates(self, topic: str, *, after: str, limit: int) -> Sequence[str]:
        """The next page of aggregate ids of a topic, in an order of the store's own that never changes; "" starts."""

    async def summary(self, topic: str) -> Summary:
        """What the store holds of a topic."""

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """Events of one origin with their hashes, ascending by `seq`, at most `limit`."""

    async def held(self, *, after: bytes, limit: int) -> Sequence[tuple[Event, bytes]]:
        """The next page of the events that wait for a cause, with their hashes, by hash; b"" starts."""

    async def voids(self, *, after: Key | None, limit: int) -> Sequence[Key]:
        """The next page of the keys that were declared lost for good, sorted; None starts."""

    async def runs(self, reader: str | None) -> Sequence[PlaceRun]:
        """Where this reader read what, oldest first; None is every reader, one after another."""

    async def offset(self, consumer: str) -> Offset | None:
        """Where a consumer stands; None if it never read."""

    async def offsets(self) -> Mapping[str, Offset]:
        """Every consumer and where it stands."""

    async def noted(self) -> Sequence[str]:
        """Every name under which something is noted (`Transaction.note_applied`), sorted."""

    async def applied(
        self, projection: str, *, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, bytes]]:
        """The next page of what was noted under a name (`Transaction.note_applied`): topic, aggregate id and state, in
        an order of the store's own that never changes; None starts."""

    async def quarantine(self, *, after: int, limit: int) -> Sequence[Quarantined]:
        """What was set aside, oldest first."""

    async def alarms(self) -> Sequence[Raised]:
        """What was raised, the last one first."""

    async def size_bytes(self) -> int:
        """How much room it takes; 0 if nobody can say."""

    async def damage(self) -> Sequence[str]:
        """What the medium itself finds wrong, in its own words: a page that cannot be read, an index that disagrees
        with its table. Empty if it finds nothing. May take as long as reading everything."""

    def transaction(self, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """A transaction of its own; it commits when the block ends, and rolls back when it raises.

        Args:
            leases: What the caller must still have when it commits, all of it. Nobody can take any of it between the
                look and the commit.

        Raises:
            LeaseLost: at the end of the block: somebody has taken one since. Nothing of the block is written.
        """

    async def lease(self, names: Sequence[str], holder: str, *, ttl_s: float) -> Sequence[Lease]:
        """Take for oneself what nobody else has of these, for `ttl_s` seconds by the store's clock; gives what was
        obtained, in the order in which it was asked for.

        Whoever asks under the name of the present holder gets it anew, and what he got before is void: so a worker that
        was started again need not wait.

        Raises:
            FeatureUnsupported: the store has no leases.
            Invalid: `ttl_s` is not above 0 and at most `LEASE_S_MAX`, or one name was given in place of several.
        """

    async def renew(self, leases: Sequence[Lease], *, ttl_s: float) -> Sequence[Lease]:
        """Keep them for `ttl_s` seconds from now; gives those that are still ours. One that has only run out, and that
        nobody has taken, is."""

    async def release(self, leases: Sequence[Lease]) -> None:
        """Let the next one have them at once. Nothing to do for one that somebody has already."""

    async def leases(self, prefix: str) -> Sequence[Lease]:
        """Who has what now, of all whose names begin with `prefix`, sorted by name; what has run out is nobody's."""

    def watch(self) -> AsyncIterator[None]:
        """Yields each time the log has grown since the last look; wakes are merged."""
