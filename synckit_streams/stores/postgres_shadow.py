"""A shadow of a PostgreSQL store: a schema of its own, which is the first one where names are looked up.

A projection's statements find its own tables there, and everything else where it is. Nothing keeps them from writing
there: so before each commit it is looked up in the locks that the transaction holds, which tables it has written, and
what it has no business with undoes it. Where the projection stands is in a second schema beside it, so that no table of
the user's can be mistaken for one of ours.

The swap copies the rows into the live tables. Readers are not waited for, and views, rights and triggers stay what they
are; a table that was made otherwise than the live one takes its place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from synckit_streams.errors import StoreDenied, StoreError
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import Lease, Transaction
from synckit_streams.stores.block import Block
from synckit_streams.stores.postgres_line import Line, Link, translate
from synckit_streams.stores.postgres_models import PostgresTransaction, check_begun
from synckit_streams.stores.postgres_schema import Statements, quoted
from synckit_streams.stores.shadow import Workbench, outside, shadow_name

PREFIX_CHARS = 30
"""Of the store's schema so much is in the shadow's name, which may have 63 bytes."""
# Whoever only reads, or locks rows that others refer to, takes weaker ones.
_WRITTEN = """
    SELECT DISTINCT c.oid::regclass::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
    AND c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't'
    AND n.nspname <> ALL($1::text[] || ARRAY['pg_catalog', 'pg_toast', 'information_schema'])
"""
_ELSEWHERE = """
    SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> ALL($1::text[])
"""
_TABLES = """
    SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r', 'p')
    ORDER BY array_position($2::text[], relname::text), relname
"""
# What a table is made like, but for names: its columns and its indexes.
_SHAPE = r"""
    SELECT format('%s %s %s', attname, format_type(atttypid, atttypmod), attgenerated::text) FROM pg_attribute
    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
    UNION SELECT regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .* USING', 'INDEX USING') FROM pg_index
    WHERE indrelid = $1::text::regclass
"""
_COLUMNS = """
    SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""
# The numbers that an identity column has given out go on behind those of the rows that come.
_IDENTITIES = """
    SELECT pg_get_serial_sequence($1, attname), pg_get_serial_sequence($2, attname) FROM pg_attribute
    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attidentity <> ''
"""


