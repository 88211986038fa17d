"""A store in a key-value medium: what is put where, whatever the medium is.

One commit of the medium is one transaction. What it writes is gathered while the ledger decides, in a dictionary from
keys to values, and given to the medium at the end; until then nothing of it is there. `kv_keys` says what the tables
are, `kv_rows` what is in the log and its indexes, `kv_beside` what stands beside it.

A store adds the medium: how it is opened and closed, what must be claimed, and the driver's errors as ours.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from synckit_streams.errors import (
    FeatureUnsupported,
    Invalid,
    SchemaNewer,
    StoreClosed,
    StoreCorrupt,
    StoreMissing,
)
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import PlaceRun, Quarantined, Raised
from synckit_streams.model.seen import Interval
from synckit_streams.ports.store import Opening, Transaction
from synckit_streams.stores import kv_beside as beside
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import kv_reading as reading
from synckit_streams.stores.block import Appending, Block
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.identity import known_nodes, nodes_of, noted_nodes, warn_of_other_node
from synckit_streams.stores.kv_damage import damage
from synckit_streams.stores.kv_facts import KeyValueFacts, event_rows
from synckit_streams.stores.kv_medium import Medium
from synckit_streams.stores.kv_rows import EventRows, Writes
from synckit_streams.stores.ledger_store import LedgerStore, Probe
from synckit_streams.sync.ledger import Changes, Ledger, Wants

SCHEMA_VERSION = 1

_T = TypeVar("_T")


class KeyValueStore(LedgerStore):
    """The common part of the stores in a key-value medium.

    Args:
        name: For messages.
        read_only: See `EventStore`.
        threads: False runs everything in the caller, for a simulation.
        probe: See `Probe`.
    """

    medium: Medium

    def __init__(self, name: str, *, read_only: bool = False, threads: bool = True, probe: Probe | None) -> None:
        super().__init__(name, threads=threads, probe=probe, read_only=read_only)
        self._reads: Executor | None = None
        self._rows = EventRows({})
        self._beside: beside.Beside
        self._batch: Writes = {}
        """What the present transaction writes."""

    # --- what a store adds -------------------------------------------------------------------------------------------

    @abstractmethod
    def _open_medium(self, opening: Opening) -> str:
        """Claim and open the medium, and set `medium`; gives the token with which it was left clean, or ""."""

    @abstractmethod
    def _close_medium(self, token: str) -> None:
        """Close it, and leave the token beside it if there is one. Raises nothing that leaves it open."""

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _translate(self, error: BaseException) -> BaseException:
        if isinstance(error, msgspec.MsgspecError):
            return StoreCorrupt(f"{self.name} is damaged: {error}")
        return error

    def _open(self, opening: Opening) -> str:
        token = self._open_medium(opening)
        try:
            meta = check_schema(self.medium, self.name)
            origin = self._look(meta) if self.read_only else self._begin_life(meta, opening, token)
        except BaseException:
            self._close_medium("")
            raise
        if self._threads:
            self._reads = ThreadPoolExecutor(1, thread_name_prefix="synckit-read")
        return origin

    def _look(self, meta: dict[str, str]) -> str:
        """Whose it is; gives the origin that it has written under last."""
        if "store" not in meta:
            raise StoreMissing(f"nobody has opened {self.name} yet")
        self.id, self.nodes = meta["store"], known_nodes(meta.get("nodes", ""), meta.get("node", ""))
        return meta.get("origin", "")

    def _begin_life(self, meta: dict[str, str], opening: Opening, token: str) -> str:
        """Give a new medium its identity; keep the last incarnation only if nobody touched it since its close."""
        before = meta.get("node", "")
        warn_of_other_node(self.name, before, opening.node)
        self.nodes = nodes_of(meta.get("nodes", ""), before, opening.node)
        self.id = meta.get("store") or opening.dice(16).hex()
        now = {
            "schema": str(SCHEMA_VERSION),
            "store": self.id,
            "node": opening.node,
            "nodes": noted_nodes(self.nodes),
        }
        writes: Writes = {beside.meta_key(name): value.encode() for name, value in now.items()}
        writes[beside.meta_key("clean")] = None
        self.medium.commit(writes)
        origin = meta.get("origin", "")
        return origin if token and meta.get("clean") == token and node_of(origin) == opening.node else ""

    def _load(self, ledger: Ledger, node: str) -> None:
        self._rows = EventRows(beside.load_streams(self.medium, ledger, node))
        beside.load_beside(self.medium, ledger)
        ledger.position = beside.last_number(self.medium, keys.EVENT)
        self._beside = beside.Beside(self.medium)

    def _close(self, origin: str) -> None:
        if self._reads is not None:
            self._reads.shutdown(wait=True)  # whoever reads a page now gets it
            self._reads = None
        token = ""
        try:
            if origin and not self.read_only:
                assert self._opening is not None
                left = self._opening.dice(16).hex()
                self.medium.commit(
                    {beside.meta_key("origin"): origin.encode(), beside.meta_key("clean"): left.encode()}
                )
                token = left
        except Exception:  # noqa: BLE001 - a close without its token costs a new incarnation, nothing else
            token = ""
        finally:
            self._close_medium(token)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _facts(self, wants: Wants) -> KeyValueFacts:
        return KeyValueFacts(self.medium, self._rows, self.id, wants)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        except BaseException:
            self._end(commit=False)
            raise
        self._end(commit=True)

    def _begin(self) -> None:
        self._batch = {}

    def _end(self, *, commit: bool) -> None:
        writes, self._batch = self._batch, {}
        if not commit:
            return
        self._probe("commit")
        if writes:
            self.medium.commit(writes)
        self._probe("committed")

    def _handle(self, queue: CommitQueue, block: Block) -> Transaction:
        return KeyValueTransaction(self.medium, self._batch, queue, block, self._translate)

    def _write(self, changes: Changes, origin: str) -> None:
        writes = self._batch
        for row in event_rows(self.medium, changes.removed):
            self._rows.remove(row, writes)
        self._rows.write(changes, self._ledger, writes)
        self._beside.write(changes, writes)
        if origin:
            writes[beside.meta_key("origin")] = origin.encode()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, read: Callable[[], _T]) -> _T:
        """What a function reads, on the reader's thread."""
        self._opened()

        def translated() -> _T:
            try:
                return read()
            except Exception as error:
                raise self._translate(error) from error

        if not self._threads:
            return translated()
        try:
            pending = asyncio.get_running_loop().run_in_executor(self._reads, translated)
        except RuntimeError:  # closed by another thread just now
            raise StoreClosed(f"{self.name} is closed") from None
        return await pending

    async def log(self, topic: str | None = None, *, after: Offset | None, limit: int) -> Sequence[Stored]:
        """See `EventStore`."""
        self._opened()
        if after is not None and after.log != self.id:
            raise Invalid(f"the offset is of the log {after.log!r}, this one is {self.id!r}")
        position = after.position if after is not None else 0
        return await self._read(lambda: reading.log(self.medium, self.id, topic, position, limit))

    async def end(self) -> Offset:
        """See `EventStore`."""
        return Offset(self.id, await self._read(lambda: beside.last_number(self.medium, keys.EVENT)))

    async def topics(self) -> Sequence[str]:
        """See `EventStore`."""
        return await self._read(lambda: sorted({topic for topic, _ in reading.streams(self.medium)}))

    async def aggregate(self, topic: str, aggregate_id: str) -> Sequence[Event]:
        """See `EventStore`."""
        return await self._read(lambda: reading.aggregate(self.medium, topic, aggregate_id))

    async def aggregates(self, topic: str, *, after: str, limit: int) -> Sequence[str]:
        """See `EventStore`."""
        return await self._read(lambda: reading.aggregates(self.medium, topic, after, limit))

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """See `EventStore`."""

        def read() -> list[tuple[Event, bytes]]:
            numbers = reading.streams(self.medium) if self.read_only else self._rows.numbers
            stream = numbers.get((topic, origin))
            return [] if stream is None else reading.events(self.medium, stream, interval, limit)

        return await self._read(read)

    async def runs(self, reader: str | None) -> Sequence[PlaceRun]:
        """See `EventStore`."""
        return await self._read(lambda: beside.runs_of(self.medium, reader))

    async def offset(self, consumer: str) -> Offset | None:
        """See `EventStore`."""

        def read() -> Offset | None:
            (value,) = self.medium.get_many([beside.offset_key(consumer)])
            return beside.offset_of(value)[1] if value is not None else None

        return await self._read(read)

    async def offsets(self) -> Mapping[str, Offset]:
        """See `EventStore`."""
        return await self._read(
            lambda: dict(sorted(beside.offset_of(value) for _, value in beside.rows(self.medium, keys.OFFSET)))
        )

    async def noted(self) -> Sequence[str]:
        """See `EventStore`."""
        return await self._read(lambda: sorted(beside.noted(self.medium)))

    async def applied(
        self, projection: str, *, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, bytes]]:
        """See `EventStore`."""
        return await self._read(lambda: beside.applied(self.medium, projection, after, limit))

    async def quarantine(self, *, after: int, limit: int) -> Sequence[Quarantined]:
        """See `EventStore`."""
        start, end = keys.QUARANTINE + keys.number(after + 1), keys.end_of(keys.QUARANTINE)
        return await self._read(lambda: beside.quarantined(self.medium.page(start, end, limit)))

    async def alarms(self) -> Sequence[Raised]:
        """See `EventStore`."""
        return await self._read(lambda: beside.alarms(self.medium))

    async def damage(self) -> Sequence[str]:
        """See `EventStore`."""
        return await self._read(lambda: damage(self.medium))


