"""NATS JetStream through nats-py: one stream a topic, read from the store's own place.

Reading needs no state on the server: an ephemeral pull consumer without acknowledgements starts behind the last message
received, and is made anew from there whenever it was lost or skipped something. Before that we look whether that last
message is still what it was, by its timestamp; if not, the log was put back, and the reader is told so. Connections and
publishing are in `nats_wire`.

Every stream of ours begins with `sk`: `sk-orders` takes `sk.orders.*`, `skh-HASH` a topic whose name cannot stand in a
subject, and `skd` keeps the last digest of each node and topic.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from synckit_connectors.nats_wire import (
    HEARTBEAT_S_MAX,
    NAME_TAKEN,
    NANO,
    NO_MESSAGE,
    NO_STREAM,
    RECONNECT_PAUSE_S,
    Answer,
    Outgoing,
    Sending,
    State,
    Stored,
    Wire,
    description_of,
    granted,
    log,
    nanoseconds,
    not_open,
    read_options,
    read_url,
    refusal,
    require_nats,
    status_of,
    tls_context,
    wants_tls_context,
)
from synckit_streams.errors import ConnectorError, Rejected, Timeout, TooLarge, Unavailable
from synckit_streams.ports.absent import WithoutGroups, WithoutTimes
from synckit_streams.ports.connector import ID_CHARS_MAX, Announced, Bounds, Delivery, Features, Message

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

ANSWER_S = 1.0
"""For an answer on the connection that we have, before `open` makes a new one."""
OPEN_S = 3.0
"""For `open`, whatever it has to do, and whoever else is trying to connect just then."""
SERVER_VERSION_MIN = (2, 10)
PULL_BYTES = 4 * 1024 * 1024
PULL_EXPIRES_S = 2 * HEARTBEAT_S_MAX  # the server insists on two heartbeats at least
READER_IDLE_S = 60.0
"""For how long the server keeps a consumer that asks for nothing. One that was forgotten is made anew."""
LINGER_S = 0.02
"""How long a batch that is not full waits for messages that the server has ready."""
DIGEST_STREAM = "skd"
OVERHEAD_BYTES = 256
"""Kept free in each message for what NATS and we add: the header's first line, and `Nats-Msg-Id`."""
GOOD_NAMES_MAX = 1000
NODE_HEADER = "Synckit-Node"

_SAFE_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class _Got(NamedTuple):
    """A message as it came from a stream."""

    position: int
    at_ns: int
    subject: str
    headers: dict[str, str]
    body: bytes