class PostgresShadow(Workbench):
    """See the module's text, and `Shadow`.

    Args:
        link: How to connect.
        statements: Of the store's schema.
        begin_sql: Begins a transaction.
        name: For messages.
        projection: Whose.
        tables: Which it writes.
    """

    def __init__(
        self, link: Link, statements: Statements, begin_sql: str, name: str, projection: str, tables: Sequence[str]
    ) -> None:
        super().__init__()
        self._line = Line(link, lambda: None)
        self._live = statements
        self._name = name
        self._tables = tuple(tables)
        store = statements.events[0]
        self.schema = f"{store[:PREFIX_CHARS]}_rebuild_{shadow_name(projection)}"
        self._places = Statements(f"{self.schema}_at")
        self._ours = [store, self.schema, f"{self.schema}_at"]
        self._lock_sql = f"SELECT pg_advisory_xact_lock(hashtextextended({_literal(self.schema + store)}, 0))"
        # What is lost when the server loses its last moments is built once more: the offset is lost with it.
        self._begin_sql = (
            f"{begin_sql}; SET LOCAL synchronous_commit = off; {self._lock_sql}; SELECT set_config('search_path', "
            f"{_literal(quoted(self.schema) + ', ')} || current_setting('search_path'), true)"
        )
        self._elsewhere: dict[int, str] = {}
        """Tables that are not ours, when a shadow is being made: they must still be there in the end."""

    # --- while it is built -------------------------------------------------------------------------------------------

    async def stands(self, build: str) -> bool:
        """See `Shadow`."""
        sql = "SELECT obj_description(to_regnamespace($1), 'pg_namespace')"

        def look() -> bool:
            self._line.roll_back()
            self._line.connect()
            return bool(self._line.row(sql, quoted(self.schema))[0] == build)

        found: bool = await self._do(look)
        return found

    def making(self, build: str, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """See `Shadow`."""

        def begin() -> None:
            line, shadow, places = self._line, quoted(self.schema), self._places.schema
            line.begin(self._begin_sql)
            self._remove()
            line.execute(f"CREATE SCHEMA {shadow}; CREATE SCHEMA {places}")
            line.execute(f"COMMENT ON SCHEMA {shadow} IS {_literal(build)}")
            for table in ("offsets", "applied"):
                line.execute(f"CREATE TABLE {places}.{table} (LIKE {self._live.schema}.{table} INCLUDING ALL)")
            for table in self._tables:
                if line.row("SELECT to_regclass($1) IS NOT NULL", quoted(table))[0]:
                    line.execute(f"CREATE TABLE {shadow}.{quoted(table)} (LIKE {quoted(table)} INCLUDING ALL)")
            self._elsewhere = dict(line.fetch(_ELSEWHERE, self._ours))

        return self._block(begin, leases)

    def transaction(self, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """See `Shadow`."""

        def begin() -> None:
            self._elsewhere = {}
            self._line.begin(self._begin_sql)

        return self._block(begin, leases)

    def _handle(self, block: Block) -> Transaction:
        return PostgresTransaction(self._line, self, block, self._places, self._name)

    def _hold(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        if not leases:
            return ()
        names, tokens = [each.name for each in leases], [each.token for each in leases]
        found = {tuple(row) for row in self._line.fetch(self._live.hold_leases, names, tokens)}
        return [each for each in leases if (each.name, each.token) in found]

    def _commit(self, block: Block) -> None:
        line = self._line
        check_begun(line, block, self._name)
        written = [row[0] for row in line.fetch(_WRITTEN, self._ours)]
        if self._elsewhere:
            left = {row[0] for row in line.fetch(_ELSEWHERE, self._ours)}
            written += [name for oid, name in self._elsewhere.items() if oid not in left]
        if written:
            raise outside(", ".join(sorted(written)))
        said = line.execute("COMMIT")
        if said != "COMMIT":  # what a transaction answers that had failed
            raise StoreError(f"{self._name} has rolled the transaction back", hint="a statement in it had failed")

    def _roll_back(self) -> None:
        self._line.roll_back()

    def _remove(self) -> None:
        self._line.execute(_drop(self.schema))
        self._line.execute(_drop(f"{self.schema}_at"))

    def _disconnect(self) -> None:
        self._line.close()

    def _translate(self, error: BaseException) -> BaseException:
        failure = translate(error, self._name)
        if isinstance(failure, StoreDenied):
            return StoreError(
                failure.message, hint="GRANT CREATE ON DATABASE … TO its user; or rebuild the projection in place"
            )
        return failure

    async def drop(self) -> None:
        """See `Shadow`."""

        def remove() -> None:
            self._line.roll_back()
            self._line.begin(self._begin_sql)
            try:
                self._remove()
                self._line.execute("COMMIT")
            finally:
                self._line.roll_back()

        await self._do(remove)

    # --- when it is taken over ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """See `Shadow`."""
        yield

    async def offset(self, tx: Transaction, consumer: str) -> Offset | None:
        """See `Shadow`."""
        await tx.execute(self._lock_sql)
        rows = await tx.execute(self._places.offset, (consumer,))
        return Offset(*rows[0]) if rows else None

    async def swap(self, tx: Transaction, notes: Sequence[str]) -> None:
        """See `Shadow`."""
        tables = [name for (name,) in await tx.execute(_TABLES, (quoted(self.schema), list(self._tables)))]
        pairs: list[tuple[str, str]] = []
        for table in tables:
            built = f"{quoted(self.schema)}.{quoted(table)}"
            ((live,),) = await tx.execute("SELECT to_regclass($1)::text", (quoted(table),))
            if live is not None and await _shape(tx, built) == await _shape(tx, live):
                pairs.append((built, live))
            else:
                await self._replace(tx, built, live)
        for _, live in reversed(pairs):  # what refers to others goes before them
            await tx.execute(f"DELETE FROM {live}")
        for built, live in pairs:
            ((columns,),) = await tx.execute(_COLUMNS, (built,))
            await tx.execute(f"INSERT INTO {live} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {built}")
            for ours, theirs in await tx.execute(_IDENTITIES, (built, live)):
                await tx.execute(f"SELECT setval('{theirs}', last_value, is_called) FROM {ours}")
        for name in notes:
            await tx.forget_applied(name)
        await tx.execute(f"INSERT INTO {self._live.schema}.applied SELECT * FROM {self._places.schema}.applied")

    async def _replace(self, tx: Transaction, built: str, live: str | None) -> None:
        ((schema,),) = await tx.execute(
            "SELECT coalesce((SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1)), "
            "to_regnamespace(quote_ident(current_schema())))::regnamespace::text",
            (live,),
        )
        if live is not None:
            await tx.execute(f"DROP TABLE {live}")
        await tx.execute(f"ALTER TABLE {built} SET SCHEMA {schema}")


async def _shape(tx: Transaction, table: str) -> set[Any]:
    return {row[0] for row in await tx.execute(_SHAPE, (table,))}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _drop(schema: str) -> str:
    return f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE"


class PostgresShadowing:
    """The part of a `PostgresStore` that has shadows."""

    name: str
    _link: Link
    _statements: Statements
    _begin_sql: str

    def shadow(self, projection: str, tables: Sequence[str]) -> PostgresShadow:
        """See `Shadowing`."""
        return PostgresShadow(self._link, self._statements, self._begin_sql, self.name, projection, tables)