class KeyValueTransaction(Appending):
    """See `Transaction`: what it sets is seen by itself at once, and by others when it has been committed.

    Args:
        medium: What was committed before.
        writes: Of the transaction.
        queue: Whose writer's thread is ours for now.
        block: Of the transaction.
        translate: A driver's error as one of ours.
    """

    def __init__(
        self,
        medium: Medium,
        writes: Writes,
        queue: CommitQueue,
        block: Block,
        translate: Callable[[BaseException], BaseException],
    ) -> None:
        super().__init__(block)
        self._medium = medium
        self._writes = writes
        self._queue = queue
        self._translate = translate

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Transaction`."""
        raise FeatureUnsupported("this store has no SQL", hint="keep the read model elsewhere, or in a SQL store")

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Transaction`."""
        raise FeatureUnsupported("this store has no SQL", hint="keep the read model elsewhere, or in a SQL store")

    async def _look(self, look: Callable[[], _T]) -> _T:
        """What is in the medium, on the writer's thread."""

        def translated() -> _T:
            try:
                return look()
            except Exception as error:
                raise self._translate(error) from error

        found: _T = await self._queue.run(translated)
        return found

    async def _get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self._block.check()
        asked = [key for key in keys if key not in self._writes]
        values = await self._look(lambda: self._medium.get_many(asked)) if asked else ()
        found = dict(zip(asked, values, strict=True))
        return [self._writes[key] if key in self._writes else found[key] for key in keys]

    async def offset(self, consumer: str) -> Offset | None:
        """See `Transaction`."""
        (value,) = await self._get([beside.offset_key(consumer)])
        return beside.offset_of(value)[1] if value is not None else None

    async def set_offset(self, consumer: str, offset: Offset) -> None:
        """See `Transaction`."""
        await self.set_offsets({consumer: offset})

    async def set_offsets(self, offsets: Mapping[str, Offset]) -> None:
        """See `Transaction`."""
        self._block.check()
        for consumer, offset in offsets.items():
            self._writes[beside.offset_key(consumer)] = beside.offset_value(consumer, offset)

    async def applied(self, projection: str, aggregates: Sequence[tuple[str, str]]) -> Sequence[bytes | None]:
        """See `Transaction`."""
        values = await self._get([beside.applied_key(projection, *each) for each in aggregates])
        return [None if value is None else beside.state_of(value) for value in values]

    async def note_applied(self, projection: str, states: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Transaction`."""
        self._block.check()
        for topic, aggregate_id, state in states:
            key = beside.applied_key(projection, topic, aggregate_id)
            self._writes[key] = beside.applied_value(projection, topic, aggregate_id, state)

    async def forget_applied(self, projection: str) -> None:
        """See `Transaction`."""
        self._block.check()
        prefix = beside.applied_prefix(projection)
        noted = await self._look(lambda: [key for key, _ in beside.rows(self._medium, prefix)])
        noted += [key for key in self._writes if key.startswith(prefix)]
        self._writes.update(dict.fromkeys(noted))


def check_schema(medium: Medium, name: str) -> dict[str, str]:
    """That a medium is empty, or holds a store that this release can read; gives what it says about itself.

    Args:
        medium: To look in.
        name: For messages.

    Raises:
        StoreCorrupt: it holds something else.
        SchemaNewer: a later release wrote it.
    """
    if not medium.page(b"", b"\xff" * 16, 1):
        return {}
    (raw,) = medium.get_many([beside.meta_key("schema")])
    if raw is None or not raw.isdigit():
        raise StoreCorrupt(f"{name} is the database of another program", hint="give the store a path of its own")
    if int(raw) > SCHEMA_VERSION:
        raise SchemaNewer(f"{name} has schema {int(raw)}; this release knows {SCHEMA_VERSION}")
    return beside.meta(medium)
