"""The way to a PostgreSQL server: connections on threads of their own, and the driver's errors as ours.

asyncpg's connections belong to one event loop, and a statement that is cancelled leaves a connection that must be
cleaned up. A store is used from any loop, and its callers are cancelled at any time. So nothing of the driver runs on a
caller's loop: `Line` is one connection, driven by the writer's thread on a loop of its own, and `Readers` is a thread
with a running loop, a few connections for pages and one that listens. A caller that is cancelled stops waiting; what
was sent to the server is done.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from synckit_streams.errors import (
    ConfigError,
    MissingDependency,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from synckit_streams.stores.postgres_schema import CHANNEL

CONNECT_S = 10.0
STATEMENT_S = 60.0
"""How long the server may take for one statement before the connection is given up."""
STATEMENT_OWN_S = 3600.0
"""The same for a statement of a projection's own, which may rebuild a read model."""
READERS_MAX = 4
LISTEN_AGAIN_S = 0.2
"""How long the listener waits before it connects again."""
LISTEN_CHECK_S = 30.0
"""How often it looks whether its connection still is one."""

_T = TypeVar("_T")


def require_asyncpg() -> Any:
    """The driver.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import asyncpg
    except ImportError as missing:
        raise MissingDependency(
            "the PostgreSQL store needs asyncpg", hint="pip install 'synckit-streams[postgres]'"
        ) from missing
    return asyncpg


def is_driver_error(error: BaseException) -> bool:
    """Whether it came out of the driver, or of the network below it."""
    driver = require_asyncpg()
    return isinstance(
        error, driver.PostgresError | driver.InterfaceError | driver.InternalClientError | OSError | TimeoutError
    )


_BUSY = {"40001", "40P01", "55P03", "53300", "53400", "57014"}
_AWAY = {"57P01", "57P02", "57P03", "57P05", "25P03"}


def translate(error: BaseException, name: str) -> BaseException:
    """A driver's error as one of ours, with what to do; any other as it is."""
    if isinstance(error, StoreError) or not is_driver_error(error):
        return error
    state: str = getattr(error, "sqlstate", None) or ""
    said = str(error) or type(error).__name__
    if not state or state in _AWAY or state.startswith("08"):
        return StoreUnavailable(f"{name}: {said}")
    if state.startswith("28"):
        return StoreDenied(f"{name}: {said}", hint="check user and password in the URL, and pg_hba.conf of the server")
    if state == "42501":
        return StoreDenied(
            f"{name}: {said}",
            hint="let an administrator run: CREATE SCHEMA synckit AUTHORIZATION the_user; or name a schema of the "
            "user's with ?schema=",
        )
    if state in _BUSY:
        return StoreBusy(f"{name}: {said}")
    if state in ("53100", "53200"):
        return StoreFull(f"{name}: {said}")
    if state.startswith("XX0") and state != "XX000":
        return StoreCorrupt(f"{name}: {said}")
    if state == "3D000":
        return StoreError(f"{name}: {said}", hint="make the database, or check its name in the URL")
    if state in ("26000", "42P05"):  # a prepared statement that is not there, or that is there already
        return StoreError(
            f"{name}: {said}", hint="a pool in between must be one of sessions: docs/how-to/postgresql.md"
        )
    if state == "25006":
        return StoreUnavailable(f"{name} cannot be written: {said}", hint="a node needs the primary, not a standby")
    return StoreError(f"{name}: {said} (SQLSTATE {state})", hint="nothing of this call was written")


class Link:
    """How to connect.

    Args:
        dsn: The driver's URL.
        read_only: Let the server refuse whatever would write.
    """

    def __init__(self, dsn: str, *, read_only: bool = False) -> None:
        self._dsn = dsn
        self._settings = {"application_name": "synckit-streams"}
        if read_only:
            self._settings["default_transaction_read_only"] = "on"

    async def connect(self) -> Any:
        """A connection on the running loop."""
        driver = require_asyncpg()
        try:
            return await driver.connect(
                self._dsn,
                timeout=CONNECT_S,
                command_timeout=STATEMENT_S,
                server_settings=self._settings,
            )
        except ValueError as error:  # of its own reading of the URL
            raise ConfigError(
                f"the URL of the store cannot be read: {error}", hint="see docs/reference/stores.md"
            ) from None


class Line:
    """One connection, used by one thread at a time without an event loop; made anew when it was lost.

    Args:
        link: How to connect.
        ready: Called with each new connection, before anything else.
    """

    def __init__(self, link: Link, ready: Callable[[], None]) -> None:
        self._link = link
        self._ready = ready
        self._loop = asyncio.new_event_loop()
        self._connection: Any = None

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(work)

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return self.connected and bool(self._connection.is_in_transaction())

    def connect(self) -> None:
        """Make the connection, unless there is one."""
        if self._connection is not None and not self._connection.is_closed():
            return
        self._connection = None
        self._connection = self._run(self._link.connect())
        try:
            self._ready()
        except BaseException:
            self.drop()
            raise

    def fetch(self, sql: str, *parameters: Any, timeout_s: float = STATEMENT_S) -> list[Any]:
        """Rows of one statement."""
        found: list[Any] = self._run(self._connection.fetch(sql, *parameters, timeout=timeout_s))
        return found

    def row(self, sql: str, *parameters: Any) -> Any:
        """Its first row, or None."""
        return self._run(self._connection.fetchrow(sql, *parameters))

    def execute(self, sql: str, *parameters: Any) -> str:
        """Run one statement; without parameters several. Gives the last one's command tag."""
        return str(self._run(self._connection.execute(sql, *parameters)))

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]], *, timeout_s: float) -> None:
        """Run one statement for each row, in one go."""
        self._run(self._connection.executemany(sql, rows, timeout=timeout_s))

    def copy(self, target: tuple[str, str], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows into a table, named by its schema and its name."""
        schema, table = target
        self._run(
            self._connection.copy_records_to_table(
                table, schema_name=schema, columns=columns, records=rows, timeout=STATEMENT_S
            )
        )

    def begin(self, how: str) -> None:
        """Begin a transaction. A connection that turns out to be dead is made anew: nothing was asked of it yet."""
        self.connect()
        try:
            self.execute(how)
        except Exception as error:
            if not isinstance(translate(error, ""), StoreUnavailable):
                raise
            self.drop()
            self.connect()
            self.execute(how)

    def roll_back(self) -> None:
        """End the open transaction, if there is one; where that fails, the connection goes with it."""
        try:
            if self.in_transaction:
                self.execute("ROLLBACK")
        except Exception:  # noqa: BLE001 - what led here is what the caller hears of
            self.drop()

    def drop(self) -> None:
        """Without a word to the server, which rolls back what was open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
            self._run(asyncio.sleep(0))  # the transport closes on its loop's next turn

    def close(self) -> None:
        """Take leave, as well as it can be done."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                with suppress(Exception):
                    self._run(connection.close(timeout=CONNECT_S))
        finally:
            self._run(self._loop.shutdown_asyncgens())
            self._loop.close()


class Readers:
    """A thread that reads for callers on any event loop, and listens.

    Args:
        link: How to connect.
        name: For messages.
        wake: Called when a NOTIFY of this store has come, and whenever one may have been missed.
        store: The store's id.
    """

    def __init__(self, link: Link, name: str, wake: Callable[[], None], store: str) -> None:
        self._link = link
        self._name = name
        self._wake = wake
        self._store = store
        self._loop = asyncio.new_event_loop()
        self._free: list[Any] = []
        self._places = asyncio.Semaphore(READERS_MAX)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="synckit-read", daemon=True)
        self._thread.start()
        self._listening: asyncio.Task[None]
        self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._listening = self._loop.create_task(self._listen())

    async def fetch(self, shape: Callable[[list[Any]], _T], sql: str, *parameters: Any) -> _T:
        """Rows, given their shape on the readers' thread. For a caller on any event loop."""
        work = self._fetch(shape, sql, parameters)
        try:
            pending = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # closed by another thread just now
            work.close()
            raise StoreClosed(f"{self._name} is closed") from None
        # Shielded: a caller that is cancelled must not leave a statement half-way on a connection that others use.
        return await asyncio.shield(asyncio.wrap_future(pending))

    async def _fetch(self, shape: Callable[[list[Any]], _T], sql: str, parameters: Sequence[Any]) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        async with self._places:
            for again in (True, False):
                if self._closed:
                    raise StoreClosed(f"{self._name} is closed")
                connection: Any = None
                try:
                    while self._free and connection is None:
                        connection = self._free.pop()
                        if connection.is_closed():
                            connection = None
                    connection = connection or await self._link.connect()
                    rows = await connection.fetch(sql, *parameters)
                    self._free.append(connection)
                    return shape(rows)
                except Exception as error:
                    if connection is not None and connection not in self._free:
                        connection.terminate()
                    failure = translate(error, self._name)
                    if not again or not isinstance(failure, StoreUnavailable):
                        raise failure from error
            raise AssertionError  # for mypy: the second time it returns or raises

    async def _listen(self) -> None:
        while True:
            connection: Any = None
            try:
                connection = await self._link.connect()
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await connection.add_listener(CHANNEL, self._heard)
                self._wake()  # whatever was written while nobody listened
                while not lost.is_set():
                    try:
                        await asyncio.wait_for(lost.wait(), LISTEN_CHECK_S)
                    except TimeoutError:
                        await connection.execute("SELECT 1")
            except Exception as error:
                if not isinstance(translate(error, ""), StoreError):
                    raise
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _heard(self, connection: Any, process: int, channel: str, payload: str) -> None:
        if payload == self._store:
            self._wake()

    def close(self) -> None:
        """Whoever reads now still gets it; then the connections and the thread end."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for late in asyncio.all_tasks(self._loop):  # who asked from another thread just then is told that it is closed
            with suppress(StoreClosed):
                self._loop.run_until_complete(late)
        self._loop.close()

    async def _end(self) -> None:
        self._closed = True
        self._listening.cancel()
        await asyncio.gather(self._listening, *self._tasks, return_exceptions=True)
        for connection in self._free:
            with suppress(Exception):
                await connection.close(timeout=CONNECT_S)
        self._free.clear()
        await asyncio.sleep(0)
