"""NATS JetStream through nats-py: one stream a topic, read from the store's own place.

Theory of operation. nats-py carries bytes and comes back by itself after a lost connection; everything above that is
here, because its JetStream layer costs two tasks a message and hides what has to be known (what was sent twice, whether
a consumer died, whether the log is still the same). All answers come to *one* inbox: a reply subject is the inbox and a
token, and whoever waits for an answer is found by the token. When the connection is lost, all of them are told at once;
a publish then goes out again under the same `Nats-Msg-Id`.

Reading needs no state on the server: an ephemeral pull consumer without acknowledgements starts behind the last message
received, and is made anew from there whenever it was lost or skipped something. Before that we look whether that last
message is still what it was, by its timestamp; if not, the log was put back, and the reader is told so.

Every stream of ours begins with `sk`: `sk-orders` takes `sk.orders.*`, `skh-HASH` a topic whose name cannot stand in a
subject, and `skd` keeps the last digest of each node and topic.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import math
import re
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from synckit_streams.errors import (
    ConfigError,
    ConnectorError,
    FeatureUnsupported,
    MissingDependency,
    Rejected,
    SyncKitError,
    Timeout,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from synckit_streams.ports.connector import Announced, Bounds, Delivery, Features, Lag, Message

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = logging.getLogger(__name__)

CONNECT_S = 2.8
"""For the first connection, all servers of the URL together."""
ANSWER_S = 1.0
"""For an answer on the connection that we have, before `open` makes a new one."""
OPEN_S = 3.0
"""For `open`, whatever it has to do, and whoever else is trying to connect just then."""
RECONNECT_PAUSE_S = 0.25
SERVER_VERSION_MIN = (2, 10)
WINDOW_MESSAGES = 512
WINDOW_BYTES = 4 * 1024 * 1024
"""What may be published and not yet acknowledged."""
PULL_BYTES = 4 * 1024 * 1024
PULL_EXPIRES_S = 30.0
READER_IDLE_S = 60.0
"""For how long the server keeps a consumer that asks for nothing. One that was forgotten is made anew."""
LINGER_S = 0.02
"""How long a batch that is not full waits for messages that the server has ready."""
DIGEST_STREAM = "skd"
OVERHEAD_BYTES = 256
"""Kept free in each message for what NATS and we add: the header's first line, and `Nats-Msg-Id`."""
ID_CHARS_MAX = 200
GOOD_NAMES_MAX = 1000
NODE_HEADER = "Synckit-Node"

_SAFE_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NANO = 1_000_000_000

# Codes of the JetStream API, from nats-server's errors.json.
_NO_STREAM, _NO_MESSAGE, _NAME_TAKEN, _TOO_LARGE, _NOT_ENABLED = 10059, 10037, 10058, 10054, {10039, 10076}
# A cluster without a leader, or a stream without its servers. The code 503 alone also stands for a stream that is full.
_TRANSIENT = {10003, 10008, 10009, 10118}


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a NATS connector, in the URL's query or as keywords.

    Args:
        replicas: Servers that hold each stream that we make, 1 to 5.
        max_age_s: For how long streams that we make keep a message; 0 is for ever.
        max_bytes: How large they may grow before the oldest messages go; -1 is without limit.
        storage: `file` or `memory`.
        duplicate_window_s: For how long the server remembers message ids.
        timeout_s: Longest time without progress, and for the connection to come back.
        heartbeat_s: How often the server tells an idle reader that it is still there.
        tls_ca: File with the certificates to trust, instead of the system's.
        tls_cert: File with our certificate, when the server asks for one.
        tls_key: Its key, if not in the same file.
        creds: File with a user's JWT and NKey seed.
        token: Token to authenticate with.
        domain: JetStream domain, for a leaf node that uses its hub's streams.
        inbox_prefix: Where answers come to, for users who may not subscribe to `_INBOX`.
    """

    replicas: int = 1
    max_age_s: float = 0.0
    max_bytes: int = -1
    storage: Literal["file", "memory"] = "file"
    duplicate_window_s: float = 120.0
    timeout_s: float = 10.0
    heartbeat_s: float = 5.0
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    creds: str = ""
    token: str = ""
    domain: str = ""
    inbox_prefix: str = "_INBOX"

    @property
    def api(self) -> str:
        """The first part of the subjects of the JetStream API."""
        return f"$JS.{self.domain}.API" if self.domain else "$JS.API"


class _Address(NamedTuple):
    servers: list[str]
    tls: bool
    user: str | None
    password: str | None

    def __str__(self) -> str:
        # Never the user's name or password: this stands in errors and logs.
        return ",".join(self.servers)


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0


class _StreamConfig(msgspec.Struct):
    subjects: list[str] = []
    storage: str = "file"


class _Stored(msgspec.Struct):
    subject: str = ""
    seq: int = 0
    hdrs: bytes = b""
    data: bytes = b""
    time: str = ""


class _Answer(msgspec.Struct):
    """What we read of the JetStream API's answers, all kinds in one; bytes are base64 in JSON, which msgspec undoes."""

    error: _ApiError | None = None
    created: str = ""
    ts: str = ""
    config: _StreamConfig | None = None
    state: _State | None = None
    message: _Stored | None = None
    num_pending: int = 0


