"""A door beside the store: whoever finds the file taken hands its work to the node that has it.

One node owns a store file. A command that wants to write to it while the node runs (`synckit import`, `synckit sync`)
knocks at a Unix socket beside the file and asks the node to do it. So everything stays where one writer decides, and
nobody has to stop a node to import a file.

A request is one line of JSON, an answer is another. The socket is `<store>-door`, readable for its owner alone. A path
too long for a socket (or a file system without any) moves the socket into the user's runtime directory, and
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import msgspec

from synckit_streams.errors import FrameMalformed, StoreInUse, SyncKitError, Timeout, TooLarge
from synckit_streams.model.clock import VersionVector, keys_bytes, keys_from_bytes
from synckit_streams.model.codec import check_draft, encode_metadata, encode_payload
from synckit_streams.model.event import Draft, Stored
from synckit_streams.model.seen import Intervals
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.result import SyncResult

logger = logging.getLogger("synckit_streams")

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of Linux has 108 bytes, of which the last is a NUL."""
REQUEST_BYTES_MAX = 4 * 1024 * 1024
"""The largest payload, in base64, with the largest metadata, is 1.4 MB; reading a line of 4 MiB takes about 20 ms."""
APPEND_BYTES = 1024 * 1024
"""How much a visitor puts into one request, if it has many drafts."""
VISITORS_MAX = 8
IDLE_S = 60.0
"""For how long a visitor may say nothing between two requests, or leave an answer unread."""
ANSWER_S = 60.0
"""How long a visitor waits for the answer to anything but a sync."""


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


# ------------------------------------------------------------------------------------------------------- what is said


class DraftLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A draft, with its payload as the bytes that will be hashed."""

    topic: str
    type: str
    aggregate_id: str
    payload: bytes
    metadata: Mapping[str, Any] = {}
    id: str | None = None
    context: bytes | None = None
    after: bytes = b""
    schema_version: int = 1

    @classmethod
    def of(cls, draft: Draft) -> DraftLine:
        """Raises what `append` would: a draft that cannot be written is refused before it is sent."""
        check_draft(draft)
        encode_metadata(draft.metadata)
        return cls(
            topic=draft.topic,
            type=draft.type,
            aggregate_id=draft.aggregate_id,
            payload=encode_payload(draft.data),
            metadata=draft.metadata,
            id=draft.id,
            context=None if draft.context is None else draft.context.to_bytes(),
            after=keys_bytes(draft.after),
            schema_version=draft.schema_version,
        )

    def draft(self) -> Draft:
        """The reverse of `of`."""
        return Draft(
            topic=self.topic,
            type=self.type,
            aggregate_id=self.aggregate_id,
            data=self.payload,
            metadata=self.metadata,
            id=self.id,
            context=None if self.context is None else VersionVector.from_bytes(self.context),
            after=keys_from_bytes(self.after),
            schema_version=self.schema_version,
        )


class AskAbout(msgspec.Struct, frozen=True, tag_field="ask", tag="about"):
    """Who are you?"""


class AskAppend(msgspec.Struct, frozen=True, tag_field="ask", tag="append"):
    """Write these, in one durable commit."""

    drafts: list[DraftLine]


class AskSync(msgspec.Struct, frozen=True, tag_field="ask", tag="sync"):
    """One whole meeting, over the node's own connector."""

    timeout_s: float = 30.0


Request: TypeAlias = AskAbout | AskAppend | AskSync


class About(msgspec.Struct, frozen=True):
    """Who has the store.

    Args:
        node: The node id.
        process: Its process id.
        topics: What it replicates; empty for a local-only node that takes every topic.
        connectors: Names of its connectors: URLs without credentials and options.
    """

    node: str
    process: int
    topics: tuple[str, ...]
    connectors: tuple[str, ...]


class Receipt(msgspec.Struct, frozen=True):
    """What an append did: how many of the events are new; the others were there already."""

    events: int
    fresh: int


class Trouble(msgspec.Struct, frozen=True):
    """An error, as it travels."""

    code: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Trouble:
        """Of any exception."""
        if isinstance(error, SyncKitError):
            return cls(error.code, error.message, error.hint)
        return cls(SyncKitError.code, f"{type(error).__name__}: {error}")

    def error(self) -> SyncKitError:
        """As an exception of the class that has this code."""
        return _classes().get(self.code, SyncKitError)(self.message, hint=self.hint)


class Synced(msgspec.Struct, frozen=True):
    """A `SyncResult`, as it travels."""

    events_pushed: int
    events_pulled: int
    conflicts_resolved: int
    duration_s: float
    complete: bool
    missing: dict[str, Intervals]
    missing_by_topic: dict[str, dict[str, Intervals]]
    reasons: tuple[str, ...]
    errors: tuple[Trouble, ...]

    @classmethod
    def of(cls, result: SyncResult) -> Synced:
        """Of a result."""
        fields = {name: getattr(result, name) for name in cls.__struct_fields__}
        return cls(**{**fields, "errors": tuple(Trouble.of(error) for error in result.errors)})

    def result(self) -> SyncResult:
        """The reverse of `of`."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return SyncResult(**{**fields, "errors": tuple(trouble.error() for trouble in self.errors)})


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one of its fields is there."""

    about: About | None = None
    receipt: Receipt | None = None
    synced: Synced | None = None
    error: Trouble | None = None


Part = TypeVar("Part", About, Receipt, Synced)

_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_answer = msgspec.json.Decoder(Answer).decode


def _classes() -> dict[str, type[SyncKitError]]:
    def under(root: type[SyncKitError]) -> Iterator[type[SyncKitError]]:
        for child in root.__subclasses__():
            yield from under(child)
        yield root

    # Ours come last, so that an application's own subclass does not stand for the code that it inherits.
    found = sorted(under(SyncKitError), key=lambda each: each.__module__ == SyncKitError.__module__)
    return {each.code: each for each in found}


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
    """

    def __init__(self, node: Host, path: Path, connectors: Sequence[str] = ()) -> None:
        self.path: Path | None = None
        """Where the socket is; None while there is none."""
        self._node = node
        self._store = path
        self._connectors = tuple(connectors)
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
            self._server = await asyncio.start_unix_server(self._visit, sock=listening, limit=REQUEST_BYTES_MAX)
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
                writer.write(_encode(await self._answer(line)) + b"\n")
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        except SyncKitError as error:
            with suppress(OSError):
                writer.write(_encode(Answer(error=Trouble.of(error))) + b"\n")
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
            request = _decode_request(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return Answer(error=Trouble.of(FrameMalformed(f"not a request: {error}", hint="see `synckit --help`")))
        try:
            match request:
                case AskAppend(drafts):
                    return Answer(receipt=await append_counted(self._node, [each.draft() for each in drafts]))
                case AskSync(timeout_s):
                    return Answer(synced=Synced.of(await self._node.sync(timeout_s=timeout_s)))
                case _:
                    about = About(self._node.node_id, os.getpid(), self._node.topics, self._connectors)
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


async def open_door(node: Host, connectors: Sequence[str]) -> Door | None:
    """The door of a node whose store is a file; None for any other."""
    path = getattr(node.store, "path", None)
    if not isinstance(path, Path):
        return None
    door = Door(node, path, connectors)
    await door.open()
    return door


# ---------------------------------------------------------------------------------------------------------- the visitor


class Visitor:
    """Hands work to the node that has a store open. Used as `async with await Visitor.knock(path) as node`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def knock(cls, store: Path) -> Visitor | None:
        """None when there is no door, or nobody behind it."""
        path = find_door(store)
        if path is None:
            return None
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=REQUEST_BYTES_MAX)
        except OSError:
            return None
        return cls(reader, writer)

    async def about(self) -> About:
        """Who has the store."""
        return _present((await self._ask(AskAbout(), ANSWER_S)).about)

    async def append(self, drafts: Sequence[Draft]) -> Receipt:
        """Have them written, in one commit for every `APPEND_BYTES` of them.

        Raises:
            IdReused, Invalid, TooLarge, CauseUnknown, …: what the node raised; nothing of that commit was written.
            StoreInUse: the node closed meanwhile; what was answered so far is durable.
        """
        events = fresh = 0
        page: list[DraftLine] = []
        size = 0
        for draft in drafts:
            line = DraftLine.of(draft)
            bytes_more = len(_encode(line))
            if page and size + bytes_more > APPEND_BYTES:
                receipt = _present((await self._ask(AskAppend(page), ANSWER_S)).receipt)
                events, fresh, page, size = events + receipt.events, fresh + receipt.fresh, [], 0
            page.append(line)
            size += bytes_more
        if page:
            receipt = _present((await self._ask(AskAppend(page), ANSWER_S)).receipt)
            events, fresh = events + receipt.events, fresh + receipt.fresh
        return Receipt(events, fresh)

    async def sync(self, *, timeout_s: float = 30.0) -> SyncResult:
        """Have the node meet its peers; takes as long as it takes.

        Raises:
            Unavailable, Timeout, …: what the node raised.
            StoreInUse: the node closed meanwhile.
        """
        return _present((await self._ask(AskSync(timeout_s), None)).synced).result()

    async def _ask(self, request: Request, within_s: float | None) -> Answer:
        line = b""
        try:
            async with asyncio.timeout(within_s):
                with suppress(OSError):  # refused before it was read: the answer says why
                    self._writer.write(_encode(request) + b"\n")
                    await self._writer.drain()
                with suppress(OSError):
                    line = await self._reader.readline()
        except TimeoutError:
            raise Timeout(f"the node that has the store open did not answer within {within_s:g} s") from None
        if not line.endswith(b"\n"):
            raise StoreInUse(
                "the node that had the store open closed before it answered",
                hint="run the command again: whatever was done is not done twice",
            )
        answer = _decode_answer(line)
        if answer.error is not None:
            raise answer.error.error()
        return answer

    async def close(self) -> None:
        """Go away."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _present(part: Part | None) -> Part:
    if part is None:
        raise FrameMalformed("the node answered something else than was asked", hint="is it another release?")
    return part
