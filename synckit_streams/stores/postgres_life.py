"""Making, opening and recognising a store in a PostgreSQL database.

Theory of operation. Two questions, as for a file. *Whose is it?* The table `store` names the node; each process of that
node that has it open holds a shared advisory lock, so another node can take it only when nobody has. *May the node go
on under its origin?* Only if the database cannot have been put back or copied since: the *life* of a database is the
system identifier, the timeline, the database, the table, and the start of the server, and an origin is good for one
life. A server that promotes a standby begins a timeline; what `pg_restore` makes is another table; files that are put
back need a server that was stopped. Where the first two may not be read, the rest says enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synckit_streams.errors import SchemaNewer, StoreCorrupt, StoreError, StoreInUse, StoreMissing, StoreUnavailable
from synckit_streams.model.codec import node_of
from synckit_streams.ports.store import Opening
from synckit_streams.stores.identity import known_nodes, nodes_of, noted_nodes, warn_of_other_node
from synckit_streams.stores.postgres_line import Line
from synckit_streams.stores.postgres_schema import MARK, MIGRATIONS, TABLES, Statements

LOCK_MIGRATE = 0x534B_0001
LOCK_OPEN = 0x534B_0002
"""Advisory locks, each with the number of the schema, or of the table, as the second half of its key."""

_SERVER = (
    "SELECT pg_is_in_recovery(), current_setting('server_encoding'), current_setting('synchronous_commit'), "
    "extract(epoch FROM pg_postmaster_start_time())::text, "  # not as a date: sessions may have several time zones
    "(SELECT oid::text FROM pg_database WHERE datname = current_database())"
)
_IDENTITY = "SELECT system_identifier::text FROM pg_control_system()"
_TIMELINE = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
_KEY = "SELECT to_regclass($1)::oid::bigint::bit(32)::int"


def check_server(line: Line, name: str) -> str:
    """That the server can hold a store; gives what of its life it tells.

    Raises:
        StoreUnavailable: it is a standby.
        StoreError: its text is not UTF-8.
    """
    standby, encoding, synchronous, started, database = line.row(_SERVER)
    if standby:
        raise StoreUnavailable(f"{name} is on a standby", hint="a node needs the primary")
    if encoding != "UTF8":
        raise StoreError(f"{name} is in a database whose text is {encoding}", hint="make one with ENCODING 'UTF8'")
    if synchronous == "off":  # what was acknowledged would be lost in a crash of the server
        line.execute("SET synchronous_commit = on")
    told = [started, database]
    for sql in (_IDENTITY, _TIMELINE):
        try:
            told.append(line.row(sql)[0])
        except Exception as error:
            if getattr(error, "sqlstate", "") not in ("42501", "42883"):  # no right to it, or no such function
                raise
            told.append("")
    return "/".join(told)


def migrate(line: Line, statements: Statements, name: str, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the schema up to the last version; make it if it is new. One transaction; nothing half-made is left.

    Raises:
        SchemaNewer: a later release wrote it.
        StoreCorrupt: somebody else's tables are there.
    """
    schema = statements.schema
    line.execute("BEGIN")
    try:
        # Whoever makes it at the same time waits here, and finds it made.
        line.fetch("SELECT pg_advisory_xact_lock($1, hashtext($2))", LOCK_MIGRATE, schema)
        version = _version(line, statements, name)
        check_version(version, name, len(migrations))
        if version < len(migrations):
            if not line.row("SELECT to_regnamespace($1) IS NOT NULL", schema)[0]:
                line.execute(f"CREATE SCHEMA {schema}")
            for step in range(version, len(migrations)):
                line.execute(migrations[step].replace("{s}", schema))
            if not version:
                line.execute(f"COMMENT ON TABLE {schema}.store IS '{MARK}'")
                line.execute(
                    f"INSERT INTO {schema}.store VALUES (true, '', '', '', '', '', '', 0, 0, 0, {len(migrations)})"
                )
            line.execute(f"UPDATE {schema}.store SET version = $1", len(migrations))
        line.execute("COMMIT")
    finally:
        line.roll_back()


def check_version(version: int, name: str, known: int) -> None:
    """Raises SchemaNewer: this release does not know it."""
    if version > known:
        raise SchemaNewer(f"{name} has version {version}; this release knows {known}")


def _version(line: Line, statements: Statements, name: str) -> int:
    """Of the schema; 0 when the store has still to be made."""
    schema = statements.schema
    mark = line.row("SELECT obj_description(to_regclass($1), 'pg_class')", f"{schema}.store")[0]
    if mark == MARK:
        row = line.row(f"SELECT version FROM {schema}.store")
        if row is None:
            raise StoreCorrupt(f"{name} has lost the row that says what it is")
        return int(row[0])
    taken = line.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relname = ANY($2::text[]) "
        "ORDER BY relname",
        schema,
        list(TABLES),
    )
    if taken:
        raise StoreCorrupt(
            f"{name} has tables of another program: {', '.join(row[0] for row in taken)}",
            hint="give the store a schema of its own: ?schema=name",
        )
    return 0


