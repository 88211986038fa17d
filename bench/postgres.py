"""The PostgreSQL store: beside bare asyncpg and eventsourcing, and with many callers, readers and processes.

Every row has a real server of its own with its own defaults, so that every commit is on the disk, and each side of each
round a new database on it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from bench import drafts
from bench.append import stored_events
from bench.measure import Case, Row, Scale, Skipped, compare, settle, timed
from bench.nodes import fill
from synckit_streams import Draft, SyncNode
from synckit_streams.errors import MissingDependency
from synckit_streams.model.event import Offset
from synckit_streams.stores.postgres_schema import EVENT_COLUMNS
from synckit_streams.testing import PostgresServer

CALLERS = 8
PROCESSES = 8
WAKE_MS_ALLOWED = 5.0
BARE = (
    "INSERT INTO synckit.events SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::text[], "
    "$5::text[], $6::text[], $7::bytea[], $8::bytea[], $9::bigint[], $10::bytea[], $11::bytea[], $12::bigint[], "
    "$13::bigint[], $14::text[], $15::bigint[], $16::boolean[], $17::bytea[]) ON CONFLICT (stream, seq) DO NOTHING"
)


def cases() -> list[Case]:
    """The rows about PostgreSQL."""
    return [
        Case("postgres-append", "append_many of dicts, against bare asyncpg unnest of ready rows", against_asyncpg),
        Case("postgres-append-eventsourcing", "the same, against insert_events of bytes", against_eventsourcing),
        Case("postgres-8-callers", "8 concurrent append callers, against one", many_callers),
        Case("postgres-8-processes", "8 processes that append to one store, against one", many_processes),
        Case("postgres-wake", "from append in one process to a reader in another, at most 5 ms", wake),
    ]


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """A real one; gives its URL. Its data are in the directory, or in the system's temporary one if its user cannot
    reach that.

    Raises:
        Skipped: there is none on this machine.
    """
    directory.chmod(0o755)  # PostgreSQL refuses to run as root; the user nobody has to get there
    reachable = os.geteuid() != 0 or all(place.stat().st_mode & 0o001 for place in directory.absolute().parents)
    try:
        made = PostgresServer(directory / "postgres" if reachable else None)
    except MissingDependency as error:
        raise Skipped(str(error)) from error
    with made:
        yield made.url


def database(url: str) -> str:
    """The URL of a new database."""
    name = f"bench_{uuid.uuid4().hex}"

    async def make() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.execute("CHECKPOINT")
        await connection.close()

    asyncio.run(make())
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def node(url: str) -> SyncNode:
    """A node with a store there, as a user would write it."""
    return SyncNode("a", store=url, topics=[drafts.TOPIC])


def append_rate(url: str, events: int) -> float:
    """Events a second through the public API, a thousand a call, from dicts."""

    async def run() -> float:
        async with node(url) as target:
            return await fill(target, events)

    return asyncio.run(run())


# --- batches ----------------------------------------------------------------------------------------------------------


def against_asyncpg(scale: Scale, directory: Path) -> Row:
    """The same rows into the same table with the same indexes, by the driver alone."""
    with server(directory) as url:
        source = database(url)
        append_rate(source, scale.events)
        ready = asyncio.run(columns(source))
        return compare(
            "postgres-append",
            lambda place: append_rate(database(url), scale.events),
            lambda place: asyncio.run(bare_rate(database(url), ready, scale.events)),
            wanted=0.7,
            unit="events/s",
            scale=scale,
            directory=directory,
        )


async def columns(url: str) -> list[list[list[Any]]]:
    """The events of a store as the driver wants them: for each call a list of each column."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(f"SELECT {', '.join(EVENT_COLUMNS)} FROM synckit.events ORDER BY position")
    await connection.close()
    size = drafts.CALL_EVENTS
    return [
        [list(column) for column in zip(*rows[start : start + size], strict=True)]
        for start in range(0, len(rows), size)
    ]


async def bare_rate(url: str, ready: Sequence[Sequence[list[Any]]], events: int) -> float:
    """Events a second, each call a transaction."""
    async with node(url):
        pass  # makes the tables
    connection = await asyncpg.connect(url)
    statement = await connection.prepare(BARE)
    started = time.perf_counter()
    for call in ready:
        await statement.fetch(*call)
    seconds = time.perf_counter() - started
    assert await connection.fetchval("SELECT count(*) FROM synckit.events") == events
    await connection.close()
    return events / seconds


def against_eventsourcing(scale: Scale, directory: Path) -> Row:
    """The Python reference for event stores. It is given ready bytes; our time includes the encoding of dicts."""
    ready = stored_events(scale.events)

    def other(url: str) -> float:
        recorder = eventsourcing_recorder(url)
        with timed() as watch:
            for start in range(0, scale.events, drafts.CALL_EVENTS):
                recorder.insert_events(ready[start : start + drafts.CALL_EVENTS])
        recorder.datastore.close()
        return scale.events / watch.seconds

    with server(directory) as url:
        return compare(
            "postgres-append-eventsourcing",
            lambda place: append_rate(database(url), scale.events),
            lambda place: other(database(url)),
            wanted=1.2,
            unit="events/s",
            scale=scale,
            directory=directory,
        )