class _Pull:
    """Reads a stream by asking for a bounded number of messages and bytes at a time.

    `break_off` says that what was asked for will not come; the next `batch` then makes a new consumer. There is no task
    of its own: whoever waits for a batch does the work, and a reader that does not ask is not sent anything.
    """

    def __init__(self, link: NatsConnector, stream: str, batch_max: int) -> None:
        self._link = link
        self._stream = stream
        self._batch_max = max(batch_max, 1)
        # Asked for ahead of the reader: enough to hide a round trip, a few batches at most.
        self._count_max = max(2 * self._batch_max, 64)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._got: deque[_Got] = deque()
        self._got_bytes = 0
        self._asked = 0
        self._asked_last = 0
        self._bytes_max = PULL_BYTES
        self._behind = 0
        """How many messages the server has ready behind the last one that came."""
        self._heard_at = 0.0
        self._broken = ""
        self._breaks = 0
        """How often it broke since something came."""
        self._ended = False
        self._wire: Wire | None = None
        self._consumer = ""
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._number = 0
        """Of the last message, as the consumer counts."""

    def _start(self) -> dict[str, object]:
        """What a new consumer reads, and from where."""
        raise NotImplementedError

    async def _changed(self) -> str:
        """Why a new consumer would not go on where the old one stopped; "" if it would."""
        return ""

    def _note(self, got: _Got) -> bool:
        """A message came; False if it is not wanted."""
        return True

    async def create(self) -> None:
        """Make the consumer."""
        wire = await self._link._ready()
        await self._leave_consumer()
        self._wire, self._consumer = wire, "sk" + secrets.token_hex(8)
        self._asked, self._number, self._broken = 0, 0, ""
        # A subject of its own for each consumer, so that nothing of an older one is taken for its.
        self._inbox = wire.client.new_inbox()
        wire.watchers.add(self.break_off)
        self._subscription = await wire.subscribe(self._inbox, self._on_message)
        config = {
            "name": self._consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(READER_IDLE_S * NANO),
        }
        answer = await wire.ask(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "config": config | self._start()},
        )
        if answer.error is not None:
            raise refusal(answer.error, f"reading {self._stream}")
        self._behind = answer.num_pending
        self._created(answer)

    def _created(self, answer: Answer) -> None:
        """The consumer was made."""

    async def batch(self) -> list[_Got]:
        """1 to `batch_max` messages; none only after `end`."""
        patience_s = 2.5 * self._link.options.heartbeat_s
        while not self._ended:
            if self._broken and not self._got:
                await self._recreate()
            await self._ask()
            full = len(self._got) >= self._batch_max
            if full or (self._got and (not self._behind or not self._asked or self._broken)):
                return self._cut()
            self._woken.clear()
            wire, heard = self._wire, self._wire.heard if self._wire is not None else 0
            try:
                async with asyncio.timeout(LINGER_S if self._got else patience_s):
                    await self._woken.wait()
            except TimeoutError:
                if self._got:
                    return self._cut()
                if self._loop.time() - self._heard_at >= patience_s:
                    self.break_off("the server sends no heartbeats")
                    if wire is not None and wire.heard == heard:
                        wire.end(Unavailable(f"nothing comes from {self._link.address}, not even heartbeats"))
        return []

    def break_off(self, why: str) -> None:
        """What was asked for will not come."""
        self._broken = why
        self._woken.set()

    def end(self) -> None:
        """The next `batch` is empty."""
        self._ended = True
        self._woken.set()

    async def leave(self) -> None:
        """Let go of the consumer."""
        self.end()
        await self._leave_consumer()

    async def _leave_consumer(self) -> None:
        wire, subscription = self._wire, self._subscription
        self._wire = self._subscription = None
        if wire is None:
            return
        wire.watchers.discard(self.break_off)
        if subscription is not None:
            await wire.unsubscribe(subscription)
        # Without waiting for an answer: if it gets lost, the server forgets an idle consumer by itself.
        with suppress(ConnectorError):
            await wire.publish(f"{self._link.options.api}.CONSUMER.DELETE.{self._stream}.{self._consumer}")

    async def _recreate(self) -> None:
        log.debug("%s: reading anew: %s", self._stream, self._broken)
        until = self._loop.time() + self._link.options.timeout_s
        if self._breaks:
            await asyncio.sleep(min(0.05 * 2**self._breaks, 2.0))
        self._breaks += 1
        while not self._ended:
            await self._link._ready()
            try:
                changed = await self._changed()
                if not changed:
                    await self.create()
                    return
            except (Unavailable, Timeout) as error:
                # The connection is back before JetStream is, after a restart or while a leader is elected.
                if self._loop.time() >= until:
                    raise Unavailable(f"reading {self._stream} could not go on: {error.message}") from error
                await asyncio.sleep(RECONNECT_PAUSE_S)
            else:
                raise Unavailable(changed, hint="look at the bounds, and receive from there")

    async def _ask(self) -> None:
        wire, count = self._wire, self._count_max - self._asked
        if (
            wire is None
            or self._broken
            or count < self._count_max // 2
            or len(self._got) >= self._count_max
            or self._got_bytes >= PULL_BYTES
        ):
            return
        if not self._asked:
            self._heard_at = self._loop.time()  # nobody sends heartbeats to a reader that asks for nothing
        request = {
            "batch": count,
            "max_bytes": self._bytes_max,
            "expires": int(PULL_EXPIRES_S * NANO),
            "idle_heartbeat": int(self._link.options.heartbeat_s * NANO),
        }
        try:
            await wire.publish(
                f"{self._link.options.api}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                json.dumps(request).encode(),
                reply=self._inbox,
            )
        except Unavailable as error:
            self.break_off(error.message)
        else:
            self._asked += count
            self._asked_last = count

    def _cut(self) -> list[_Got]:
        batch = [self._got.popleft() for _ in range(min(self._batch_max, len(self._got)))]
        self._got_bytes -= sum(len(got.body) for got in batch)
        return batch

    async def _on_message(self, msg: Msg) -> None:
        if not msg.reply:
            self._on_status(msg)
            return
        # $JS.ACK.stream.consumer.deliveries.position.number.time.behind; newer servers may put a domain and an account
        # before the stream, and a token behind.
        parts = msg.reply.split(".")
        stream = 2 if len(parts) == 9 else 4
        if self._broken or parts[stream + 1] != self._consumer:
            return  # a new consumer brings it again
        self._heard_at = self._loop.time()
        self._asked -= 1
        if int(parts[stream + 4]) != self._number + 1:
            self.break_off(f"message {self._number + 1} of the consumer was skipped")
            return
        self._number += 1
        self._breaks = 0
        self._behind = int(parts[stream + 6])
        got = _Got(int(parts[stream + 3]), int(parts[stream + 5]), msg.subject, msg.headers or {}, msg.data)
        if not self._note(got):
            return
        self._got.append(got)
        self._got_bytes += len(got.body)
        # The first one starts the clock for a batch that is not full; the full batch and the last one end it.
        if len(self._got) in (1, self._batch_max) or not self._behind or not self._asked:
            self._woken.set()

    def _on_status(self, msg: Msg) -> None:
        if msg.subject != self._inbox:
            return
        self._heard_at = self._loop.time()
        status, text = status_of(msg), description_of(msg)
        if status == "100":  # a heartbeat
            self._breaks = 0
            return
        unsent = int((msg.headers or {}).get("Nats-Pending-Messages", 0))
        if status in ("404", "408") or text.startswith(("Message Size Exceeds", "Batch Completed")):
            # That request is over; so much of it was not sent.
            self._asked = max(self._asked - unsent, 0)
            if status == "409" and unsent >= self._asked_last:
                self._bytes_max *= 2  # not even one message fitted
            self._woken.set()
        else:
            self.break_off(f"{status} {text}")


