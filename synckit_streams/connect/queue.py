"""What came from outside and was not passed on yet: on the disk, each id once, and never more than so many bytes.

It stands in a store of ours as notes, one a record, and not as events: a log is for ever, and this is to be forgotten.
Whoever passes records on removes them, and that is all that is remembered of it; so a record is either here or with the
sink, and after a crash in between it is in both, under one id.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from synckit_streams.connect.record import Record
from synckit_streams.connect.state import open_ours
from synckit_streams.errors import IdReused, StoreError, StoreFull
from synckit_streams.ports.store import EventStore

NOTED_UNDER = "webhook"
"""In the place of a topic."""
PAGE = 1_000


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """One record.

    Args:
        number: Records are passed on by it: nanoseconds since 1970, and above all that were there before.
        record: It.
    """

    number: int
    record: Record


class _Coming(NamedTuple):
    """Somebody waits for a record to be kept."""

    record: Record
    kept: asyncio.Future[bool]
    """Whether it is new."""


class Queue:
    """See the module's text.

    Args:
        url: Of the store.
        pipeline: Whose it is.
        bytes_max: Of all payloads together.
    """

    def __init__(self, url: str, pipeline: str, bytes_max: int) -> None:
        self._url = url
        self._name = f"connect/{pipeline}/inbox"
        self._bytes_max = bytes_max
        self._store: EventStore | None = None
        self._turn = asyncio.Lock()
        self._closed = False
        self._bytes = 0
        self._last = 0
        self._coming: list[_Coming] = []
        self._writing: asyncio.Task[None] | None = None
        self._waiting: deque[Kept] = deque()
        """What was read from the store, and nobody has taken yet."""
        self._taken: set[str] = set()
        """Ids of what is under way."""
        self.arrived = asyncio.Event()
        """Set when something comes."""

    def begin(self) -> None:
        """It may be opened again."""
        self._closed = False

    async def open(self) -> EventStore:
        """The store, opened when it is first needed.

        Raises:
            StoreError: it cannot be opened, or the pipeline has ended.
            ConfigError: it is a node's.
        """
        async with self._turn:
            if self._closed:
                raise StoreError("this pipeline has ended")
            if self._store is None:
                self._store = await open_ours(self._url)
                await self._look(self._store)
            return self._store

    async def close(self) -> None:
        """Take nothing more."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        async with self._turn:
            store, self._store = self._store, None
            if store is not None:
                await store.close()

    # --- what comes --------------------------------------------------------------------------------------------------

    async def put(self, record: Record) -> None:
        """Keep a record; it is on the disk when this returns. What comes at the same time shares a commit.

        Raises:
            IdReused: a record with this id is here, and says something else.
            StoreFull: there is no room until something is passed on.
            StoreError: the store cannot keep it.
        """
        await self.open()
        if self._bytes + len(record.payload) > self._bytes_max:
            raise StoreFull(f"{self._bytes_max} bytes wait to be passed on", hint="look why the sink takes nothing")
        self._bytes += len(record.payload)
        coming = _Coming(record, asyncio.get_running_loop().create_future())
        self._coming.append(coming)
        if self._writing is None or self._writing.done():
            # A task of its own: who waits may be cancelled, and the others' records are in the same commit.
            self._writing = asyncio.create_task(self._write_all())
        new = False
        try:
            new = await coming.kept
        finally:
            if not new:
                self._bytes -= len(record.payload)
        self.arrived.set()

    async def _write_all(self) -> None:
        while self._coming:
            batch, self._coming = self._coming, []
            try:
                results = await self._write(await self.open(), [each.record for each in batch])
            except Exception as error:  # noqa: BLE001 - told to everybody who waits for it
                results = [error] * len(batch)
            for each, result in zip(batch, results, strict=True):
                if each.kept.done():  # its sender has gone
                    continue
                if isinstance(result, bool):
                    each.kept.set_result(result)
                else:
                    each.kept.set_exception(result)

    async def _write(self, store: EventStore, records: Sequence[Record]) -> list[bool | Exception]:
        """One commit; gives which of them are new, and why one is not kept."""
        async with store.transaction() as tx:
            states = await tx.applied(self._name, [(NOTED_UNDER, each.id) for each in records])
            here = {each.id: _decode(state).record for each, state in zip(records, states, strict=True) if state}
            new: list[tuple[str, str, bytes]] = []
            results: list[bool | Exception] = []
            for record in records:
                if record.id not in here:
                    here[record.id] = record
                    self._last = max(self._last + 1, time.time_ns())
                    new.append((NOTED_UNDER, record.id, _encode(Kept(self._last, record))))
                    results.append(True)
                else:
                    same = here[record.id] == record
                    results.append(False if same else IdReused("another record has this id"))
            if new:
                await tx.note_applied(self._name, new)
        return results

    # --- what goes on ------------------------------------------------------------------------------------------------

    def rewind(self) -> None:
        """What is under way is not; it is taken again."""
        self._taken.clear()
        self._waiting.clear()

    async def take(self, limit: int) -> list[Record]:
        """The next records, in the order in which they came. They are here until `remove` is told of them."""
        store = await self.open()
        if not self._waiting:
            self.arrived.clear()
            await self._look(store)
        taken = [self._waiting.popleft().record for _ in range(min(limit, len(self._waiting)))]
        self._taken.update(record.id for record in taken)
        return taken

    async def _look(self, store: EventStore) -> None:
        """What is there: another process may have put it there."""
        found: list[Kept] = []
        after: tuple[str, str] | None = None
        while page := await store.applied(self._name, after=after, limit=PAGE):
            found += [_decode(state) for _, _, state in page]
            after = page[-1][:2]
        self._bytes = sum(len(each.record.payload) for each in found)
        self._last = max([self._last, *(each.number for each in found)])
        self._waiting = deque(
            sorted((each for each in found if each.record.id not in self._taken), key=lambda each: each.number)
        )

    async def remove(self, records: Sequence[Record]) -> None:
        """They were passed on, and are forgotten."""
        store = await self.open()
        async with store.transaction() as tx:
            await tx.note_applied(self._name, [(NOTED_UNDER, record.id, b"") for record in records])
        for record in records:
            self._taken.discard(record.id)
            self._bytes -= len(record.payload)

    async def left(self) -> int:
        """How many wait to be taken."""
        store = await self.open()
        if not self._waiting:
            await self._look(store)
        return len(self._waiting)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode
