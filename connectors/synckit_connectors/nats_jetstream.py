"""NATS JetStream through nats-py: one stream a topic, read from the store's own place, or divided over a group.

A replica reads without any state on the server (`nats_readers`); a group is one durable pull consumer that its members
share (`nats_group`). Below are publishing (`nats_publish`), pulling (`nats_pull`), the way to the server (`nats_link`)
and one connection of it (`nats_wire`).

Every stream of ours begins with `sk`: `sk-orders` takes `sk.orders.*`, `skh-HASH` a topic whose name cannot stand in a
subject, and `skd` keeps the last digest of each node and topic.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import quote

from synckit_connectors.nats_api import NO_CONSUMER, NO_STREAM, Answer, State, granted
from synckit_connectors.nats_group import Member, group_info
from synckit_connectors.nats_link import Link
from synckit_connectors.nats_names import (
    DIGEST_STREAM,
    NODE_HEADER,
    SAFE_TOKEN,
    carried,
    group_name,
    hashed,
    header_fields,
    message,
    stream_name,
    subjects,
)
from synckit_connectors.nats_options import read_options, read_url, tls_context, wants_tls_context
from synckit_connectors.nats_publish import Outgoing, publish
from synckit_connectors.nats_pull import Pull
from synckit_connectors.nats_readers import DigestReader, LogReader
from synckit_connectors.nats_wire import require_nats
from synckit_streams.errors import Rejected, TooLarge
from synckit_streams.ports import connector as port
from synckit_streams.ports.absent import WithoutTrimming
from synckit_streams.ports.connector import (
    ID_CHARS_MAX,
    Announced,
    Bounds,
    Delivery,
    Features,
    Message,
    Progress,
)

GOOD_NAMES_MAX = 1000

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STREAM_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")


class NatsConnector(WithoutTrimming):
    """A connector to NATS JetStream.

    Args:
        url: `nats://USER:PASSWORD@HOST:PORT,HOST2:PORT2?OPTION=VALUE`. `tls://` insists on an encrypted connection.
            A user without a password is a token. Percent-encode what a URL cannot carry.
        **options: The fields of `NatsOptions`; they go before the URL's.

    Raises:
        MissingDependency: nats-py is not installed.
        ConfigError: the URL, an option or a file that it names is wrong.
    """

    def __init__(self, url: str, **options: object) -> None:
        require_nats()
        self.address, from_url = read_url(url)
        self.url = str(self.address)
        self.options = read_options(from_url | options)
        tls = tls_context(self.options) if wants_tls_context(self.address, self.options) else None
        self._link = Link(self.address, self.options, tls)
        self._pulls: set[Pull] = set()
        self._good_names: set[str] = set()
        """Header names that were looked at before."""

    @property
    def features(self) -> Features:
        """Everything, in one partition; the largest message is known once it is open."""
        return Features(
            durable=self.options.storage == "file",
            times=True,
            groups=True,
            taps=True,
            dedup=True,
            delay=True,
            bytes_max=self._link.bytes_max,
        )

    async def open(self) -> None:
        """See `Connector.open`. Failing to connect anew leaves an open connector open: its readers may yet go on."""
        first = not self._link.opened
        try:
            await self._link.open()
        except BaseException:
            if first:
                await self.close()
            raise

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        self._link.refuse()
        pulls, self._pulls = self._pulls, set()
        await asyncio.gather(*(pull.leave() for pull in pulls))
        await self._link.close()

    # ------------------------------------------------------------------------------------------------------ the log

    def address_of(self, topic: str) -> str:
        """The subjects under which a topic's events are."""
        return subjects(stream_name(topic))[0]

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        name = stream_name(topic)
        info = await self._link.stream(name)
        state = info.state or State()
        end = state.last_seq + 1
        if 0 < state.messages < end - state.first_seq:
            # Some were deleted by hand. If the last ones were, nobody would ever come to an end behind them.
            answer = await self._link.ask(f"STREAM.MSG.GET.{name}", {"last_by_subj": subjects(name)[0]})
            last = granted(answer, f"the last message of {name}").message
            end = last.seq + 1 if last is not None else end
        return {0: Bounds(f"{name}@{info.created}", state.first_seq if state.messages else end, end)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`. Asks the stream's leader: a direct get may be answered by a replica that is behind."""
        if partition != 0 or position <= 0:
            return None
        stored = await self._link.stored(await self._link.made(stream_name(topic)), position)
        return None if stored is None else message(header_fields(stored.hdrs), stored.data)

    async def find(self, topic: str, *, at_ms: int) -> Mapping[int, int]:
        """See `Connector.find`."""
        name = stream_name(topic)
        return {0: await self._before(name, await self._link.stream(name), at_ms)}

    async def _before(self, name: str, info: Answer, at_ms: int) -> int:
        state = info.state or State()
        return await self._link.before(name, state.first_seq, state.last_seq, at_ms * 1_000_000)

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`. The messages that are not refused are stored, whatever happens to the others."""
        await self._link.ready()
        name = stream_name(topic)
        prefix = subjects(name)[0][:-1]
        position = await publish(self._link, name, [self._outgoing(prefix, each) for each in messages])
        return {0: position} if messages else {}

    def _outgoing(self, prefix: str, message: Message) -> Outgoing:
        headers = message.headers
        text = "".join(headers.values())
        if not (self._good_names.issuperset(headers) and " " not in text and carried(text)):
            for name, value in headers.items():  # one by one
                if not _HEADER_NAME.fullmatch(name) or name[:5].lower() == "nats-" or not carried(value):
                    raise Rejected(
                        f"message {message.id!r} has a header {name!r} that NATS cannot carry",
                        hint="printable ASCII without blanks around it, and a name that does not begin with Nats-",
                    )
                if len(self._good_names) < GOOD_NAMES_MAX:
                    self._good_names.add(name)
        size = len(message.body) + len(text) + sum(map(len, headers)) + 4 * len(headers)
        if size > self._link.bytes_max:
            raise TooLarge(
                f"message {message.id!r} has {size} bytes, {self.address} takes {self._link.bytes_max}",
                hint="raise max_payload in the server's configuration",
            )
        if len(message.id) > ID_CHARS_MAX or not carried(message.id):
            raise Rejected(
                f"message id {message.id[:ID_CHARS_MAX]!r} is one that NATS cannot carry",
                hint=f"at most {ID_CHARS_MAX} characters of printable ASCII without blanks around them",
            )
        sent = {"Nats-Msg-Id": message.id, **headers} if message.id else dict(headers)
        return Outgoing(message.id, prefix + hashed(message.partition_key), sent, message.body, size)

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        await self._link.ready()
        reader = LogReader(self._link, stream_name(topic), batch_max, max(start.get(0, 0), 0))
        async with self._pulling(reader):
            await reader.open()
            yield reader

    @asynccontextmanager
    async def _pulling(self, pull: Pull) -> AsyncIterator[None]:
        self._pulls.add(pull)
        try:
            yield
        finally:
            self._pulls.discard(pull)
            await pull.leave()

    # ------------------------------------------------------------------------------------------------------- groups

    @asynccontextmanager
    async def join(
        self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[port.Member]:
        """See `Connector.join`.

        Raises:
            Rejected: there is a consumer of that name that no group can work with.
        """
        name = stream_name(topic)
        info = await self._link.stream(name)
        member = Member(self._link, name, info.created, group_name(group, foreign=False), batch_max)
        async with self._pulling(member):
            await member.join(max(start.get(0, 0), 0))
            yield member

    @asynccontextmanager
    async def tap(
        self, source: str, *, group: str, batch_max: int, at_ms: int | None = None
    ) -> AsyncIterator[port.Member]:
        """See `Connector.tap`. A source is a stream; the partition key of its messages is their subject.

        Raises:
            Rejected: also if its retention is `workqueue`: what is acknowledged there is deleted for everybody.
        """
        info = await self._source(source)
        member = Member(self._link, source, info.created, group_name(group, foreign=True), batch_max, foreign=True)
        async with self._pulling(member):
            start = 0 if at_ms is None else await self._before(source, info, at_ms)
            await member.join(start)
            yield member

    async def _source(self, source: str) -> Answer:
        # What cannot be a stream's name would be another question to the API.
        answer = await self._link.ask(f"STREAM.INFO.{source}") if _STREAM_NAME.fullmatch(source) else None
        if answer is None or (answer.error is not None and answer.error.err_code == NO_STREAM):
            raise Rejected(f"there is no stream {source!r} at {self.address}", hint="see `nats stream ls`")
        granted(answer, f"stream {source}")
        if answer.config is not None and answer.config.retention == "workqueue":
            raise Rejected(
                f"stream {source} is a work queue: what is acknowledged there is deleted",
                hint="tap a stream that has it as its source",
            )
        return answer

    async def progress(self, topic: str, *, group: str) -> Progress:
        """See `Connector.progress`."""
        name = stream_name(topic)
        info = await group_info(self._link, name, group_name(group, foreign=False))
        if info.error is not None and info.error.err_code in (NO_CONSUMER, NO_STREAM):
            state = (await self._link.stream(name)).state or State()
            return Progress({}, state.messages, 0)
        granted(info, f"group {group!r} of {name}")
        # The floor is below the first message that is not acknowledged; without any, all that was delivered is.
        reached = info.ack_floor if info.num_ack_pending else info.delivered
        return Progress({0: reached.stream_seq}, info.num_pending, info.num_ack_pending)

    # ---------------------------------------------------------------------------------------------------- the digests

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`. What was taken back stays as an empty message, which listeners pass over."""
        await self._link.ready()
        if len(body) > self._link.bytes_max:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.address} takes {self._link.bytes_max}")
        token = node if SAFE_TOKEN.fullmatch(node) else f"~{hashed(node)}"
        subject = f"{DIGEST_STREAM}.{stream_name(topic)}.{token}"
        headers = {NODE_HEADER: quote(node, safe="")}
        await publish(self._link, DIGEST_STREAM, [Outgoing("", subject, headers, body, len(body))])

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`."""
        await self._link.made(DIGEST_STREAM)
        reader = DigestReader(self._link, topic)
        async with self._pulling(reader):
            await reader.attach()
            yield reader