class _LogPull(_Pull):
    """Reads a topic from a position."""

    def __init__(self, link: NatsConnector, stream: str, batch_max: int, last: int) -> None:
        super().__init__(link, stream, batch_max)
        self._last = last
        self._last_ns = 0
        """When the last message was stored, by the server's clock: what it is known by. 0 is unknown."""
        self._identity = ""

    async def open(self) -> None:
        """Note what is read, and make the consumer."""
        self._identity = (await self._link._stream(self._stream)).created
        if self._last > 0:
            stored = await self._link._stored(self._stream, self._last)
            self._last_ns = nanoseconds(stored.time) if stored is not None else 0
        await self.create()

    def __aiter__(self) -> _LogPull:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.batch()
        if not batch:
            raise StopAsyncIteration
        return [Delivery(_message(got.headers, got.body), 0, got.position) for got in batch]

    def _start(self) -> dict[str, object]:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": self._last + 1}

    def _note(self, got: _Got) -> bool:
        if got.position <= self._last:
            return False
        self._last, self._last_ns = got.position, got.at_ns
        return True

    async def _changed(self) -> str:
        answer = await self._link._ask(f"STREAM.INFO.{self._stream}")
        if answer.error is not None and answer.error.err_code == NO_STREAM:
            return f"stream {self._stream} was deleted"
        info = granted(answer, self._stream)
        if info.created != self._identity:
            return f"stream {self._stream} was deleted and made anew"
        if info.state is not None and info.state.last_seq < self._last:
            return f"stream {self._stream} was put back: it ends at {info.state.last_seq}, {self._last} was read"
        stored = await self._link._stored(self._stream, self._last) if self._last_ns else None
        if stored is not None and nanoseconds(stored.time) != self._last_ns:
            return f"stream {self._stream} was put back: message {self._last} is another one now"
        return ""


class _DigestPull(_Pull):
    """Reads the last digest of each node of a topic, and then the new ones."""

    def __init__(self, link: NatsConnector, topic: str) -> None:
        super().__init__(link, DIGEST_STREAM, 64)
        self._filter = f"{DIGEST_STREAM}.{_stream_name(topic)}.*"
        self._heard: deque[Announced] = deque()
        self._caught_up = False
        self._created_ns = 0
        self._created_at = 0.0
        self._creations = 0

    def __aiter__(self) -> _DigestPull:
        return self

    async def __anext__(self) -> Announced:
        while not self._heard:
            if not self._caught_up and not self._got and not self._behind and not self._ended:
                self._caught_up = True
                return Announced("", b"", 0.0)
            batch = await self.batch()
            if not batch:
                raise StopAsyncIteration
            self._caught_up = False
            self._heard.extend(announced for got in batch if (announced := self._announced(got)) is not None)
        return self._heard.popleft()

    def _start(self) -> dict[str, object]:
        return {"deliver_policy": "last_per_subject", "filter_subject": self._filter}

    def _created(self, answer: Answer) -> None:
        # Both by the server's clock, whatever ours says.
        self._created_ns = nanoseconds(answer.ts or answer.created)
        self._created_at = self._loop.time()
        self._creations += 1

    def _announced(self, got: _Got) -> Announced | None:
        node = unquote(got.headers.get(NODE_HEADER, ""))
        retained = got.at_ns <= self._created_ns
        # What was taken back before we listened is not there; while we listened and were cut off, it is news.
        if not node or (retained and not got.body and self._creations == 1):
            return None
        age_s = (self._created_ns - got.at_ns) / NANO + self._loop.time() - self._created_at if retained else 0.0
        return Announced(node, got.body, age_s)