def eventsourcing_recorder(url: str, *, functions: bool = True) -> Any:
    """Its recorder with the faster one of its two ways: a function in the database, or a pipeline of statements.

    Raises:
        Skipped: it is not installed with psycopg.
    """
    try:
        from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
    except ImportError as missing:
        raise Skipped(f"eventsourcing's PostgreSQL recorder lacks {missing.name}") from missing
    at = urlsplit(url)
    datastore = PostgresDatastore(
        at.path[1:], at.hostname or "", at.port or 5432, at.username or "", "", enable_db_functions=functions
    )
    recorder = PostgresApplicationRecorder(datastore)
    recorder.create_table()
    return recorder


# --- many callers, many processes -------------------------------------------------------------------------------------


def many_callers(scale: Scale, directory: Path) -> Row:
    """Group commit: whoever comes while the server is busy shares the next commit."""
    each = max(scale.events // 50 // CALLERS, 1)
    with server(directory) as url:
        return compare(
            "postgres-8-callers",
            lambda place: asyncio.run(callers_rate(database(url), CALLERS, each)),
            lambda place: asyncio.run(callers_rate(database(url), 1, each)),
            wanted=1.5,
            unit="events/s",
            scale=scale,
            directory=directory,
        )


async def callers_rate(url: str, callers: int, each: int) -> float:
    """Events a second of so many callers, each of whom awaits one `append` after the other."""
    batches = list(drafts.calls(callers * each, each))

    async def caller(target: SyncNode, mine: Sequence[Draft]) -> None:
        for draft in mine:
            await target.append(draft)

    async with node(url) as target:
        await target.append(next(drafts.calls(1))[0])  # the first write after an open also draws the incarnation
        started = time.perf_counter()
        await asyncio.gather(*(caller(target, mine) for mine in batches))
        return callers * each / (time.perf_counter() - started)


def many_processes(scale: Scale, directory: Path) -> Row:
    """One node on so many processes, one caller each, while a reader passes every position as it comes."""
    each = max(scale.events // 50 // PROCESSES, 1)
    with server(directory) as url:
        return compare(
            "postgres-8-processes",
            lambda place: asyncio.run(processes_rate(database(url), PROCESSES, each)),
            lambda place: asyncio.run(processes_rate(database(url), 1, each)),
            wanted=0.5,
            unit="events/s",
            scale=scale,
            directory=directory,
        )


async def processes_rate(url: str, processes: int, each: int) -> float:
    """Events a second, from the word "go" to the last event that the reader has seen."""
    async with node(url) as target:
        await target.append(next(drafts.calls(1))[0])
        workers = [worker("append", url, each) for _ in range(processes)]
        for process in workers:
            heard(process)
        started = time.perf_counter()
        for process in workers:
            tell(process)
        after, last = Offset(target.store.id, 1), 1 + processes * each
        watching = aiter(target.store.watch())
        while after.position < last:
            page = await target.store.log(after=after, limit=drafts.CALL_EVENTS)
            for stored in page:
                # Commit order: had a later position been visible first, this one would never be read.
                assert stored.position == after.position + 1
                after = stored.offset
            if not page:
                await anext(watching)
        await watching.aclose()  # type: ignore[attr-defined]
        seconds = time.perf_counter() - started
    for process in workers:
        finish(process)
    return processes * each / seconds


# --- waking up --------------------------------------------------------------------------------------------------------


def wake(scale: Scale, directory: Path) -> Row:
    """The median from before the call of `append`, its commit included, to the event in the other process's hands."""
    with server(directory) as url:
        rounds: list[float] = []
        for _ in range(scale.rounds):
            settle()
            rounds.append(asyncio.run(wake_ms(database(url), max(scale.events // 500, 1))))
    found = median(rounds)
    return Row("postgres-wake", found, WAKE_MS_ALLOWED, WAKE_MS_ALLOWED / found, 1.0, "ms")


async def wake_ms(url: str, events: int) -> float:
    """The median of so many, each appended when the reader waits for it."""
    async with node(url) as target:
        await target.append(next(drafts.calls(1))[0])
        reader = worker("read", url, events)
        heard(reader)
        found: list[float] = []
        for number in range(events):
            started = time.monotonic_ns()  # one clock for all processes of a machine
            await target.append(Draft(drafts.TOPIC, "order.placed", f"late-{number}", drafts.payload(number)))
            found.append((int(heard(reader)) - started) / 1e6)
        finish(reader)
    return median(found)


# --- the other processes ----------------------------------------------------------------------------------------------


def worker(job: str, url: str, events: int) -> subprocess.Popen[str]:
    """A process that does a job; it says a line when it is ready."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.postgres", job, url, str(events)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the worker has ended"
    return line


def tell(process: subprocess.Popen[str]) -> None:
    """Go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> None:
    """It has done its job; wait for its end."""
    process.communicate()
    assert process.returncode == 0


async def work(job: str, url: str, events: int) -> None:
    """What a worker does."""
    async with node(url) as target:
        if job == "append":
            (ready,) = drafts.calls(events, events)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            for draft in ready:
                await target.append(draft)
            return
        end = await target.store.end()
        watching = aiter(target.store.watch())
        print("ready", flush=True)
        while events:
            page = await target.store.log(after=end, limit=drafts.CALL_EVENTS)
            if not page:
                await anext(watching)
                continue
            now = time.monotonic_ns()
            end, events = page[-1].offset, events - len(page)
            for _ in page:
                print(now, flush=True)
        await watching.aclose()  # type: ignore[attr-defined]


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
