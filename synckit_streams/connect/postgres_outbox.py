"""Rows of a table in PostgreSQL, each delivered when its transaction has committed, whatever its number is.

A number is drawn before its transaction commits, so a reader that remembers the last number passes over rows that
become visible later. This one remembers nothing: a row is open as long as it is there (or unmarked), and it is deleted
(or marked) when the sink has it. So none is ever passed over, in whatever order they become visible; who is killed
between the sink and the deletion delivers a row again, under the same id. Rows that are there together come in the
order of a column; who changes one aggregate in one transaction after another has its rows in that order.

A lock of the session keeps a second process away from the table.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from hashlib import sha256
from typing import Any

from synckit_streams.connect.record import Portion, Record, Unreadable
from synckit_streams.connect.spec import PostgresOutboxSource as Spec
from synckit_streams.errors import ConfigError, Invalid, StoreInUse
from synckit_streams.model.event import Offset
from synckit_streams.stores.postgres_line import Link, is_driver_error, require_asyncpg, translate
from synckit_streams.stores.postgres_url import parse_url

WRONG_NAMES = ("42P01", "42703", "3F000", "42883")
"""SQLSTATE: there is no such table, column or schema, or it is of another type."""
NAMES = ("aggregatetype", "aggregateid", "type")
"""Columns that every row must fill."""


class PostgresOutboxSource:
    """See the module's text.

    Args:
        spec: What the pipeline's file says.
        name: For people.
    """

    def __init__(self, spec: Spec, name: str) -> None:
        require_asyncpg()
        self._spec = spec
        self._link = Link(parse_url(spec.url).dsn)
        self._table = ".".join(_quoted(each) for each in spec.table.split("."))
        self._open = f"{_quoted(spec.mark)} IS NULL" if spec.after == "mark" else "true"
        self._connection: Any = None
        self._under_way: deque[list[Any]] = deque()
        """Ids of the rows that are on their way, by portion, as the driver gave them."""
        self._woken = asyncio.Event()
        self.name = name

    async def open(self, position: Offset | None) -> None:
        """See `Source`; the table itself is the position."""
        try:
            self._connection = await self._link.connect()
            digest = sha256(f"synckit connect {self._spec.table}".encode()).digest()
            lock = int.from_bytes(digest[:8], "big", signed=True)
            if not await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", lock):
                raise StoreInUse(f"{self.name}: another process delivers this table", hint="it is waited for")
            if self._spec.channel:
                await self._connection.add_listener(self._spec.channel, self._wake)
        except Exception as error:
            raise self._translated(error) from error

    def _wake(self, *_: object) -> None:
        self._woken.set()

    def _translated(self, error: Exception) -> BaseException:
        state = getattr(error, "sqlstate", "")
        if state in WRONG_NAMES:
            return ConfigError(
                f"{self.name}: {error}", hint="the table needs id, aggregatetype, aggregateid, type and payload"
            )
        return translate(error, self.name) if is_driver_error(error) else error

    async def _fetch(self, sql: str, *parameters: object) -> list[Any]:
        try:
            found: list[Any] = await self._connection.fetch(sql, *parameters)
        except Exception as error:
            raise self._translated(error) from error
        return found

    async def read(self, limit: int) -> Portion | None:
        """See `Source`."""
        self._woken.clear()
        rows = await self._fetch(
            f"SELECT id, {', '.join(NAMES)}, payload FROM {self._table} "
            f"WHERE {self._open} AND id <> ALL ($2) ORDER BY {_quoted(self._spec.order)} LIMIT $1",
            limit,
            [id for ids in self._under_way for id in ids],
        )
        if not rows:
            return None
        self._under_way.append([row["id"] for row in rows])
        return Portion([self._item(row) for row in rows], None)

    def _item(self, row: Any) -> Record | Unreadable:
        id, *names, payload = row
        if payload is None:
            payload = b"null"  # a tombstone of Debezium's
        raw = payload if isinstance(payload, bytes) else str(payload).encode()
        topic, aggregate_id, type = ["" if name is None else str(name) for name in names]
        if not (topic and aggregate_id and type):
            missing = [name for name, value in zip(NAMES, (topic, aggregate_id, type), strict=True) if not value]
            return Unreadable(str(id), raw, Invalid(f"the row has no {' and no '.join(missing)}"))
        return Record(id=str(id), type=type, aggregate_id=aggregate_id, payload=raw, topic=topic)

    async def wait(self) -> None:
        """See `Source`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._spec.poll_seconds):
                await self._woken.wait()

    async def done(self, portion: Portion) -> None:
        """Let go of the rows."""
        if self._spec.after == "mark":
            sql = f"UPDATE {self._table} SET {_quoted(self._spec.mark)} = now() WHERE id = ANY($1)"
        else:
            sql = f"DELETE FROM {self._table} WHERE id = ANY($1)"
        await self._fetch(sql, self._under_way[0])
        self._under_way.popleft()

    async def lag(self) -> int | None:
        """Rows that are open and not on their way."""
        ((rows,),) = await self._fetch(f"SELECT count(*) FROM {self._table} WHERE {self._open}")
        return max(int(rows) - sum(map(len, self._under_way)), 0)

    async def close(self) -> None:
        """See `Source`. The lock goes with the connection."""
        connection, self._connection = self._connection, None
        self._under_way.clear()
        if connection is not None:
            connection.terminate()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
