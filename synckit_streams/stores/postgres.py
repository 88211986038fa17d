"""A store in a PostgreSQL database, which many processes on many hosts share.

Theory of operation. Every transaction that appends locks one row, the head. So positions and numbers are given out by
one at a time, and the order of positions is the order of commits: no reader can pass a position that is still to come.
The head counts these transactions. A process whose mirror is behind reads what the others have committed, decides in
memory as every store does (`sync/ledger.py`), writes, and counts on. All processes of a node write under one origin,
which is in the head.

A connection that is lost in the middle of a COMMIT leaves open whether it was done. Under the lock, which the lost
transaction would still hold, the store looks whether its last row stands where it was put, and knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import msgspec

from synckit_streams.errors import Invalid, StoreCorrupt, StoreError, StoreUnavailable
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.model.exchange import AppendResult, Arrival, Moved, PlaceRun, Quarantined, Raised
from synckit_streams.model.seen import Interval
from synckit_streams.ports.store import Opening, StoreFeatures, Transaction
from synckit_streams.stores import postgres_schema as schema
from synckit_streams.stores.aggregate_hash import AggregateHash, by_aggregate
from synckit_streams.stores.block import Block
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.ledger_store import LedgerStore, Probe
from synckit_streams.stores.place_rows import PLACES_REACH, run_of
from synckit_streams.stores.postgres_leases import PostgresLeasing
from synckit_streams.stores.postgres_life import Onlooker, Tenancy
from synckit_streams.stores.postgres_line import Line, Link, Readers, require_asyncpg, translate
from synckit_streams.stores.postgres_models import PostgresTransaction, applied_key, check_begun
from synckit_streams.stores.postgres_rows import PostgresFacts, RowWriter, StreamNumbers
from synckit_streams.stores.postgres_schema import check_name
from synckit_streams.stores.postgres_shadow import PostgresShadowing
from synckit_streams.stores.postgres_url import parse_url
from synckit_streams.sync.ledger import Changes, Ledger, Stream, Wants

NEWS_MAX = 20_000
"""How many positions a mirror may be behind and still be brought up to date row by row."""
SETTLE_S = 10.0
"""How long to try to learn whether a commit was done whose connection was lost."""
SETTLE_AGAIN_S = 0.1

_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_T = TypeVar("_T")


class PostgresStore(PostgresShadowing, PostgresLeasing, LedgerStore):
    """A store in one schema of a PostgreSQL database.

    Args:
        url: `postgresql://user:password@host:port/database`, with `?schema=name` if one likes (default: synckit).
        read_only: See `EventStore`. The server may be a standby, and the user needs no right but to read.
        probe: See `Probe`.
        busy_timeout_s: How long to wait for the other processes, before `StoreBusy`.
        idle_timeout_s: How long a transaction may do nothing before the server ends it (`StoreUnavailable`): a process
            that was stopped in the middle of one keeps the others waiting no longer than that.

    Raises:
        ConfigError: the URL cannot be read.
        MissingDependency: asyncpg is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        read_only: bool = False,
        probe: Probe | None = None,
        busy_timeout_s: float = 10.0,
        idle_timeout_s: float = 30.0,
    ) -> None:
        require_asyncpg()
        target = parse_url(url)
        super().__init__(target.name, threads=True, probe=probe, read_only=read_only)
        self.features = StoreFeatures(durable=True, sql=True, listen=True, shared=True, leases=True)
        self._link = Link(target.dsn, read_only=read_only)
        self._statements = schema.Statements(target.schema)
        self._begin_sql = (
            f"BEGIN; SET LOCAL lock_timeout = {int(busy_timeout_s * 1000)}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {int(idle_timeout_s * 1000)}"
        )
        self.line: Line
        self._tenancy: Tenancy | Onlooker
        self._readers: Readers
        self._aggregate_hash = AggregateHash(b"")
        self._numbers = StreamNumbers()
        self._writer: RowWriter
        self._head: Any = None
        """The head as the present transaction found it."""
        self._commits = 0
        """Up to which transaction the mirror goes."""
        self._proof: tuple[int, bytes] | None = None
        """A row that the present transaction writes: its position and hash."""

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _translate(self, error: BaseException) -> BaseException:
        if isinstance(error, msgspec.MsgspecError):
            return StoreCorrupt(f"{self.name} is damaged: {error}")
        return translate(error, self.name)

    def _open(self, opening: Opening) -> str:
        self.line = Line(self._link, lambda: self._tenancy.take())
        kind = Onlooker if self.read_only else Tenancy
        self._tenancy = kind(self.line, self._statements, self.name, opening)
        try:
            self.line.connect()
            head = self.line.row(self._statements.head)
            self.id, self._aggregate_hash = head["id"], AggregateHash(head["secret"])
            self.nodes = self._tenancy.nodes
            origin = self._tenancy.origin_of(head)
            self._readers = Readers(self._link, self.name, lambda: self._bell.ring(), self.id)
        except BaseException:
            self.line.close()
            raise
        return origin

    def _close(self, origin: str) -> None:
        try:
            self._readers.close()
            with suppress(Exception):
                self._tenancy.give_back()
        finally:
            self.line.close()

    # --- the mirror --------------------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """One moment of the database, and its head; nothing to do within a transaction that has read the head."""
        if self.line.in_transaction:
            yield
            return
        self.line.begin(_SNAPSHOT)
        try:
            self._head = self.line.row(self._statements.head)
            yield
        finally:
            self.line.roll_back()

    def _load(self, ledger: Ledger, node: str) -> None:
        with self._snapshot():
            fetch, s = self.line.fetch, self._statements
            self._numbers = StreamNumbers()
            self._learn_streams(ledger, node, 0)
            ledger.voids.update(schema.key_of(row[0]) for row in fetch(s.voids))
            refused = ((schema.key_of(row[0]), row[1]) for row in fetch(s.refused))
            ledger.refused.update((key, reason) for key, reason in refused if key not in ledger)
            for hash, raw in fetch(s.held):
                ledger.load_held(schema.decode_event(raw), hash)
            self._writer = RowWriter(self.line, s, self._numbers, self._aggregate_hash)
            ledger.position, self._commits = self._head["position"], self._head["commits"]
            self._origin = self._tenancy.origin_of(self._head)

    def _learn_streams(self, ledger: Ledger, node: str, commits: int) -> None:
        """Those that have changed since."""
        for number, topic, origin, ranges, total, at in self.line.fetch(self._statements.streams, commits):
            self._numbers.learn(number, (topic, origin))
            ledger.streams.setdefault(topic, {})[origin] = Stream(
                schema.ranges_of(ranges), int.from_bytes(total, "big"), at
            )
            if node_of(origin) == node:
                ledger.at_packed = max(ledger.at_packed, at)

    def _refresh(self) -> None:
        self._head = self.line.row(self._statements.lock_head)
        self._follow()

    def _follow(self) -> None:
        """Bring the mirror to the head that was just read, in the same transaction."""
        head = self._head
        self._origin = self._tenancy.origin_of(head)
        if self._stale or head["aside"] > self._commits or head["commits"] < self._commits:
            self._reload()
        elif head["commits"] > self._commits:
            self._catch_up(head)
        self._ledger.origin = self._origin

    def _catch_up(self, head: Any) -> None:
        """Others have only appended: the streams that grew, and the aggregates that the mirror remembers."""
        assert self._opening is not None
        ledger = self._ledger
        self._stale = True  # unless it comes to its end
        self._learn_streams(ledger, self._opening.node, self._commits)
        if head["position"] - ledger.position > NEWS_MAX:
            ledger.aggregates.clear()
        elif ledger.aggregates:
            for stream, aggregate_id, seq, at in self.line.fetch(self._statements.news, ledger.position):
                topic, origin = self._numbers.names[stream]
                known = ledger.aggregates.get((topic, aggregate_id))
                if known is not None:
                    known.last[origin] = max(seq, known.last.get(origin, 0))
                    known.at_packed = max(known.at_packed, at)
        if ledger.refused:
            ledger.refused = {key: reason for key, reason in ledger.refused.items() if key not in ledger}
        self._writer.others_wrote()
        ledger.position, self._commits = head["position"], head["commits"]
        self._stale = False

    # --- writing -----------------------------------------------------------------------------------------------------

    def _facts(self, wants: Wants) -> PostgresFacts:
        return PostgresFacts(self.line, self._statements, self._numbers, self._aggregate_hash, self.id, wants)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._proof = None
        self.line.begin(self._begin_sql)
        try:
            yield
            self._probe("commit")
        except BaseException:
            self.line.roll_back()
            raise
        self._commit_written()
        self._probe("committed")

    def _commit_written(self) -> None:
        try:
            said = self.line.execute("COMMIT")
        except Exception as error:
            if not isinstance(self._translate(error), StoreUnavailable):
                self.line.roll_back()
                raise
            self.line.drop()
            if not self._was_committed():
                raise
        else:
            if said != "COMMIT":  # what a transaction answers that had failed
                raise StoreError(
                    f"{self.name} has rolled the transaction back", hint="a statement in it had failed; see its error"
                )

    def _was_committed(self) -> bool:
        """Whether a transaction was committed whose connection was lost meanwhile.

        Raises:
            StoreUnavailable: that cannot be known.
        """
        until = time.monotonic() + SETTLE_S
        while self._proof is not None:
            try:
                self.line.begin(self._begin_sql)
                try:
                    self.line.row(self._statements.lock_head)  # the lost transaction holds it until its end
                    row = self.line.row(self._statements.hash_at, self._proof[0])
                finally:
                    self.line.roll_back()
            except Exception as error:  # noqa: BLE001 - what it could not learn is what it raises below
                failure = self._translate(error)
                if not getattr(failure, "retryable", False) or time.monotonic() > until:
                    break
                self.line.drop()
                time.sleep(SETTLE_AGAIN_S)
            else:
                return row is not None and row[0] == self._proof[1]
        raise StoreUnavailable(
            f"{self.name}: the connection was lost in the middle of a commit; whether it was done is not known",
            hint="a retry is safe for everything but drafts without an id: give those an id, or look for them first",
        )

    def _write(self, changes: Changes, origin: str) -> None:
        ledger, head = self._ledger, self._head
        if not changes and not changes.alarms and not changes.streams and ledger.origin == head["origin"]:
            return
        commits = head["commits"] + 1
        beside = changes.reused or changes.held_added or changes.held_gone or changes.voids or changes.asides
        self._writer.write(changes, ledger, commits, commits if beside else head["aside"], self._tenancy.life)
        if changes.rows:
            last = changes.rows[-1]
            self._proof = (last.position, last.hash)
        self._commits = commits

    def _begin(self) -> None:
        self._proof = None
        self.line.begin(self._begin_sql)

    def _check_begun(self) -> None:
        if self._block is not None:
            check_begun(self.line, self._block, self.name)

    def _end(self, *, commit: bool) -> None:
        if not commit:
            self.line.roll_back()
            return
        try:
            self._probe("commit")
            self._check_begun()
        except BaseException:
            self.line.roll_back()
            raise
        self._commit_written()
        self._probe("committed")

    def _handle(self, queue: CommitQueue, block: Block) -> Transaction:
        return PostgresTransaction(self.line, queue, block, self._statements, self.name)

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
        """See `EventStore`."""
        self._writable()
        # What the database would refuse is refused here, where the others of the group do not suffer from it.
        for consumer, offset in (offsets or {}).items():
            check_name(consumer)
            check_name(offset.log)
        for reader in {each.place.reader for each in received if each.place is not None}:
            check_name(reader)
        for reader in {*forget, *(run.reader for run in echoes)}:
            check_name(reader)
        return await super().append(
            drafts,
            received,
            now_ms=now_ms,
            echoes=echoes,
            offsets=offsets,
            voids=voids,
            forget=forget,
            traceparent=traceparent,
            alarms=alarms,
        )

    async def adopt(self, moved: Moved) -> AppendResult:
        """See `EventStore`."""
        logs = (offset.log for offset in moved.offsets.values())
        for name in {*moved.offsets, *logs, *(run.reader for run in moved.runs)}:
            check_name(name)
        return await super().adopt(moved)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, shape: Callable[[list[Any]], _T], sql: str, *parameters: Any) -> _T:
        """Rows, given their shape."""
        self._opened()
        try:
            return await self._readers.fetch(shape, sql, *parameters)
        except msgspec.MsgspecError as error:
            raise self._translate(error) from error

    def _stored(self, rows: list[Any]) -> list[Stored]:
        return schema.stored_of(rows, self.id)

    def _look_again(self) -> None:
        """On the writer's thread, between two commits: what have others written?"""
        if self.line.in_transaction:  # somebody's own, which must not suffer from it
            if self._stale:
                self._head = self.line.row(self._statements.head)
                self._reload()
            return
        if not self._stale:
            try:
                self.line.connect()
                if self.line.row(self._statements.commits)[0] == self._commits:
                    return
            except Exception as error:
                if not isinstance(self._translate(error), StoreUnavailable):
                    raise
                self.line.drop()  # it was lost since the last use
        with self._snapshot():
            self._follow()

    async def log(self, topic: str | None = None, *, after: Offset | None, limit: int) -> Sequence[Stored]:
        """See `EventStore`."""
        self._opened()
        if after is not None and after.log != self.id:
            raise Invalid(f"the offset is of the log {after.log!r}, this one is {self.id!r}")
        position = after.position if after is not None else 0
        if topic is None:
            return await self._read(self._stored, self._statements.page, position, limit)
        return await self._read(self._stored, self._statements.topic_page, position, limit, topic)

    async def end(self) -> Offset:
        """See `EventStore`."""
        return Offset(self.id, await self._read(lambda rows: rows[0][0], self._statements.end))

    async def topics(self) -> Sequence[str]:
        """See `EventStore`."""
        return await self._read(lambda rows: [row[0] for row in rows], self._statements.topics)

    async def aggregate_many(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Sequence[Event]]:
        """See `EventStore`."""
        self._opened()
        hashes = [self._aggregate_hash(each) for each in wanted]
        return by_aggregate(wanted, await self._read(self._stored, self._statements.aggregates_events, hashes))

    async def aggregates(self, topic: str, *, after: str, limit: int) -> Sequence[str]:
        """See `EventStore`."""
        self._opened()
        start = self._aggregate_hash((topic, after)) if after else -(2**63)
        return await self._read(lambda rows: [row[0] for row in rows], self._statements.aggregates, topic, start, limit)

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """See `EventStore`."""
        first, last = interval
        return await self._read(
            lambda rows: [(schema.event_of(row), row[2]) for row in rows],
            self._statements.stream_page, first, limit, topic, origin, last,
        )  # fmt: skip

    async def runs(self, reader: str | None) -> Sequence[PlaceRun]:
        """See `EventStore`."""
        if reader is None:
            return await self._read(lambda rows: [run_of(row) for row in rows], self._statements.all_runs)
        return await self._read(lambda rows: [run_of(row) for row in rows], self._statements.runs, reader)

    async def runs_since(self, reader: str, mark: int) -> tuple[Sequence[PlaceRun], int]:
        """See `SharedPlaces`."""
        ((last,),) = await self._read(list, self._statements.last_run)
        since = mark - PLACES_REACH if mark else 0
        found = await self._read(lambda rows: [run_of(row) for row in rows], self._statements.runs_since, reader, since)
        return found, last

    async def offset(self, consumer: str) -> Offset | None:
        """See `EventStore`."""
        return await self._read(lambda rows: Offset(*rows[0]) if rows else None, self._statements.offset, consumer)

    async def offsets(self) -> Mapping[str, Offset]:
        """See `EventStore`."""
        return await self._read(lambda rows: {row[0]: Offset(*row[1:]) for row in rows}, self._statements.offsets)

    async def noted(self) -> Sequence[str]:
        """See `EventStore`."""
        return await self._read(lambda rows: [row[0] for row in rows], self._statements.noted)

    async def applied(
        self, projection: str, *, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, bytes]]:
        """See `EventStore`."""
        start = b"" if after is None else applied_key(projection, *after)
        return await self._read(
            lambda rows: [tuple(row) for row in rows], self._statements.applied_page, projection, start, limit
        )

    async def quarantine(self, *, after: int, limit: int) -> Sequence[Quarantined]:
        """See `EventStore`."""

        def shape(rows: list[Any]) -> list[Quarantined]:
            return [
                Quarantined(at, reason, reader, place, raw, None if key is None else schema.key_of(key))
                for at, reason, reader, place, raw, key in rows
            ]

        return await self._read(shape, self._statements.quarantine, after, limit)

    async def alarms(self) -> Sequence[Raised]:
        """See `EventStore`."""
        return await self._read(lambda rows: [Raised(*row) for row in rows], self._statements.alarms)

    async def size_bytes(self) -> int:
        """See `EventStore`."""
        s = self._statements
        return await self._read(lambda rows: int(rows[0][0]), s.size, s.schema, list(schema.TABLES))

    async def damage(self) -> Sequence[str]:
        """See `EventStore`."""
        s = self._statements
        found = [f"{row[0]}" for row in await self._read(list, s.damage)]
        position = 0
        while rows := await self._read(list, s.aggregate_columns, position, 5_000):
            found += [
                f"position {row[0]}: wrong aggregate"
                for row in rows
                if row[3] != self._aggregate_hash((row[1], row[2]))
            ]
            position = rows[-1][0]
        return found[: schema.DAMAGE_NAMED]
