"""A door beside the store: whoever finds the file taken hands its work to the node that has it.

One node owns a store file. A command that wants to write to it while the node runs (`synckit import`, `synckit sync`)
knocks at a Unix socket beside the file and asks the node to do it. So everything stays where one writer decides, and
nobody has to stop a node to import a file.

What is said is in `errand`, and who knocks in `visitor`. The socket is `<store>-door`, readable for its owner alone. A
path too long for a socket (or a file system without any) moves the socket into the user's runtime directory, and
`<store>-door` is then a file that says where. Its node is the only holder of the store's lock: what an earlier one left
there is stale by definition. A node without a door is a node all the same, so failing to open one is only logged.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import msgspec

from synckit_streams.errors import FrameMalformed, StoreInUse, SyncKitError, TooLarge
from synckit_streams.model.event import Draft, Stored
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.errand import (
    REQUEST_BYTES_MAX,
    About,
    Answer,
    AskAppend,
    AskSwitch,
    AskSync,
    Receipt,
    Synced,
    Trouble,
    decode_request,
    encode,
)
from synckit_streams.runtime.result import SyncResult
from synckit_streams.runtime.switch import Want

logger = logging.getLogger("synckit_streams")

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of Linux has 108 bytes, of which the last is a NUL."""
VISITORS_MAX = 8
IDLE_S = 60.0
"""For how long a visitor may say nothing between two requests, or leave an answer unread."""


class Host(Protocol):
    """What a door needs of its node."""

    @property
    def node_id(self) -> str: ...

    @property
    def topics(self) -> tuple[str, ...]: ...

    @property
    def store(self) -> EventStore: ...

    async def append_many(self, drafts: Sequence[Draft]) -> list[Stored]: ...

    async def sync(self, *, timeout_s: float = ...) -> SyncResult: ...

    async def switch(self, projections: Sequence[str], what: Want, *, position: int = 0) -> None: ...


# -------------------------------------------------------------------------------------------------------- where it is


def door_beside(store: Path) -> Path:
    """The socket of a store file, or the file that says where the socket is."""
    store = store.resolve()
    return store.with_name(store.name + "-door")


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX


def _runtime_socket(store: Path) -> Path:
    """A short path for the socket of a store, in a directory that only this user can write.

    Raises:
        OSError: there is no such directory.
    """
    name = f"{sha256(os.fsencode(store.resolve())).hexdigest()[:16]}.door"
    candidates = [Path(given) / "synckit" for given in [os.environ.get("XDG_RUNTIME_DIR", "")] if given]
    candidates += [Path(each) / f"synckit-{os.getuid()}" for each in (tempfile.gettempdir(), "/tmp")]
    for directory in candidates:
        if not _fits(directory / name):
            continue
        with suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
            # Anybody may make such a directory in /tmp; what another user made is no place for a door of ours.
            found = directory.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
                return directory / name
    raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket, and there is no runtime directory")


def find_door(store: Path) -> Path | None:
    """Where the socket of a store is, or None. Whether anybody stands behind it, only knocking tells."""
    beside = door_beside(store)
    try:
        kind = beside.stat().st_mode
        if stat.S_ISSOCK(kind):
            return beside
        elsewhere = Path(os.fsdecode(beside.read_bytes()[:4096].rstrip(b"\n"))) if stat.S_ISREG(kind) else None
        return elsewhere if elsewhere is not None and stat.S_ISSOCK(elsewhere.stat().st_mode) else None
    except (OSError, ValueError):
        return None


def _bind(path: Path) -> socket.socket:
    """A listening socket that nobody but this user can connect to.

    Raises:
        OSError: not on this file system, or not in this directory.
    """
    with suppress(FileNotFoundError):
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        # On Linux the file takes its mode from here, so at no moment is it open to others.
        os.fchmod(made.fileno(), 0o600)
        made.bind(os.fsencode(path))
        path.chmod(0o600)
        made.listen(VISITORS_MAX)
    except BaseException:
        made.close()
        raise
    return made


# ------------------------------------------------------------------------------------------------------------ the door