class Onlooker:
    """One process that only looks at a store; in place of a `Tenancy`, and with its arguments."""

    def __init__(self, line: Line, statements: Statements, name: str, opening: Opening) -> None:
        self._line = line
        self._statements = statements
        self._name = name
        self.life = ""
        self.nodes: tuple[str, ...] = ()

    def take(self) -> None:
        """On each new connection: see that there is a store that this release can read.

        Raises:
            StoreMissing: there is none.
            StoreError: its tables must first be brought up to date.
            SchemaNewer: a later release wrote it.
            StoreCorrupt: somebody else's tables are there.
        """
        version = _version(self._line, self._statements, self._name)
        if not version:
            raise StoreMissing(f"there is no store at {self._name}")
        check_version(version, self._name, len(MIGRATIONS))
        if version < len(MIGRATIONS):
            raise StoreError(
                f"{self._name} has version {version}, which this release first brings to {len(MIGRATIONS)}",
                hint="open it once with a node of this release",
            )
        head = self._line.row(self._statements.head)
        if not head["id"]:
            raise StoreMissing(f"the store at {self._name} was begun, and no node has opened it")
        self.nodes = known_nodes(head["nodes"], head["node"])

    def give_back(self) -> None:
        """Nothing was taken."""

    def origin_of(self, head: Any) -> str:
        """Under which origin the node has written last."""
        origin: str = head["origin"]
        return origin


class Tenancy:
    """One process's hold of a store.

    Args:
        line: To the server.
        statements: Of the schema.
        name: For messages.
        opening: Who opens it.
    """

    def __init__(self, line: Line, statements: Statements, name: str, opening: Opening) -> None:
        self._line = line
        self._statements = statements
        self._name = name
        self._opening = opening
        self._taken = False
        self._key = 0
        self.life = ""
        """Of the database, as the present connection finds it."""
        self.nodes: tuple[str, ...] = ()

    def take(self) -> None:
        """On each new connection: see that the server is fit and the store is ours, and hold it.

        Raises:
            StoreInUse: another node has it.
        """
        line, statements = self._line, self._statements
        told = check_server(line, self._name)
        if not self._taken:
            migrate(line, statements, self._name)
        self._key = line.row(_KEY, f"{statements.schema}.store")[0]
        self.life = f"{told}/{self._key}"
        line.execute("BEGIN")
        try:
            head = line.row(statements.lock_head)
            if head is None:
                raise StoreCorrupt(f"{self._name} has lost the row that says what it is")
            if head["node"] != self._opening.node:
                self._succeed(head)
            elif not self._taken:
                self.nodes = nodes_of(head["nodes"], head["node"], self._opening.node)
            line.fetch("SELECT pg_advisory_lock_shared($1, $2)", LOCK_OPEN, self._key)
            line.execute("COMMIT")
        finally:
            line.roll_back()
        self._taken = True

    def _succeed(self, head: Any) -> None:
        """Take over from another node, or begin a new store."""
        node, dice = self._opening.node, self._opening.dice
        lock = "pg_try_advisory_xact_lock"  # until the end of the transaction, with ours inside it
        if self._taken or not self._line.row(f"SELECT {lock}($1, $2)", LOCK_OPEN, self._key)[0]:
            raise StoreInUse(
                f"{self._name} is the store of the node {head['node']}",
                hint="all processes of one node may share it; give another node a schema of its own: ?schema=name",
            )
        warn_of_other_node(self._name, head["node"], node)
        self.nodes = nodes_of(head["nodes"], head["node"], node)
        self._line.execute(
            f"UPDATE {self._statements.schema}.store SET node = $1, nodes = $2, origin = '', id = $3, secret = $4",
            node,
            noted_nodes(self.nodes),
            head["id"] or dice(16).hex(),
            head["secret"] or dice(16),
        )

    def give_back(self) -> None:
        """Before the connection is closed."""
        self._line.fetch("SELECT pg_advisory_unlock_shared($1, $2)", LOCK_OPEN, self._key)

    def origin_of(self, head: Any) -> str:
        """Under which origin to go on, by the head; "" if it was drawn in another life.

        Raises:
            StoreInUse: another node has taken the store while our connection was lost.
        """
        if head["node"] != self._opening.node:
            raise StoreInUse(f"{self._name} has been taken by the node {head['node']}")
        origin: str = head["origin"]
        return origin if head["life"] == self.life and node_of(origin) == self._opening.node else ""