class NatsConnector(WithoutGroups, WithoutTimes):
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
        self._tls = tls_context(self.options) if wants_tls_context(self.address, self.options) else None
        self._opened = False
        self._wire: Wire | None = None
        self._attempt: asyncio.Task[Wire] | None = None
        self._refused: asyncio.Future[Unavailable]
        """Why the present try of the attempt has failed."""
        self._made: set[str] = set()
        self._pulls: set[_Pull] = set()
        self._good_names: set[str] = set()
        """Header names that were looked at before."""
        self._bytes_max = 1024 * 1024 - OVERHEAD_BYTES

    @property
    def features(self) -> Features:
        """Ordered and replayable, one partition; the largest message is known once it is open."""
        return Features(durable=self.options.storage == "file", dedup=True, bytes_max=self._bytes_max)

    # ----------------------------------------------------------------------------------------------- open and closed

    async def open(self) -> None:
        """See `Connector.open`. Failing to connect anew leaves an open connector open: its readers may yet go on."""
        first = not self._opened
        self._opened = True
        try:
            try:
                async with asyncio.timeout(OPEN_S):
                    if not first:
                        await self._doubt()
                    wire = await self._ready(patient=False)
            except TimeoutError:
                raise Unavailable(f"no connection to {self.address}") from None
            if first:
                self._check_version(wire)
                granted(await wire.ask("INFO"), "JetStream")
        except BaseException:
            if first:
                await self.close()
            raise

    async def _doubt(self) -> None:
        """Give the connection that we have up if nothing answers on it."""
        wire = self._wire
        if wire is None or wire.gone is not None:
            return
        try:
            async with asyncio.timeout(ANSWER_S):
                await wire.ask("INFO")
        except (ConnectorError, TimeoutError):
            wire.end(Unavailable(f"the connection to {self.address} was lost: no answer"))

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        self._opened = False
        pulls, self._pulls = self._pulls, set()
        for pull in pulls:
            await pull.leave()
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait({self._attempt})
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close(not_open(self.address))

    async def _ready(self, *, patient: bool = True) -> Wire:
        """A connection; a new one if the last was lost, which has `timeout_s` to come back if we are patient."""
        if not self._opened:
            raise not_open(self.address)
        if self._wire is None or self._wire.gone is not None:
            # One attempt for all who want it. Who is cancelled while waiting does not cancel it for the others.
            attempt = self._attempt
            if attempt is None:
                loop = asyncio.get_running_loop()
                self._refused = loop.create_future()
                attempt = self._attempt = loop.create_task(self._connect(patient))
                attempt.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits
            refused = self._refused
            # Who is not patient waits for the present try alone, the others for as many as it takes.
            waits: list[asyncio.Future[Wire] | asyncio.Future[Unavailable]] = [attempt]
            await asyncio.wait(waits if patient else [*waits, refused], return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done():
                raise refused.result()
            if attempt.cancelled():
                raise not_open(self.address)
            return attempt.result()
        return self._wire

    async def _connect(self, patient: bool) -> Wire:
        loop = asyncio.get_running_loop()
        # The first connection has one try, and so has one that did not come back in time.
        until = self._wire.gone_at + self.options.timeout_s if patient and self._wire is not None else 0.0
        try:
            if self._wire is not None:
                await self._wire.close(not_open(self.address))
            while True:
                wire = Wire(self.address, self.options, self._tls)
                try:
                    await wire.connect()
                except Unavailable as error:
                    if loop.time() >= until:
                        raise
                    refused, self._refused = self._refused, loop.create_future()
                    refused.set_result(error)
                    await asyncio.sleep(RECONNECT_PAUSE_S)
                else:
                    break
        finally:
            self._attempt = None
        # Another server may answer now, with other streams.
        self._made.clear()
        self._bytes_max = wire.client.max_payload - OVERHEAD_BYTES
        self._wire = wire
        return wire

    def _check_version(self, wire: Wire) -> None:
        version = wire.client.connected_server_version
        try:
            found = (version.major, version.minor)
        except ValueError:
            return  # a build of somebody's own
        if found < SERVER_VERSION_MIN:
            raise Rejected(
                f"the server at {self.address} is nats-server {found[0]}.{found[1]}",
                hint=f"it has to be {SERVER_VERSION_MIN[0]}.{SERVER_VERSION_MIN[1]} or newer",
            )

    # ------------------------------------------------------------------------------------------------------- streams

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        name = _stream_name(topic)
        info = await self._stream(name)
        state = info.state or State()
        end = state.last_seq + 1
        if 0 < state.messages < end - state.first_seq:
            # Some were deleted by hand. If the last ones were, nobody would ever come to an end behind them.
            answer = await self._ask(f"STREAM.MSG.GET.{name}", {"last_by_subj": _subjects(name)[0]})
            last = granted(answer, f"the last message of {name}").message
            end = last.seq + 1 if last is not None else end
        return {0: Bounds(f"{name}@{info.created}", state.first_seq if state.messages else end, end)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`. Asks the stream's leader: a direct get may be answered by a replica that is behind."""
        if partition != 0 or position <= 0:
            return None
        stream = await self._made_stream(_stream_name(topic))
        stored = await self._stored(stream, position)
        return None if stored is None else _message(_headers(stored.hdrs), stored.data)

    async def _ask(self, what: str, body: object = None) -> Answer:
        """Ask the JetStream API; once more if the connection was lost meanwhile, since asking changes nothing."""
        wire = await self._ready()
        try:
            return await wire.ask(what, body)
        except Unavailable:
            if wire.gone is None:
                raise
        return await (await self._ready()).ask(what, body)

    async def _stored(self, stream: str, position: int) -> Stored | None:
        answer = await self._ask(f"STREAM.MSG.GET.{stream}", {"seq": position})
        if answer.error is not None and answer.error.err_code in (NO_MESSAGE, NO_STREAM):
            return None
        return granted(answer, f"message {position} of {stream}").message

    async def _made_stream(self, name: str) -> str:
        await self._ready()
        if name not in self._made:
            await self._stream(name)
        return name

    async def _stream(self, name: str) -> Answer:
        """A stream as it is now, made if it was not there."""
        answer = await self._ask(f"STREAM.INFO.{name}")
        if answer.error is not None and answer.error.err_code == NO_STREAM:
            answer = await self._ask(f"STREAM.CREATE.{name}", self._stream_config(name))
            if answer.error is not None and answer.error.err_code == NAME_TAKEN:
                # Somebody else was quicker, with other settings.
                answer = await self._ask(f"STREAM.INFO.{name}")
        granted(answer, f"stream {name}")
        subjects = answer.config.subjects if answer.config is not None else []
        if subjects != _subjects(name):
            raise Rejected(
                f"stream {name} takes {subjects}, not {_subjects(name)}: it is not one of ours",
                hint="give that stream another name, or the topic",
            )
        self._made.add(name)
        return answer

    def _stream_config(self, name: str) -> dict[str, object]:
        options = self.options
        window_s = options.duplicate_window_s
        limits: dict[str, object] = {"max_msgs_per_subject": 1}
        if name != DIGEST_STREAM:
            window_s = min(window_s, options.max_age_s or window_s)  # the server insists on that
            limits = {"max_bytes": options.max_bytes, "max_age": int(options.max_age_s * NANO)}
        return {
            "name": name,
            "description": "synckit-streams",
            "subjects": _subjects(name),
            "retention": "limits",
            "discard": "old",
            "storage": options.storage,
            "num_replicas": options.replicas,
            "duplicate_window": int(window_s * NANO),
            "allow_direct": True,
            **limits,
        }

    # --------------------------------------------------------------------------------------------------- the messages

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`. The messages that are not refused are stored, whatever happens to the others."""
        await self._ready()
        name = _stream_name(topic)
        position = await self._publish(name, [self._outgoing(name, message) for message in messages])
        return {0: position} if messages else {}

    async def _publish(self, name: str, messages: Sequence[Outgoing]) -> int:
        """Return the greatest position when the stream has all of them, over as many connections as it takes."""
        sending = Sending(messages, self.options)
        while not sending.done:
            wire = await self._ready()
            try:
                await self._made_stream(name)
                await sending.run(wire)
            except Unavailable as error:
                if sending.stuck:
                    raise
                log.debug("%s: publishing again: %s", name, error.message)
                self._made.discard(name)
                await asyncio.sleep(RECONNECT_PAUSE_S)
        if sending.refused is not None:
            raise sending.refused
        return sending.last

    def _outgoing(self, stream: str, message: Message) -> Outgoing:
        headers = message.headers
        text = "".join(headers.values())
        if not (self._good_names.issuperset(headers) and " " not in text and _carried(text)):
            for name, value in headers.items():  # one by one
                if not _HEADER_NAME.fullmatch(name) or name[:5].lower() == "nats-" or not _carried(value):
                    raise Rejected(
                        f"message {message.id!r} has a header {name!r} that NATS cannot carry",
                        hint="printable ASCII without blanks around it, and a name that does not begin with Nats-",
                    )
                if len(self._good_names) < GOOD_NAMES_MAX:
                    self._good_names.add(name)
        size = len(message.body) + len(text) + sum(map(len, headers)) + 4 * len(headers)
        if size > self._bytes_max:
            raise TooLarge(
                f"message {message.id!r} has {size} bytes, {self.address} takes {self._bytes_max}",
                hint="raise max_payload in the server's configuration",
            )
        if len(message.id) > ID_CHARS_MAX or not _carried(message.id):
            raise Rejected(
                f"message id {message.id[:ID_CHARS_MAX]!r} is one that NATS cannot carry",
                hint=f"at most {ID_CHARS_MAX} characters of printable ASCII without blanks around them",
            )
        sent = {"Nats-Msg-Id": message.id, **headers} if message.id else dict(headers)
        subject = _subjects(stream)[0][:-1] + _hash(message.partition_key)
        return Outgoing(message.id, subject, sent, message.body, size)

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        await self._ready()
        pull = _LogPull(self, _stream_name(topic), batch_max, max(start.get(0, 0), 0))
        self._pulls.add(pull)
        try:
            await pull.open()
            yield pull
        finally:
            self._pulls.discard(pull)
            await pull.leave()

    # ---------------------------------------------------------------------------------------------------- the digests

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`. What was taken back stays as an empty message, which listeners pass over."""
        await self._ready()
        if len(body) > self._bytes_max:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.address} takes {self._bytes_max}")
        token = node if _SAFE_TOKEN.fullmatch(node) else f"~{_hash(node)}"
        subject = f"{DIGEST_STREAM}.{_stream_name(topic)}.{token}"
        headers = {NODE_HEADER: quote(node, safe="")}
        await self._publish(DIGEST_STREAM, [Outgoing("", subject, headers, body, len(body))])

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`."""
        await self._made_stream(DIGEST_STREAM)
        pull = _DigestPull(self, topic)
        self._pulls.add(pull)
        try:
            await pull.create()
            yield pull
        finally:
            self._pulls.discard(pull)
            await pull.leave()


# ------------------------------------------------------------------------------------------------- names and messages


def _hash(text: str) -> str:
    """A subject token for any text."""
    return base64.b32encode(sha256(text.encode()).digest())[:26].decode()


def _stream_name(topic: str) -> str:
    return f"sk-{topic}" if _SAFE_TOKEN.fullmatch(topic) else f"skh-{_hash(topic)}"


def _subjects(stream: str) -> list[str]:
    root, _, token = stream.partition("-")
    return [f"{root}.{token}.*" if token else f"{root}.>"]


def _carried(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def _headers(raw: bytes) -> dict[str, str]:
    """Headers as the server stores them: a line `NATS/1.0`, then one a header."""
    pairs = (line.partition(":") for line in raw.decode(errors="replace").split("\r\n")[1:])
    return {name: value.strip() for name, colon, value in pairs if colon}


def _message(headers: dict[str, str], body: bytes) -> Message:
    return Message(
        headers.get("Nats-Msg-Id", ""),
        "",
        {name: value for name, value in headers.items() if not name.startswith("Nats-")},
        body,
    )