class _Ack(msgspec.Struct):
    """The answer to a publish."""

    error: _ApiError | None = None
    seq: int = 0
    duplicate: bool = False


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_ack = msgspec.json.Decoder(_Ack).decode

_T = TypeVar("_T")
_OnAnswer: TypeAlias = "Callable[[str, Msg | ConnectorError], None]"


class _Wire:
    """One connection, with all that waits for an answer on it. Once it is gone it does not come back: make another.

    nats-py's own reconnection is not used. It keeps what was published meanwhile, and sends it later without telling;
    and it leaks a socket for each attempt at which the server answers but does not let it in.
    """

    def __init__(self, address: _Address, options: NatsOptions, tls: ssl.SSLContext | None) -> None:
        self._address = address
        self._options = options
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, _OnAnswer] = {}
        self._tokens = itertools.count()
        self._subscriptions: set[Subscription] = set()
        self._cause: Exception | None = None
        self._failures = 0
        self._failed = self._loop.create_future()
        self._encrypted = False
        """Whether the present attempt to connect came to an encrypted connection."""
        self._ending: asyncio.Task[None] | None = None
        self.client = _new_client(self._note_encryption)
        self.inbox = ""
        self.gone: ConnectorError | None = None
        self.gone_at = 0.0
        self.readers: set[_Pull] = set()

    # ------------------------------------------------------------------------------------------------ coming and going

    async def connect(self) -> None:
        """Connect to one of the servers, within `CONNECT_S`."""
        attempt = self._loop.create_task(self.client.connect(**self._settings()))
        try:
            # nats-py alone would try for ever; one failure of each server is enough to know.
            await asyncio.wait({attempt, self._failed}, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            if attempt.done():
                attempt.result()
            # A server that hangs up in the middle of the handshake is told apart only by the second.
            if not attempt.done() or not self.client.is_connected:
                raise self._unavailable("no connection")
            if self._address.tls and not self._encrypted:
                raise _no_tls(self._address)
            self.inbox = self.client.new_inbox() + "."
            await self.subscribe(self.inbox + "*", self._on_answer)
        except BaseException as error:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
            await self.close(self._unavailable("no connection"))
            if isinstance(error, ConnectorError) or not isinstance(error, Exception):
                raise
            raise _translate(error, f"no connection to {self._address}") from error

    def _settings(self) -> dict[str, Any]:
        options = self._options
        settings: dict[str, Any] = {
            "servers": self._address.servers,
            "name": "synckit-streams",
            "error_cb": self._on_error,
            "disconnected_cb": self._on_down,
            "closed_cb": self._on_down,
            "connect_timeout": max(1, int(CONNECT_S) // len(self._address.servers)),
            "reconnect_time_wait": RECONNECT_PAUSE_S,
            "max_reconnect_attempts": -1,
            "ping_interval": 20,
            # Far above our window: nats-py swallows a cancellation that meets it while it waits for its own buffer.
            "pending_size": 256 * 1024 * 1024,
            "inbox_prefix": options.inbox_prefix,
        }
        if self._tls is not None:
            settings["tls"] = self._tls
        if options.creds:
            settings["user_credentials"] = options.creds
        elif options.token:
            settings["token"] = lambda: self._secret(options.token)
        elif self._address.user is not None:
            settings["user"] = lambda: self._secret(self._address.user or "")
            settings["password"] = lambda: self._address.password or ""
        return settings

    def _secret(self, secret: str) -> str:
        # nats-py encrypts only when the server asks for it, tls:// or not; and it wants the secret after that.
        if self._address.tls and not self._encrypted:
            raise _nats_errors().SecureConnWantedError
        return secret

    def _note_encryption(self) -> None:
        self._encrypted = True

    async def close(self, why: ConnectorError) -> None:
        """End it, and return when nothing of it is left."""
        self.end(why)
        if self._ending is not None:
            await asyncio.wait({self._ending})

    def end(self, why: ConnectorError) -> None:
        """It is gone, and everybody who waits is told why."""
        if self.gone is not None:
            return
        self.gone = why
        self.gone_at = self._loop.time()
        self._ending = self._loop.create_task(self._close_client())
        self._tell(why)
        for reader in list(self.readers):
            reader.break_off(why.message)

    @property
    def heard(self) -> int:
        """How many messages came. When none did, a connection that should bring some looks open and is not."""
        count: int = self.client.stats["in_msgs"]
        return count

    async def _close_client(self) -> None:
        # Ours first: when the socket is already dead, nats-py's close stops half-way and would leave their tasks.
        for subscription in list(self._subscriptions):
            await self.unsubscribe(subscription)
        with suppress(Exception):
            await self.client.close()
        for _ in range(3):  # its cancelled tasks end in the next rounds of the loop
            await asyncio.sleep(0)

    def _tell(self, error: ConnectorError) -> None:
        """Everybody who waits for an answer gets this one."""
        waiting, self._waiting = self._waiting, {}
        for token, on_answer in waiting.items():
            on_answer(token, error)

    def _unavailable(self, what: str) -> ConnectorError:
        return _translate(self._cause, f"{what} to {self._address}")

    async def _on_error(self, error: Exception) -> None:
        log.debug("%s: %s", self._address, error)
        # A server that does not let us in may also just hang up at the next try; the first says more.
        if not isinstance(self._unavailable("no connection"), Unauthorised):
            self._cause = error
        self._encrypted = False
        self._failures += 1
        if self._failures >= len(self._address.servers) and not self._failed.done():
            self._failed.set_result(None)
        if "permissions violation" in str(error).lower():
            # It does not say whose request that was, so everyone who waits hears it.
            self._tell(_translate(error, f"not allowed at {self._address}"))

    async def _on_down(self) -> None:
        # Lost, or closed by the server with an error that nats-py does not come back from.
        self._cause = self.client.last_error or self._cause
        self.end(Unavailable(f"the connection to {self._address} was lost: {self._cause or 'closed'}"))

    # ------------------------------------------------------------------------------------------- asking and answering

    def expect(self, on_answer: _OnAnswer) -> str:
        """A token for a reply subject, at which one answer is expected: `inbox + token`."""
        token = f"{next(self._tokens):x}"
        self._waiting[token] = on_answer
        return token

    def forget(self, token: str) -> None:
        """No longer expect it."""
        self._waiting.pop(token, None)

    async def _on_answer(self, msg: Msg) -> None:
        token = msg.subject[len(self.inbox) :]
        on_answer = self._waiting.pop(token, None)
        if on_answer is not None:
            on_answer(token, msg)

    async def publish(
        self, subject: str, body: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand one message to the connection. It never waits."""
        if not self.client.is_connected:
            # nats-py calls back a little later than it changes its state, and not at all if its close fails half-way.
            self.end(Unavailable(f"the connection to {self._address} was lost"))
        if self.gone is not None:
            raise self.gone
        try:
            await self.client.publish(subject, body, reply=reply, headers=headers)
        except _nats_errors().Error as error:
            raise _translate(error, f"could not publish at {self._address}") from error

    async def request(self, subject: str, body: bytes = b"", *, headers: dict[str, str] | None = None) -> Msg:
        """Ask, and wait for the answer."""
        answer: asyncio.Future[Msg] = self._loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # when publish raises, nobody waits

        def on_answer(token: str, msg: Msg | ConnectorError) -> None:
            if not answer.done():
                if isinstance(msg, ConnectorError):
                    answer.set_exception(msg)
                else:
                    answer.set_result(msg)

        token = self.expect(on_answer)
        heard = self.heard
        try:
            await self.publish(subject, body, reply=self.inbox + token, headers=headers)
            async with asyncio.timeout(self._options.timeout_s):
                msg = await answer
        except TimeoutError:
            error: ConnectorError = Timeout(
                f"no answer from {self._address} to {subject} within {self._options.timeout_s:g} s"
            )
            if self.heard == heard:
                self.end(error)
            raise error from None
        finally:
            self.forget(token)
        if _status(msg) == "503":
            raise Unavailable(
                f"JetStream does not answer at {self._address}", hint="start the server with JetStream: nats-server -js"
            )
        return msg

    async def ask(self, what: str, body: object = None) -> _Answer:
        """Ask the JetStream API. An error in the answer is the caller's to judge."""
        payload = b"" if body is None else json.dumps(body).encode()
        msg = await self.request(f"{self._options.api}.{what}", payload)
        return _decode(_decode_answer, msg.data, what)

    async def subscribe(self, subject: str, on_message: Callable[[Msg], Any]) -> Subscription:
        """Hear a subject; ended by `unsubscribe`, or with the connection."""
        try:
            subscription = await self.client.subscribe(subject, cb=on_message)
        except _nats_errors().Error as error:
            raise _translate(error, f"could not subscribe at {self._address}") from error
        self._subscriptions.add(subscription)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Hear it no more."""
        self._subscriptions.discard(subscription)
        with suppress(_nats_errors().Error):
            await subscription.unsubscribe()


class _Outgoing(NamedTuple):
    id: str
    subject: str
    headers: dict[str, str]
    body: bytes
    size: int


class _Sending:
    """The messages of one `send`, each until it is acknowledged. Survives connections."""

    def __init__(self, messages: Sequence[_Outgoing], options: NatsOptions) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages = messages
        self._timeout_s = options.timeout_s
        # A few transmissions fit into the time-out.
        self._patience_s = options.timeout_s / 4
        self._queue = deque(range(len(messages)))
        self._flying: dict[str, tuple[int, float]] = {}
        """Token -> (which, until when an answer is awaited), the oldest first."""
        self._flying_bytes = 0
        self._transmissions = [0] * len(messages)
        self._woken = asyncio.Event()
        self._stop: ConnectorError | None = None
        """Why this connection, or this stream, is of no more use."""
        self._progress_at = self._loop.time()
        self.last = 0
        """Greatest position that was acknowledged."""
        self.refused: SyncKitError | None = None
        """The first thing that the broker refused; the other messages go on."""

    @property
    def done(self) -> bool:
        return not self._queue and not self._flying

    @property
    def stuck(self) -> bool:
        """Whether nothing was acknowledged for `timeout_s`."""
        return self._loop.time() - self._progress_at >= self._timeout_s

    async def run(self, wire: _Wire) -> None:
        """Publish until all are acknowledged, or raise why connection and stream have to be looked at again."""
        self._stop = None
        try:
            while not self.done:
                await self._fill(wire)
                self._woken.clear()
                oldest = next(iter(self._flying.values()))[1]
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(oldest):
                        await self._woken.wait()
                if self._stop is not None:
                    raise self._stop
                self._send_late_again(wire)
        finally:
            for token in self._flying:
                wire.forget(token)
            self._queue.extendleft(which for which, _ in reversed(self._flying.values()))
            self._flying.clear()
            self._flying_bytes = 0

    async def _fill(self, wire: _Wire) -> None:
        until = self._loop.time() + self._patience_s
        while self._queue and len(self._flying) < WINDOW_MESSAGES and self._flying_bytes < WINDOW_BYTES:
            which = self._queue[0]
            message = self._messages[which]
            token = wire.expect(self._on_ack)
            # Flying before it is published: when the connection turns out to be lost just then, it is told so.
            self._queue.popleft()
            self._flying[token] = (which, until)
            self._flying_bytes += message.size
            await wire.publish(message.subject, message.body, reply=wire.inbox + token, headers=message.headers)
            self._transmissions[which] += 1

    def _on_ack(self, token: str, answer: Msg | ConnectorError) -> None:
        which, _ = self._flying.pop(token)
        message = self._messages[which]
        self._flying_bytes -= message.size
        if isinstance(answer, ConnectorError):
            self._again(which, answer)
        elif _status(answer) == "503":
            self._again(which, Unavailable(f"no stream takes {message.subject!r}", hint="was it deleted just now?"))
        else:
            self._judge(which, answer)
        # Half a window is worth a wake-up, one acknowledgement is not.
        if self._stop is not None or len(self._flying) <= (WINDOW_MESSAGES // 2 if self._queue else 0):
            self._woken.set()

    def _again(self, which: int, why: ConnectorError) -> None:
        self._stop = why
        self._queue.append(which)

    def _judge(self, which: int, answer: Msg) -> None:
        message = self._messages[which]
        refused: SyncKitError | None = None
        try:
            ack = _decode(_decode_ack, answer.data, message.subject)
            if ack.error is not None:
                refused = _refusal(ack.error, f"message {message.id!r}")
            elif ack.duplicate and self._transmissions[which] == 1:
                refused = Rejected(
                    f"message {message.id!r} is a duplicate to the server, but was sent only now",
                    hint="it was not stored; a message that is published again needs a new id",
                )
            self.last = max(self.last, ack.seq)
            self._progress_at = self._loop.time()
        except ConnectorError as error:
            refused = error
        self.refused = self.refused or refused

    def _send_late_again(self, wire: _Wire) -> None:
        now = self._loop.time()
        late = [token for token, (_, until) in self._flying.items() if until <= now]
        for token in late:
            wire.forget(token)
            which, _ = self._flying.pop(token)
            self._flying_bytes -= self._messages[which].size
            self._queue.append(which)
        if late and self.stuck:
            raise Timeout(f"{len(late)} messages were not acknowledged within {self._timeout_s:g} s")


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
        self._wire: _Wire | None = None
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
        wire.readers.add(self)
        self._subscription = await wire.subscribe(self._inbox, self._on_message)
        config = {
            "name": self._consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(READER_IDLE_S * _NANO),
        }
        answer = await wire.ask(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "config": config | self._start()},
        )
        if answer.error is not None:
            raise _refusal(answer.error, f"reading {self._stream}")
        self._behind = answer.num_pending
        self._created(answer)

    def _created(self, answer: _Answer) -> None:
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
        wire.readers.discard(self)
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
            "expires": int(PULL_EXPIRES_S * _NANO),
            "idle_heartbeat": int(self._link.options.heartbeat_s * _NANO),
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
        status, text = _status(msg), _description(msg)
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


class NatsDelivery(msgspec.Struct, frozen=True, gc=False):
    """A message of a topic's stream."""

    message: Message
    position: int
    partition: int = 0

    async def ack(self) -> None:
        """Nothing to do: without a group the server keeps no position."""

    async def nack(self, delay_s: float = 0.0) -> None:
        """Raises FeatureUnsupported: there are no groups."""
        raise _no_groups()

    async def term(self) -> None:
        """Raises FeatureUnsupported: there are no groups."""
        raise _no_groups()


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
            self._last_ns = _nanoseconds(stored.time) if stored is not None else 0
        await self.create()

    def __aiter__(self) -> _LogPull:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.batch()
        if not batch:
            raise StopAsyncIteration
        return [NatsDelivery(_message(got.headers, got.body), got.position) for got in batch]

    def _start(self) -> dict[str, object]:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": self._last + 1}

    def _note(self, got: _Got) -> bool:
        if got.position <= self._last:
            return False
        self._last, self._last_ns = got.position, got.at_ns
        return True

    async def _changed(self) -> str:
        answer = await self._link._ask(f"STREAM.INFO.{self._stream}")
        if answer.error is not None and answer.error.err_code == _NO_STREAM:
            return f"stream {self._stream} was deleted"
        info = _granted(answer, self._stream)
        if info.created != self._identity:
            return f"stream {self._stream} was deleted and made anew"
        if info.state is not None and info.state.last_seq < self._last:
            return f"stream {self._stream} was put back: it ends at {info.state.last_seq}, {self._last} was read"
        stored = await self._link._stored(self._stream, self._last) if self._last_ns else None
        if stored is not None and _nanoseconds(stored.time) != self._last_ns:
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

    def _created(self, answer: _Answer) -> None:
        # Both by the server's clock, whatever ours says.
        self._created_ns = _nanoseconds(answer.ts or answer.created)
        self._created_at = self._loop.time()
        self._creations += 1

    def _announced(self, got: _Got) -> Announced | None:
        node = unquote(got.headers.get(NODE_HEADER, ""))
        retained = got.at_ns <= self._created_ns
        # What was taken back before we listened is not there; while we listened and were cut off, it is news.
        if not node or (retained and not got.body and self._creations == 1):
            return None
        age_s = (self._created_ns - got.at_ns) / _NANO + self._loop.time() - self._created_at if retained else 0.0
        return Announced(node, got.body, age_s)


class NatsConnector:
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
        _require_nats()
        self.address, from_url = _read(url)
        self.options = _options(from_url | options)
        self._tls = _tls_context(self.options) if _wants_tls_context(self.address, self.options) else None
        self._opened = False
        self._wire: _Wire | None = None
        self._attempt: asyncio.Task[_Wire] | None = None
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
                _granted(await wire.ask("INFO"), "JetStream")
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
            await wire.close(_not_open(self.address))

    async def _ready(self, *, patient: bool = True) -> _Wire:
        """A connection; a new one if the last was lost, which has `timeout_s` to come back if we are patient."""
        if not self._opened:
            raise _not_open(self.address)
        if self._wire is None or self._wire.gone is not None:
            # One attempt for all who want it. Who is cancelled while waiting does not cancel it for the others.
            attempt = self._attempt
            if attempt is None:
                attempt = self._attempt = asyncio.get_running_loop().create_task(self._connect(patient))
                attempt.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits
            await asyncio.wait({attempt})
            if attempt.cancelled():
                raise _not_open(self.address)
            return attempt.result()
        return self._wire

    async def _connect(self, patient: bool) -> _Wire:
        loop = asyncio.get_running_loop()
        # The first connection has one try, and so has one that did not come back in time.
        until = self._wire.gone_at + self.options.timeout_s if patient and self._wire is not None else 0.0
        try:
            if self._wire is not None:
                await self._wire.close(_not_open(self.address))
            while True:
                wire = _Wire(self.address, self.options, self._tls)
                try:
                    await wire.connect()
                except Unavailable:
                    if loop.time() >= until:
                        raise
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

    def _check_version(self, wire: _Wire) -> None:
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
        state = info.state or _State()
        end = state.last_seq + 1
        return {0: Bounds(f"{name}@{info.created}", state.first_seq if state.messages else end, end)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`. Asks the stream's leader: a direct get may be answered by a replica that is behind."""
        if partition != 0 or position <= 0:
            return None
        stream = await self._made_stream(_stream_name(topic))
        stored = await self._stored(stream, position)
        return None if stored is None else _message(_headers(stored.hdrs), stored.data)

    async def lag(self, topic: str, *, group: str | None, start: Mapping[int, int]) -> Lag:
        """See `Connector.lag`."""
        if group is not None:
            raise _no_groups()
        _, first, end = (await self.bounds(topic))[0]
        return Lag(max(end - max(start.get(0, 0) + 1, first), 0))

    async def _ask(self, what: str, body: object = None) -> _Answer:
        """Ask the JetStream API; once more if the connection was lost meanwhile, since asking changes nothing."""
        wire = await self._ready()
        try:
            return await wire.ask(what, body)
        except Unavailable:
            if wire.gone is None:
                raise
        return await (await self._ready()).ask(what, body)

    async def _stored(self, stream: str, position: int) -> _Stored | None:
        answer = await self._ask(f"STREAM.MSG.GET.{stream}", {"seq": position})
        if answer.error is not None and answer.error.err_code in (_NO_MESSAGE, _NO_STREAM):
            return None
        return _granted(answer, f"message {position} of {stream}").message

    async def _made_stream(self, name: str) -> str:
        await self._ready()
        if name not in self._made:
            await self._stream(name)
        return name

    async def _stream(self, name: str) -> _Answer:
        """A stream as it is now, made if it was not there."""
        answer = await self._ask(f"STREAM.INFO.{name}")
        if answer.error is not None and answer.error.err_code == _NO_STREAM:
            answer = await self._ask(f"STREAM.CREATE.{name}", self._stream_config(name))
            if answer.error is not None and answer.error.err_code == _NAME_TAKEN:
                # Somebody else was quicker, with other settings.
                answer = await self._ask(f"STREAM.INFO.{name}")
        _granted(answer, f"stream {name}")
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
            limits = {"max_bytes": options.max_bytes, "max_age": int(options.max_age_s * _NANO)}
        return {
            "name": name,
            "description": "synckit-streams",
            "subjects": _subjects(name),
            "retention": "limits",
            "discard": "old",
            "storage": options.storage,
            "num_replicas": options.replicas,
            "duplicate_window": int(window_s * _NANO),
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

    async def _publish(self, name: str, messages: Sequence[_Outgoing]) -> int:
        """Return the greatest position when the stream has all of them, over as many connections as it takes."""
        sending = _Sending(messages, self.options)
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

    def _outgoing(self, stream: str, message: Message) -> _Outgoing:
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
            raise Rejected(f"message id {message.id[:ID_CHARS_MAX]!r} is too long or not printable ASCII")
        sent = {"Nats-Msg-Id": message.id, **headers} if message.id else dict(headers)
        subject = _subjects(stream)[0][:-1] + _hash(message.partition_key)
        return _Outgoing(message.id, subject, sent, message.body, size)

    @asynccontextmanager
    async def receive(
        self, topic: str, *, group: str | None, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        if group is not None:
            raise _no_groups()
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
        await self._publish(DIGEST_STREAM, [_Outgoing("", subject, headers, body, len(body))])

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


# ------------------------------------------------------------------------------------------------- names and addresses


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


def _read(url: str) -> tuple[_Address, dict[str, object]]:
    scheme, separator, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    userinfo, at, hosts = rest.rstrip("/").rpartition("@")
    if not separator or scheme not in ("nats", "tls") or not hosts:
        raise ConfigError("not a URL of the NATS connector", hint="write nats://HOST:PORT, or tls://HOST:PORT")
    user, colon, password = userinfo.partition(":")
    options: dict[str, object] = dict(parse_qsl(query, keep_blank_values=True))
    if at and not colon:
        options.setdefault("token", unquote(user))
    servers = []
    for host in hosts.split(","):
        # The port is behind the last colon, unless that belongs to an IPv6 address.
        port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "4222"
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if not name or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"{host!r} is not HOST:PORT")
        servers.append(f"{scheme}://{name}:{port}")
    return _Address(
        servers, scheme == "tls", unquote(user) if colon else None, unquote(password) if colon else None
    ), options


def _options(given: dict[str, object]) -> NatsOptions:
    try:
        options = msgspec.convert(given, NatsOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a wrong option for the NATS connector: {error}") from None
    if not 1 <= options.replicas <= 5:
        raise ConfigError(f"replicas={options.replicas}: from 1 to 5 are possible")
    if not all(map(math.isfinite, (options.max_age_s, options.duplicate_window_s, options.timeout_s))):
        raise ConfigError("a time for ever, or none at all: leave the option out")
    if not 0.1 <= options.heartbeat_s <= PULL_EXPIRES_S / 2:
        raise ConfigError(f"heartbeat_s={options.heartbeat_s:g}: from 0.1 to {PULL_EXPIRES_S / 2:g} s are possible")
    if options.timeout_s <= 0 or options.max_age_s < 0 or options.duplicate_window_s < 0:
        raise ConfigError("timeout_s has to be above 0, max_age_s and duplicate_window_s not below")
    for field in ("tls_ca", "tls_cert", "tls_key", "creds"):
        path = getattr(options, field)
        if path and not Path(path).is_file():
            raise ConfigError(f"{field}={path!r}: there is no such file")
    return options


def _wants_tls_context(address: _Address, options: NatsOptions) -> bool:
    return address.tls or bool(options.tls_ca or options.tls_cert)


def _tls_context(options: NatsOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.tls_ca or None)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key or None)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"tls_ca, tls_cert or tls_key: {error}") from error
    return context


# ---------------------------------------------------------------------------------------------------- bytes and errors


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


def _status(msg: Msg) -> str:
    return "" if msg.data or not msg.headers else msg.headers.get("Status", "")


def _description(msg: Msg) -> str:
    return (msg.headers or {}).get("Description", "").strip()


def _nanoseconds(text: str) -> int:
    """An RFC 3339 time of the server, which counts nanoseconds, since 1970."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    at = datetime.fromisoformat(f"{seconds}+00:00")
    return int(at.timestamp()) * _NANO + int(fraction.ljust(9, "0")[:9])


def _granted(answer: _Answer, what: str) -> _Answer:
    if answer.error is not None:
        raise _refusal(answer.error, what)
    return answer


def _refusal(error: _ApiError, what: str) -> SyncKitError:
    text = f"{what}: {error.description} ({error.err_code})"
    if error.err_code in _NOT_ENABLED:
        return Rejected(text, hint="start the server with JetStream: nats-server -js")
    if error.err_code == _TOO_LARGE:
        return TooLarge(text, hint="raise the stream's max_msg_size")
    return Unavailable(text) if error.err_code in _TRANSIENT else Rejected(text)


def _decode(decoder: Callable[[bytes], _T], raw: bytes, what: str) -> _T:
    try:
        return decoder(raw)
    except msgspec.MsgspecError as error:
        raise Rejected(f"{what}: the server's answer cannot be read: {error}") from error


def _translate(error: Exception | None, what: str) -> ConnectorError:
    """One of ours for one of nats-py's, or of the socket's."""
    text = f"{what}: {error or 'no answer'}"
    said = str(error).lower()
    if isinstance(error, ssl.SSLError):
        return Unauthorised(text, hint="tls_ca names the certificates to trust, tls_cert and tls_key are our own")
    if isinstance(error, _nats_errors().SecureConnWantedError):
        return Unauthorised(text, hint="the server does not offer TLS; nothing secret was sent")
    if any(word in said for word in ("authorization", "authentication", "credentials", "permissions violation")):
        return Unauthorised(text)
    return Unavailable(text)


def _no_tls(address: _Address) -> Unauthorised:
    return Unauthorised(f"the connection to {address} is not encrypted", hint="write nats:// if that is wanted")


def _no_groups() -> FeatureUnsupported:
    return FeatureUnsupported("the NATS connector has no groups yet", hint="receive with group=None")


def _not_open(address: _Address) -> ConnectorError:
    return ConnectorError(
        f"the connector to {address} is not open", hint="call open() first, and nothing after close()"
    )


# ------------------------------------------------------------------------------------------------------------- nats-py


def _require_nats() -> None:
    try:
        import nats.aio.client  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependency(
            "the NATS connector needs nats-py", hint="pip install 'synckit-streams[nats]'"
        ) from None


@cache
def _nats_errors() -> Any:
    from nats import errors

    return errors


def _new_client(note_encryption: Callable[[], None]) -> Client:
    from nats.aio import client

    class NotingClient(client.Client):
        @property
        def ssl_context(self) -> ssl.SSLContext:
            # Read just before the connection is encrypted, and only then.
            note_encryption()
            return super().ssl_context

    return NotingClient()
