"""The reference store: everything in memory, the same ledger, the same contract.

A `MemoryDisk` is what survives the process in a simulation: it can be copied and put back like a real one. A user's
`memory:` store has one of its own, which ends with it.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from synckit_streams.errors import ConfigError, Invalid, StoreMissing
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import PlaceRun, Quarantined, Raised
from synckit_streams.model.seen import Interval
from synckit_streams.ports.store import QUARANTINED_MAX, Opening, StoreFeatures, Transaction
from synckit_streams.stores.block import Appending, Block
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.identity import known_nodes, nodes_of, noted_nodes, warn_of_other_node
from synckit_streams.stores.ledger_store import LedgerStore, Probe
from synckit_streams.stores.models import check_open, check_still_open
from synckit_streams.sync.ledger import Changes, Fork, Known, Ledger, Row, Wants


class MemoryDisk:
    """Everything that a memory store keeps. `copy` is a backup; `token` is what lies *beside* the store."""

    def __init__(self) -> None:
        self.meta: dict[str, str] = {}
        self.rows: list[Row | None] = []
        """By position - 1; None where a row was taken away again."""
        self.ids: dict[str, list[int]] = {}
        self.keys: dict[Key, int] = {}
        self.streams: dict[Fork, list[int]] = {}
        """By topic and origin: the numbers that are here."""
        self.aggregates: dict[Fork, list[int]] = {}
        self.held: dict[bytes, Event] = {}
        self.quarantine: dict[int, Quarantined] = {}
        """By position, the last ones of those that could not be read, and all that were refused."""
        self.alarms: dict[tuple[str, str], Raised] = {}
        self.set_aside = 0
        self.unread: deque[int] = deque()
        """The positions of those that could not be read."""
        self.refused: dict[Key, str] = {}
        self.voids: set[Key] = set()
        self.offsets: dict[str, Offset] = {}
        self.applied: dict[tuple[str, str, str], bytes] = {}
        """By projection, topic and aggregate id: the state that it noted."""
        self.runs: list[PlaceRun] = []
        self.models = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        """Read models live in an SQLite database in memory, so that the same projection runs on every store."""
        self.token = ""

    def __del__(self) -> None:
        self.models.close()

    def row(self, position: int) -> Row:
        """The row at a position that is not empty."""
        row = self.rows[position - 1]
        assert row is not None
        return row

    def copy(self) -> MemoryDisk:
        """A copy of the store, without the token that lies beside it."""
        copy = MemoryDisk()
        plain = "meta rows keys held quarantine unread refused voids offsets runs applied"
        for name in plain.split():
            setattr(copy, name, getattr(self, name).copy())
        copy.alarms = dict(self.alarms)
        copy.set_aside = self.set_aside
        copy.ids = {id: list(positions) for id, positions in self.ids.items()}
        copy.streams = {fork: list(numbers) for fork, numbers in self.streams.items()}
        copy.aggregates = {fork: list(positions) for fork, positions in self.aggregates.items()}
        self.models.backup(copy.models)
        return copy


class MemoryStore(LedgerStore):
    """A store without a file.

    Args:
        url: `memory:`.
        disk: What to open; None makes a new one.
        read_only: See `EventStore`; of a disk that somebody else has.
        probe: See `Probe`.
    """

    def __init__(
        self,
        url: str = "memory:",
        *,
        disk: MemoryDisk | None = None,
        read_only: bool = False,
        probe: Probe | None = None,
    ) -> None:
        if read_only and disk is None:
            raise ConfigError(
                "a memory store is nobody else's to read", hint="--store sqlite:///FILE, or another store"
            )
        if url.partition(":")[2].strip("/"):
            raise ConfigError(f"{url!r} has a name, but a memory store is nobody else's", hint="write memory:")
        super().__init__("the memory store", threads=False, probe=probe, read_only=read_only)
        self.features = StoreFeatures(durable=False, sql=True, leases=True)
        self.disk = disk or MemoryDisk()
        self.gathered = MemoryWrites()
        """What the transaction writes at its end that is under way, or was the last one."""

    def _open(self, opening: Opening) -> str:
        meta = self.disk.meta
        if self.read_only:
            if "store" not in meta:
                raise StoreMissing(f"nobody has opened {self.name} yet")
            self.id, self.nodes = meta["store"], known_nodes(meta.get("nodes", ""), meta.get("node", ""))
            return meta.get("origin", "")
        token, self.disk.token = self.disk.token, ""
        clean = meta.pop("clean", "")
        if "store" not in meta:
            meta["store"] = opening.dice(16).hex()
        self.id = meta["store"]
        if self.disk.models.in_transaction:  # whoever had it open is dead
            self.disk.models.execute("ROLLBACK")
        warn_of_other_node(self.name, meta.get("node", ""), opening.node)
        self.nodes = nodes_of(meta.get("nodes", ""), meta.get("node", ""), opening.node)
        meta["node"], meta["nodes"] = opening.node, noted_nodes(self.nodes)
        origin = meta.get("origin", "")
        return origin if token and token == clean and node_of(origin) == opening.node else ""

    def _close(self, origin: str) -> None:
        if origin and not self.read_only:
            assert self._opening is not None
            self.disk.meta["origin"] = origin
            self.disk.meta["clean"] = self.disk.token = self._opening.dice(16).hex()

    def _load(self, ledger: Ledger, node: str) -> None:
        for row in self.disk.rows:
            if row is None:
                continue
            event = row.event
            stream = ledger.stream(event.topic, event.origin)
            stream.add(event.seq, row.hash)
            stream.at_packed = max(stream.at_packed, event.at_packed)
            if node_of(event.origin) == node:
                ledger.at_packed = max(ledger.at_packed, event.at_packed)
        ledger.position = len(self.disk.rows)
        ledger.voids.update(self.disk.voids)
        ledger.refused.update((key, reason) for key, reason in self.disk.refused.items() if key not in ledger)
        for hash, event in self.disk.held.items():
            ledger.load_held(event, hash)

    def _facts(self, wants: Wants) -> MemoryFacts:
        return MemoryFacts(self.disk, self.id)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.gathered = MemoryWrites()
        yield
        self._probe("commit")
        self._put_down()
        self._probe("committed")

    def _write(self, changes: Changes, origin: str) -> None:
        self.gathered.changes, self.gathered.origin = changes, origin

    def _put_down(self) -> None:
        """What the transaction writes; nothing of it can fail."""
        disk, writes = self.disk, self.gathered
        disk.offsets.update(writes.offsets)
        for key, state in writes.applied.items():
            if state:
                disk.applied[key] = state
            else:
                disk.applied.pop(key, None)
        if writes.changes is not None:
            self._put_changes(writes.changes, writes.origin)

    def _put_changes(self, changes: Changes, origin: str) -> None:
        disk = self.disk
        for position in (*changes.removed, *changes.rekeyed):
            self._take_away(position)
        for row in changes.rekeyed.values():
            self._put(row)
        for row in changes.rows:
            # Removed again within its own transaction: its position stays empty.
            disk.rows.extend([None] * (row.position - len(disk.rows)))
            self._put(row)
        if origin:
            disk.meta["origin"] = origin
        for hash in changes.held_gone:
            disk.held.pop(hash, None)
        disk.held.update(changes.held_added)
        for reason, reader, place, raw, refused in changes.asides:
            disk.set_aside += 1
            disk.quarantine[disk.set_aside] = Quarantined(disk.set_aside, reason, reader, place, raw, refused)
            if refused is not None:
                disk.refused[refused] = reason
            else:
                disk.unread.append(disk.set_aside)
        while disk.unread and disk.unread[0] <= disk.set_aside - QUARANTINED_MAX:
            del disk.quarantine[disk.unread.popleft()]
        disk.voids.update(changes.voids)
        if changes.forget:
            disk.runs = [run for run in disk.runs if run.reader not in changes.forget]
        disk.runs.extend(changes.runs)
        disk.offsets.update(changes.offsets)
        for alarm in changes.alarms:
            before = disk.alarms.get((alarm.kind, alarm.topic))
            if before is not None:
                alarm = alarm._replace(times=before.times + alarm.times, first_ms=before.first_ms)
            disk.alarms[alarm.kind, alarm.topic] = alarm

    def _take_away(self, position: int) -> None:
        disk, row = self.disk, self.disk.row(position)
        disk.rows[position - 1] = None
        del disk.keys[row.event.key]
        disk.streams[row.event.topic, row.event.origin].remove(row.event.seq)
        disk.ids[row.event.id].remove(position)
        disk.aggregates[row.event.topic, row.event.aggregate_id].remove(position)

    def _put(self, row: Row) -> None:
        event, disk = row.event, self.disk
        disk.rows[row.position - 1] = row
        disk.keys[event.key] = row.position
        insort(disk.streams.setdefault((event.topic, event.origin), []), event.seq)
        insort(disk.ids.setdefault(event.id, []), row.position)
        insort(disk.aggregates.setdefault((event.topic, event.aggregate_id), []), row.position)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _stored(self, row: Row) -> Stored:
        return Stored(row.event, row.position, self.id, row.twin)

    async def log(self, topic: str | None = None, *, after: Offset | None, limit: int) -> Sequence[Stored]:
        """See `EventStore`."""
        self._opened()
        if after is not None and after.log != self.id:
            raise Invalid(f"the offset is of the log {after.log!r}, this one is {self.id!r}")
        page: list[Stored] = []
        rows = self.disk.rows
        for at in range(after.position if after is not None else 0, len(rows)):
            if len(page) == limit:
                break
            row = rows[at]
            if row is not None and (topic is None or row.event.topic == topic):
                page.append(self._stored(row))
        return page

    async def end(self) -> Offset:
        """See `EventStore`."""
        self._opened()
        return Offset(self.id, len(self.disk.rows))

    async def topics(self) -> Sequence[str]:
        """See `EventStore`."""
        self._opened()
        return sorted({topic for (topic, _), positions in self.disk.aggregates.items() if positions})

    async def aggregate(self, topic: str, aggregate_id: str) -> Sequence[Event]:
        """See `EventStore`."""
        self._opened()
        return [self.disk.row(position).event for position in self.disk.aggregates.get((topic, aggregate_id), ())]

    async def aggregates(self, topic: str, *, after: str, limit: int) -> Sequence[str]:
        """See `EventStore`."""
        self._opened()
        found = sorted(
            name for (of, name), rows in self.disk.aggregates.items() if of == topic and name > after and rows
        )
        return found[:limit]

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """See `EventStore`."""
        self._opened()
        page: list[tuple[Event, bytes]] = []
        numbers = self.disk.streams.get((topic, origin), [])
        for at in range(bisect_left(numbers, interval[0]), len(numbers)):
            if numbers[at] > interval[1] or len(page) == limit:
                break
            row = self.disk.row(self.disk.keys[Key(topic, origin, numbers[at])])
            page.append((row.event, row.hash))
        return page

    async def runs(self, reader: str | None) -> Sequence[PlaceRun]:
        """See `EventStore`."""
        self._opened()
        if reader is None:
            return sorted(self.disk.runs, key=lambda run: run.reader)
        return [run for run in self.disk.runs if run.reader == reader]

    async def offset(self, consumer: str) -> Offset | None:
        """See `EventStore`."""
        self._opened()
        return self.disk.offsets.get(consumer)

    async def offsets(self) -> Mapping[str, Offset]:
        """See `EventStore`."""
        self._opened()
        return dict(sorted(self.disk.offsets.items()))

    async def noted(self) -> Sequence[str]:
        """See `EventStore`."""
        self._opened()
        return sorted({projection for projection, _, _ in self.disk.applied})

    async def applied(
        self, projection: str, *, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, bytes]]:
        """See `EventStore`."""
        self._opened()
        found = sorted(
            (topic, aggregate_id, state)
            for (of, topic, aggregate_id), state in self.disk.applied.items()
            if of == projection and (after is None or (topic, aggregate_id) > after)
        )
        return found[:limit]

    async def quarantine(self, *, after: int, limit: int) -> Sequence[Quarantined]:
        """See `EventStore`."""
        self._opened()
        return [each for each in self.disk.quarantine.values() if each.position > after][:limit]

    async def alarms(self) -> Sequence[Raised]:
        """See `EventStore`."""
        self._opened()
        return sorted(self.disk.alarms.values(), key=lambda each: (-each.last_ms, each.kind, each.topic))

    async def size_bytes(self) -> int:
        """See `EventStore`."""
        self._opened()
        return 0

    async def damage(self) -> Sequence[str]:
        """See `EventStore`."""
        self._opened()
        return ()

    # --- a transaction of one's own ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.gathered = MemoryWrites()
        self.disk.models.execute("BEGIN")

    def _check_begun(self) -> None:
        check_open(self.disk.models)

    def _end(self, *, commit: bool) -> None:
        models = self.disk.models
        if commit:
            try:
                self._probe("commit")
            except BaseException:
                models.execute("ROLLBACK")
                raise
            models.execute("COMMIT")
            self._put_down()
            self._probe("committed")
        elif models.in_transaction:
            models.execute("ROLLBACK")

    def _handle(self, queue: CommitQueue, block: Block) -> Transaction:
        return MemoryTransaction(self.disk, self.gathered, block)


class MemoryFacts:
    """See `Facts`."""

    nothing_known = False

    def __init__(self, disk: MemoryDisk, log: str) -> None:
        self._disk = disk
        self._log = log

    def _stored(self, row: Row) -> Stored:
        return Stored(row.event, row.position, self._log, row.twin)

    def by_id(self, id: str) -> Stored | None:
        """See `Facts`."""
        positions = self._disk.ids.get(id)
        return self._stored(self._disk.row(positions[0])) if positions else None

    def hash_of(self, key: Key) -> bytes | None:
        """See `Facts`."""
        position = self._disk.keys.get(key)
        return None if position is None else self._disk.row(position).hash

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """See `Facts`."""
        position = self._disk.keys.get(key)
        if position is None:
            return None
        row = self._disk.row(position)
        return self._stored(row), row.hash

    def aggregate(self, fork: Fork) -> Known | None:
        """See `Facts`."""
        positions = self._disk.aggregates.get(fork)
        if not positions:
            return None
        known = Known({}, 0)
        for position in positions:
            event = self._disk.row(position).event
            known.last[event.origin] = max(known.last.get(event.origin, 0), event.seq)
            known.at_packed = max(known.at_packed, event.at_packed)
        return known


class MemoryWrites:
    """What one transaction writes at its end; a note that is empty is removed."""

    def __init__(self) -> None:
        self.offsets: dict[str, Offset] = {}
        self.applied: dict[tuple[str, str, str], bytes] = {}
        self.changes: Changes | None = None
        self.origin = ""


class MemoryTransaction(Appending):
    """See `Transaction`."""

    def __init__(self, disk: MemoryDisk, writes: MemoryWrites, block: Block) -> None:
        super().__init__(block)
        self._disk = disk
        self._models = disk.models
        self._writes = writes

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Transaction`."""
        self._block.check()
        rows = self._models.execute(sql, parameters).fetchall()
        check_still_open(self._models, sql)
        return rows

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Transaction`."""
        self._block.check()
        self._models.executemany(sql, rows)
        check_still_open(self._models, sql)

    async def offset(self, consumer: str) -> Offset | None:
        """See `Transaction`."""
        self._block.check()
        return self._writes.offsets.get(consumer) or self._disk.offsets.get(consumer)

    async def set_offset(self, consumer: str, offset: Offset) -> None:
        """See `Transaction`."""
        await self.set_offsets({consumer: offset})

    async def set_offsets(self, offsets: Mapping[str, Offset]) -> None:
        """See `Transaction`."""
        self._block.check()
        self._writes.offsets.update(offsets)

    async def applied(self, projection: str, aggregates: Sequence[tuple[str, str]]) -> Sequence[bytes | None]:
        """See `Transaction`."""
        self._block.check()
        keys = [(projection, *each) for each in aggregates]
        return [self._writes.applied.get(key, self._disk.applied.get(key)) or None for key in keys]

    async def note_applied(self, projection: str, states: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Transaction`."""
        self._block.check()
        self._writes.applied.update(((projection, *each[:2]), each[2]) for each in states)

    async def forget_applied(self, projection: str) -> None:
        """See `Transaction`."""
        self._block.check()
        noted = [*self._disk.applied, *self._writes.applied]
        self._writes.applied.update((key, b"") for key in noted if key[0] == projection)
