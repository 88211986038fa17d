"""Backups: a store at one moment as one file, taken while its node runs; and a store made of it.

A backup of any store is a store in an SQLite file: the commands that look into a store look into a backup. Of a file it
is a copy, read models included; of a store on a server, what `moving` moves. It is verified before it gets its name, so
what is there under that name is whole.

Whoever opens a restored store writes under a new incarnation: what was written after the backup may have been sent, and
its keys must not be given out again. What was sent comes back from the others with the next sync.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import msgspec

from synckit_streams.errors import ConfigError, StoreCorrupt, StoreError
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.moving import Move, move, opening
from synckit_streams.runtime.registry import store_for
from synckit_streams.runtime.verifying import Verdict, verify
from synckit_streams.stores.sqlite_copy import copy_file
from synckit_streams.stores.sqlite_url import parse_url

Advance = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What was backed up, or restored.

    Args:
        where: The file, or the store.
        events: In the log.
        held: Events that wait for a cause.
        offsets: Readers and consumers that go on where they stood.
        rebuilt: Projections that begin anew, since their read models are not in it.
    """

    where: str
    events: int
    held: int
    offsets: int
    rebuilt: tuple[str, ...]


async def back_up(url: str, path: Path, *, advance: Advance = lambda done, total: None) -> Backup:
    """Write all that a store holds at one moment into a file. Its node may write on.

    Args:
        url: Of the store.
        path: A file that is not there yet; or a folder, where the file gets the node's name and the time.
        advance: Told of the progress.

    Raises:
        ConfigError: the file is there, or its folder is not.
        StoreMissing: there is no such store.
        StoreError: it cannot be read, or the file cannot be written.
    """
    store = store_for(url, read_only=True)
    await store.open(opening("backup"))
    try:
        path = _file_for(path, store)
    finally:
        await store.close()
    rebuilt: tuple[str, ...] = ()
    with _whole(path) as part:
        if is_file(url):
            await _copy(parse_url(url)[0], part, advance)
        else:
            rebuilt = (await move(url, url_of(part), live=True, advance=advance)).rebuilt
        verdict = await _verified(part)
    return Backup(where=str(path), events=verdict.events, held=verdict.held, offsets=verdict.offsets, rebuilt=rebuilt)


async def restore(
    path: Path, url: str, *, carry: Collection[str] = (), advance: Advance = lambda done, total: None
) -> Backup:
    """Make a store of a backup.

    Args:
        path: The backup.
        url: Of a store that is not there yet, of any kind.
        carry: Into a store that is no file: see `move`.
        advance: Told of the progress.

    Raises:
        ConfigError: the store's file is there.
        StoreMissing: there is no backup.
        StoreCorrupt: it is damaged.
        StoreError: the store holds something else.
    """
    if not is_file(url):
        done: Move = await move(url_of(path), url, carry=carry, advance=advance)
        return Backup(where=url, events=done.events, held=done.held, offsets=done.offsets, rebuilt=done.rebuilt)
    if carry:
        raise ConfigError("into a file every projection goes on where it stood", hint="leave --carry out")
    target = parse_url(url)[0]
    store = store_for(url_of(path), read_only=True)  # whether it is one at all
    await store.open(opening("restore"))
    await store.close()
    with _whole(target) as part:
        await _copy(path, part, advance)
        verdict = await _verified(part)
    return Backup(where=str(target), events=verdict.events, held=verdict.held, offsets=verdict.offsets, rebuilt=())


async def _copy(source: Path, target: Path, advance: Advance) -> None:
    """On a thread, which has ended when this returns; whoever is cancelled waits until it has stopped."""
    stopped = threading.Event()

    def tell(done: int, total: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        advance(done, total)

    work = asyncio.ensure_future(asyncio.to_thread(copy_file, source, target, tell))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait([work])
        work.exception()  # it was asked to stop
        raise


def is_file(url: str) -> bool:
    """Whether a store is an SQLite file."""
    return url.lower().startswith("sqlite:")


def url_of(path: Path) -> str:
    """Of the store in a file."""
    return f"sqlite:///{quote(str(path))}"


def _file_for(path: Path, store: EventStore) -> Path:
    if not path.is_dir():
        return path
    name = store.nodes[-1] if store.nodes else "store"
    return path / f"{quote(name, safe='@')}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.db"


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file that gets its name when the block ends, and is gone if it raises.

    Raises:
        ConfigError: there is one of that name, or it cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already", hint="name another file; what is there is never written over")
    for suffix in ("-wal", "-journal"):
        # SQLite would take it for what belongs to the new file, and write it in.
        if (left := path.with_name(path.name + suffix)).exists():
            raise ConfigError(f"{left} is left of another file", hint="put it where that file is, or name another one")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {path.absolute().parent}")
    part = path.with_name(f"{path.name}.part")
    _clear(part)
    try:
        yield part
        for suffix in BESIDE:
            part.with_name(part.name + suffix).unlink(missing_ok=True)
        _name(part, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="check the folder and its disk") from error
    finally:
        with suppress(OSError):
            _clear(part)


def _name(part: Path, path: Path) -> None:
    """Give a file its name, for good."""
    try:
        os.link(part, path)  # unlike a rename, it takes nobody's place
    except FileExistsError:
        raise ConfigError(f"{path} is there already", hint="name another file") from None
    except OSError:  # a file system without links
        part.rename(path)
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


BESIDE = ("-wal", "-shm", "-lock", "-clean", "-journal")
"""What may lie beside a store's file."""


def _clear(part: Path) -> None:
    for suffix in ("", *BESIDE):
        part.with_name(part.name + suffix).unlink(missing_ok=True)


async def _verified(path: Path) -> Verdict:
    """What is in a file that was just written.

    Raises:
        StoreCorrupt: it is not sound.
    """
    store = store_for(url_of(path), read_only=True)
    await store.open(opening("backup"))
    try:
        verdict = await verify(store)
    finally:
        await store.close()
    if verdict.wrong:
        raise StoreCorrupt(
            f"the copy is not sound: {'; '.join(each.what for each in verdict.findings[:3])}",
            hint="look at what was copied with `synckit verify`",
        )
    return verdict