class Door:
    """Lets commands in while a node has the file; see the module's text.

    Args:
        node: Does the work. It must hold the store's lock from before `open` until after `close`.
        path: The store's file.
        connectors: Names of the node's connectors, to be told to visitors.
        bridge: Whether it meets over all of them at once, likewise.
    """

    def __init__(self, node: Host, path: Path, connectors: Sequence[str] = (), *, bridge: bool = False) -> None:
        self.path: Path | None = None
        """Where the socket is; None while there is none."""
        self._node = node
        self._store = path
        self._connectors = tuple(connectors)
        self._bridge = bridge
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[Any]] = set()
        self._inode = 0

    async def open(self) -> None:
        """Begin to answer. Where that is impossible the node goes without a door, and the log says why."""
        beside = door_beside(self._store)
        with suppress(OSError):
            beside.unlink()
        try:
            try:
                if not _fits(beside):
                    raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket")
                listening, path = _bind(beside), beside
            except OSError:
                path = _runtime_socket(self._store)
                listening = _bind(path)
                _record(beside, path)
            self._inode = path.stat().st_ino
            try:
                self._server = await asyncio.start_unix_server(self._visit, sock=listening, limit=REQUEST_BYTES_MAX)
            except BaseException:
                # An event loop without sockets, for one. Nobody is to knock at what nobody opens.
                listening.close()
                self._take_down(path)
                raise
        except (OSError, NotImplementedError) as error:
            logger.warning("%s: no commands can be handed to this node: %s", self._node.node_id, error)
            return
        self.path = path

    async def close(self) -> None:
        """Send visitors away, and take the door down. What was being appended is done all the same."""
        server, self._server = self._server, None
        path, self.path = self.path, None
        if server is None or path is None:
            return
        server.close()
        visits = [task for task in self._visits if task is not asyncio.current_task()]
        for task in visits:
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        self._take_down(path)

    def _take_down(self, path: Path) -> None:
        with suppress(OSError):
            if path.stat().st_ino == self._inode:
                path.unlink()
            beside = door_beside(self._store)
            if beside != path:
                beside.unlink()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        try:
            if len(self._visits) > VISITORS_MAX:
                raise StoreInUse(f"{VISITORS_MAX} commands are talking to this node already", hint="try again")
            while line := await self._line(reader):
                writer.write(encode(await self._answer(line)) + b"\n")
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        except SyncKitError as error:
            with suppress(OSError):
                writer.write(encode(Answer(error=Trouble.of(error))) + b"\n")
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the visitor is gone, or the node closes
        finally:
            self._visits.discard(task)
            writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(IDLE_S):
                return await reader.readline()
        except ValueError:
            raise TooLarge(f"a request is longer than {REQUEST_BYTES_MAX} bytes") from None

    async def _answer(self, line: bytes) -> Answer:
        try:
            request = decode_request(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return Answer(error=Trouble.of(FrameMalformed(f"not a request: {error}", hint="see `synckit --help`")))
        try:
            match request:
                case AskAppend(drafts):
                    return Answer(receipt=await append_counted(self._node, [each.draft() for each in drafts]))
                case AskSwitch(projections, what, position):
                    await self._node.switch(projections, what, position=position)
                    return Answer()
                case AskSync(timeout_s):
                    return Answer(synced=Synced.of(await self._node.sync(timeout_s=timeout_s)))
                case _:
                    about = About(self._node.node_id, os.getpid(), self._node.topics, self._connectors, self._bridge)
                    return Answer(about=about)
        except SyncKitError as error:
            return Answer(error=Trouble.of(error))
        except Exception as error:
            # A fault of ours costs the visitor an answer, never the node.
            logger.exception("%s: a command failed", self._node.node_id)
            return Answer(error=Trouble.of(error))


def _record(beside: Path, where: Path) -> None:
    """Beside the store: say where the socket is."""
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, os.fsencode(where) + b"\n")
    finally:
        os.close(fd)


async def append_counted(node: Host, drafts: Sequence[Draft]) -> Receipt:
    """Append, and count what was not there before."""
    before = (await node.store.end()).position
    stored = await node.append_many(drafts)
    return Receipt(len(stored), len({each.position for each in stored if each.position > before}))


async def open_door(node: Host, connectors: Sequence[str], *, bridge: bool) -> Door | None:
    """The door of a node whose store is a file; None for any other."""
    path = getattr(node.store, "path", None)
    if not isinstance(path, Path):
        return None
    door = Door(node, path, connectors, bridge=bridge)
    await door.open()
    return door
